"""The queue of keys: newest in front, oldest out, no gradient."""

import pytest
import torch

from papermix.errors import UserError
from papermix.losses.contrastive import EARLIER, NOTHING
from papermix.losses.queue import KeyQueue


def test_new_keys_stand_in_front_in_the_order_of_views_and_images() -> None:
    queue = KeyQueue(10, 2)
    batches = [torch.randn(2, 3, 2, requires_grad=True) for _ in range(3)]
    keys = queue.push(batches[0], torch.tensor([5, 6, 7]))
    assert keys.image.tolist() == [0, 1, 2, 0, 1, 2, NOTHING, NOTHING, NOTHING, NOTHING]
    assert keys.view[:6].tolist() == [0, 0, 0, 1, 1, 1]
    for batch, label in zip(batches[1:], (8, 9)):
        keys = queue.push(batch, torch.full((3,), label), first_view=1)
        for v in range(2):
            for i in range(3):
                assert (
                    torch.equal(keys.embedding[v * 3 + i], batch[v, i])
                    and keys.image[v * 3 + i] == i
                    and keys.view[v * 3 + i] == v + 1
                )
    # the last four places hold the newest of the batch before
    assert torch.equal(keys.embedding[6:], batches[1].detach().flatten(0, 1)[:4])
    assert keys.image[6:].tolist() == [EARLIER] * 4 and queue.label.tolist() == [9] * 6 + [8] * 4
    assert not keys.embedding.requires_grad and set(queue.state_dict()) == {"embedding", "label", "filled"}


def test_what_was_returned_stays_as_it_was() -> None:
    queue = KeyQueue(4, 2)
    keys = queue.push(torch.ones(1, 2, 2))
    queue.push(torch.zeros(1, 2, 2))
    assert (keys.embedding[:2] == 1).all()


def test_a_batch_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="at least 6"):
        KeyQueue(5, 2).push(torch.randn(2, 3, 2))
    with pytest.raises(UserError, match="queue=0"):
        KeyQueue(0, 2)
