"""Label structure: a code of label maps, a branch into its frozen decoder, and what of it reaches whom."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papermix.errors import UserError
from papermix.segmentation.label_structure import CodeBranch, LabelAutoencoder, LabelStructure, at_size, cross_entropy, squared
from papermix.segmentation.segments import VOID

K = 4


def labels_of(height: int = 16, width: int = 24, count: int = 2, seed: int = 0) -> Tensor:
    """Blocks of four pixels of random classes, a corner void."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, K, (count, -(-height // 4), -(-width // 4)), generator=draw)
    labels = coarse.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, :height, :width].clone()
    labels[:, :3, :5] = VOID
    return labels


@pytest.fixture(scope="module")
def trained() -> LabelAutoencoder:
    """An autoencoder that says its four label maps again."""
    torch.manual_seed(0)
    autoencoder, labels = LabelAutoencoder(K, code=16, stride=4, base=16), labels_of(count=4)
    optimizer = torch.optim.Adam(autoencoder.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        loss = cross_entropy(autoencoder(labels)["semantic"], labels).mean()
        loss.backward()
        optimizer.step()
    autoencoder.eval()
    said = autoencoder(labels)["semantic"].argmax(1)
    assert float((said == labels)[labels != VOID].float().mean()) > 0.95
    return autoencoder


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def mean(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    return torch.stack([loss.sum() / known.sum() for loss, known in parts]).sum()


@pytest.mark.parametrize("size", [(16, 24), (8, 8), (13, 18), (1, 5)])
def test_maps_of_any_size_come_back_at_their_size(size: tuple[int, int], trained: LabelAutoencoder) -> None:
    labels = labels_of(*size)
    assert trained(labels)["semantic"].shape == (2, K, *size)
    assert trained.encode(labels).shape == (2, 16, -(-size[0] // 4), -(-size[1] // 4))


def test_the_lookup_is_a_1x1_convolution_of_the_one_hot_map(trained: LabelAutoencoder) -> None:
    labels = labels_of()
    one_hot = F.one_hot(labels.where(labels != VOID, K), K + 1)[..., :K].movedim(-1, 1).float()  # void: all zero
    convolved = F.conv2d(one_hot, trained.lookup.weight[:K].T[:, :, None, None])
    assert torch.allclose(trained.encoder(convolved), trained.encode(labels), atol=1e-5)


def test_nothing_goes_around_the_code(trained: LabelAutoencoder) -> None:
    labels = labels_of()
    decoded = trained.decoder(trained.encode(labels))
    assert torch.equal(decoded, trained(labels)["semantic"])
    assert trained.encode(labels).numel() < K * labels.numel()
    for layer in range(len(trained.layers)):
        hidden = trained.hidden(labels, layer)
        channels, stride = trained.layers[layer]
        assert hidden.shape == (2, channels, 16 // stride, 24 // stride)
        assert torch.equal(trained.decoder(hidden, layer), decoded)
    assert trained.layers == [(16, 4), (64, 4), (32, 2), (16, 1)]


@pytest.mark.parametrize("layer", range(4))
@pytest.mark.parametrize("size", [(16, 24), (20, 8), (12, 12), (13, 18)])
def test_the_branch_has_the_layer_s_shape(layer: int, size: tuple[int, int], trained: LabelAutoencoder) -> None:
    structure = LabelStructure(trained, [6], width=8, layer=layer)
    features, labels = torch.randn(2, 6, -(-size[0] // 4), -(-size[1] // 4)), labels_of(*size)
    predicted, logits = structure.predict([features], labels)
    assert predicted.shape == trained.hidden(labels, layer).shape
    assert logits.shape == (2, K, *size)
    assert layer == 0 or bool((predicted >= 0).all())


def test_a_hypercolumn_is_brought_to_one_size() -> None:
    fine, coarse = torch.randn(2, 3, 16, 24), torch.randn(2, 5, 2, 3)
    assert torch.allclose(at_size(fine, (4, 6)), fine.view(2, 3, 4, 4, 6, 4).mean((3, 5)), atol=1e-6)
    assert at_size(coarse, (4, 6)).shape == (2, 5, 4, 6) and at_size(fine, (16, 24)) is fine
    # an image of 13 rows at stride 1, and its code at stride 4
    assert at_size(torch.randn(2, 3, 13, 7), (4, 2)).shape == (2, 3, 4, 2)
    assert CodeBranch([3, 5], 7, width=4)([fine, coarse], (4, 6)).shape == (2, 7, 4, 6)


@pytest.mark.parametrize("loss", ["cross_entropy", "squared", "code"])
def test_training_leaves_the_autoencoder_alone_and_reaches_the_features(loss: str, trained: LabelAutoencoder) -> None:
    torch.manual_seed(1)
    network, labels = nn.Conv2d(3, 6, 3, padding=1), labels_of()
    structure = LabelStructure(trained, [6], width=8, loss=loss)  # type: ignore[arg-type]
    (frozen,) = structure._frozen
    before, own = tensors(frozen), tensors(structure)
    optimizer = torch.optim.SGD([*network.parameters(), *structure.parameters()], 0.1, weight_decay=0.1)
    first = None
    for _ in range(30):
        structure.train()
        optimizer.zero_grad()
        value = mean(structure([network(F.one_hot(labels % 3, 3).movedim(-1, 1).float())], labels))
        value.backward()
        assert network.weight.grad is not None and float(network.weight.grad.abs().sum()) > 0
        optimizer.step()
        first = first or value.item()
    assert value.item() < 0.9 * first
    assert same(before, tensors(frozen)) and same(before, tensors(trained)) and not frozen.training
    assert not same(own, tensors(structure))
    assert not any("lookup" in k or "decoder" in k for k in own)


def test_modes_train_what_they_say(trained: LabelAutoencoder) -> None:
    labels, features = labels_of(), torch.randn(2, 6, 16, 24)
    counts = {}
    for decoder in ("frozen", "random", "tuned", "scratch", "joint"):
        torch.manual_seed(2)
        structure = LabelStructure(trained, [6], width=8, decoder=decoder)  # type: ignore[arg-type]
        parts = structure([features], labels)
        mean(parts).backward()
        counts[decoder] = (len(parts), len(list(structure.parameters())))
        assert all(p.grad is not None and float(p.grad.abs().sum()) >= 0 for p in structure.parameters())
        given = structure.decoding.last.weight
        assert torch.equal(given, trained.decoder.last.weight) is (decoder in ("frozen", "tuned"))
    branch = 5
    assert counts == {
        "frozen": (1, branch),
        "random": (1, branch),
        "tuned": (1, branch + 11),
        "scratch": (1, branch + 11),
        "joint": (2, branch + 11 + 1 + 9),
    }


def test_a_later_layer_trains_no_block_before_it(trained: LabelAutoencoder) -> None:
    structure = LabelStructure(trained, [6], width=8, layer=2, decoder="tuned")
    mean(structure([torch.randn(2, 6, 16, 24)], labels_of())).backward()
    assert all((p.grad is not None) is p.requires_grad for p in structure.parameters())


@pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
def test_void_changes_no_loss(loss: str, trained: LabelAutoencoder) -> None:
    labels = labels_of()
    function = {"cross_entropy": cross_entropy, "squared": squared}[loss]
    logits = torch.randn(2, K, 16, 24)
    other = torch.where((labels == VOID)[:, None], logits + torch.randn_like(logits), logits)
    assert torch.equal(function(logits, labels), function(other, labels))
    assert not function(logits, labels)[labels == VOID].any()


def test_squared_is_the_mean_over_classes_of_the_squared_difference() -> None:
    labels, logits = labels_of(), torch.randn(2, K, 16, 24)
    known = labels != VOID
    truth = F.one_hot(labels.where(known, 0), K).movedim(-1, 1).float()
    wanted = (logits.softmax(1) - truth).square().mean(1) * known
    assert torch.allclose(squared(logits, labels), wanted, atol=1e-6)


@pytest.mark.parametrize("layer", [0, 2])
def test_the_true_code_has_no_loss(layer: int, trained: LabelAutoencoder) -> None:
    labels = labels_of()
    structure = LabelStructure(trained, [6], width=8, loss="code", layer=layer)
    structure.branch.forward = lambda maps, size: trained.hidden(labels, layer)  # type: ignore[method-assign]
    ((loss, known),) = structure([torch.randn(2, 6, 4, 6)], labels)
    assert not loss.any() and bool(known.any())
    structure.branch.forward = lambda maps, size: trained.hidden(labels, layer) + 1  # type: ignore[method-assign]
    ((loss, known),) = structure([torch.randn(2, 6, 4, 6)], labels)
    assert torch.allclose(loss, known.float(), atol=1e-5)
    # a position of the layer without any labelled pixel is left out
    labels[:, :4, :4] = VOID
    assert not structure([torch.randn(2, 6, 4, 6)], labels)[0][1][:, 0, 0].any()


def test_it_moves_copies_and_stays_in_evaluation_mode_with_what_is_frozen(trained: LabelAutoencoder) -> None:
    structure = LabelStructure(trained, [6], width=8).double().train()
    assert structure._frozen[0].lookup.weight.dtype == torch.float64 and not structure._frozen[0].training
    other = copy.deepcopy(structure)
    assert other._frozen[0] is not structure._frozen[0]
    mean(other([torch.randn(2, 6, 4, 6, dtype=torch.float64)], labels_of())).backward()
    assert trained.lookup.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"loss": "mse"}, "must be one of cross_entropy, squared, code"),
        ({"decoder": "frosen"}, "did you mean 'frozen'"),
        ({"layer": 4}, "from 0, the code, to 3"),
        ({"loss": "code", "decoder": "joint"}, "loss=code compares"),
    ],
)
def test_what_cannot_be_is_refused(options: dict, part: str, trained: LabelAutoencoder) -> None:
    with pytest.raises(UserError, match=part):
        LabelStructure(trained, [6], **options)


@pytest.mark.parametrize("stride", [1, 6, 0])
def test_a_stride_is_a_power_of_two(stride: int) -> None:
    with pytest.raises(UserError, match=r"stride=\d"):
        LabelAutoencoder(K, stride=stride)
