"""Multigrid layers and memory: sizes and counts of the released networks, the cell by hand, what reaches what, residual links."""

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from papermix.errors import UserError
from papermix.models.memory.conv_lstm import ConvLSTMMemory
from papermix.models.multigrid.layers import (
    MultigridConv,
    PadChannels,
    Shortcut,
    gather,
    gathered,
    input_channels,
    input_pyramid,
    window,
)
from papermix.models.multigrid.memory import ConvLSTMCell, MultigridMemory, Reader
from papermix.run.catalog import CONF

MAPPING = {"in_shape": [4, 3, 3], "query_shape": [4, 3, 3], "out_shape": [1, 48, 48]}
RECALL = {"in_shape": [1, 28, 28], "query_shape": [1, 28, 28], "out_shape": [10]}


def option(name: str) -> dict:
    """Arguments of a model option, with those of the option it builds on."""
    tree = yaml.safe_load((CONF / f"model/{name}.yaml").read_text())
    base = option(tree["defaults"][0]) if "defaults" in tree else {}
    own = {k: v for k, v in tree.items() if not k.startswith("_") and k != "defaults" and not str(v).startswith("${")}
    return {**base, **own}


def small(**others) -> MultigridMemory:
    torch.manual_seed(0)
    given = {"in_shape": [2, 3, 3], "query_shape": [1, 3, 3], "out_shape": [1, 12, 12], **others}
    defaults = {"levels": (1, 2, 3), "channels": (2, 3, 3), "decoder_levels": (2, 2), "decoder_channels": 4}
    return MultigridMemory(**{**defaults, **given})


def count(*modules: nn.Module | None) -> int:
    return sum(p.numel() for module in modules if module is not None for p in module.parameters())


# ---- layers -----------------------------------------------------------------------------------------------------------------


def test_levels_gather_their_neighbours():
    torch.manual_seed(0)
    maps = {j: torch.randn(2, j + 1, 3 * 2**j, 3 * 2**j) for j in range(3)}
    read = gather(maps, range(4))
    assert {j: tuple(x.shape[1:]) for j, x in read.items()} == {0: (3, 3, 3), 1: (6, 6, 6), 2: (5, 12, 12), 3: (3, 24, 24)}
    assert {j: x.shape[1] for j, x in read.items()} == gathered({0: 1, 1: 2, 2: 3}, range(4))
    up = maps[0].repeat_interleave(2, 2).repeat_interleave(2, 3)
    down = maps[2].unflatten(3, (6, 2)).unflatten(2, (6, 2)).amax((3, 5))
    assert torch.equal(read[1], torch.cat([up, maps[1], down], 1))
    assert list(gather({j: maps[j] for j in (1, 2)}, [2])) == [2]
    with pytest.raises(UserError, match="level 3 reads nothing, as the layer before has the levels 0 to 1"):
        gathered({0: 4, 1: 4}, range(4))


def test_a_multigrid_convolution_has_its_own_weights_at_each_level():
    torch.manual_seed(0)
    conv = MultigridConv({0: 2, 1: 3}, {0: 4, 1: 5, 2: 6}, lambda channels: nn.BatchNorm2d(channels))
    out = conv({0: torch.randn(2, 2, 3, 3), 1: torch.randn(2, 3, 6, 6)})
    assert {j: tuple(x.shape[1:]) for j, x in out.items()} == {0: (4, 3, 3), 1: (5, 6, 6), 2: (6, 12, 12)}
    assert count(conv) == 9 * (5 * 4 + 5 * 5 + 3 * 6) + 15 + 2 * 15


def test_shortcuts_pad_with_zeros_and_leave_out_what_does_not_fit():
    maps, source = {0: torch.ones(1, 3, 2, 2), 1: torch.ones(1, 3, 4, 4)}, {0: torch.ones(1, 2, 2, 2), 1: torch.ones(1, 4, 4, 4)}
    link = Shortcut({0: 3, 1: 3}, {0: 2, 1: 4})
    added = link(maps, source)
    assert added[0].flatten(2).amax(2).tolist() == [[2, 2, 1]] and added[1] is maps[1] and list(added) == [0, 1]
    assert isinstance(link.pad[0], PadChannels) and link.pad[0].new_chans == 1


def test_windows_of_levels_close_in_on_the_one_that_is_read():
    assert [list(window(4, 4, n)) for n in (5, 4, 2, 1)] == [[0, 1, 2, 3, 4], [1, 2, 3, 4], [3, 4], [4]]
    assert [list(window(4, 0, n)) for n in (5, 2, 1)] == [[0, 1, 2, 3, 4], [0, 1], [0]]
    assert [list(window(4, 2, n)) for n in (4, 3, 2, 1)] == [[1, 2, 3, 4], [2, 3, 4], [2, 3], [2]]


def test_inputs_become_pyramids():
    x = torch.arange(28.0 * 28).view(1, 1, 28, 28)
    pyramid = input_pyramid(x, 3, 3)
    assert [tuple(m.shape[2:]) for m in pyramid.values()] == [(3, 3), (6, 6), (12, 12)]
    # the nearest pixel of row and column k in S is floor(28 k / S)
    assert torch.equal(pyramid[0][0, 0, 1], x[0, 0, 9, [0, 9, 18]])
    assert list(input_pyramid(x[..., :3, :3], 3, 3)) == [0] and list(input_pyramid(x[..., :8, :8], 3, 3)) == [0, 1]
    assert input_pyramid(x[..., :6, :6], 3, 2)[1].data_ptr() == x.data_ptr()
    vector = input_pyramid(torch.arange(1.0, 12).view(1, 11), 3, 5)
    assert list(vector) == [0] and vector[0].flatten().tolist() == [*range(1, 12), *[0] * 7]
    for shape in ((1, 28, 28), (2, 3, 3), (4, 5, 30), (11,)):
        channels = {j: m.shape[1] for j, m in input_pyramid(torch.zeros(1, *shape), 3, 4).items()}
        assert channels == input_channels(shape, 3, 4)


# ---- the released networks --------------------------------------------------------------------------------------------------


def test_the_released_network_for_mapping():
    model = MultigridMemory(**MAPPING, **option("multigrid_memory"))
    assert count(model.writer) == 392_768
    assert count(model.reader, model.decoder) == 257_457
    assert count(model) == 650_225 == count(MultigridMemory(**MAPPING))
    assert model.cells == 76_968
    with torch.no_grad():
        answer, state = model(torch.randn(1, 1, 4, 3, 3))
    assert answer.shape == (1, 1, 1, 48, 48)
    assert sum(c.numel() for layer in state for _, c in layer) == 76_968
    assert [[c.shape[-1] for _, c in layer] for layer in (state[0], state[2], state[6])] == [
        [3, 6],
        [3, 6, 12],
        [3, 6, 12, 24, 48],
    ]
    # a new finest level reads what comes up to it, and nothing else
    assert [layer.cells[-1].input.in_channels for layer in model.writer.layers] == [4, 8, 4, 16, 8, 32, 16]
    # links 1 -> 3 -> 5 -> 7 in the writer, 1 -> 3 -> 5 in the reader, 9 -> 11 -> 13 in the decoder; channels shrink at 7 and 9
    links = [m.levels for part in (model.writer, model.reader, model.decoder) for m in part.links]
    assert links[:7] == [(), (), (0, 1), (), (0, 1, 2), (), (0, 1, 2, 3)]
    assert links[7:14] == [(), (), (0, 1), (), (0, 1, 2), (), ()]
    assert links[14:] == [(), (), (), (2, 3, 4), (), (3, 4)]
    assert [conv.levels for conv in model.decoder.layers][::2] == [(1, 2, 3, 4), (2, 3, 4), (3, 4)]


def test_the_released_network_for_recall():
    model = MultigridMemory(**RECALL, **option("multigrid_memory_recall")).eval()

    def convs(before: dict, layers: list[tuple[int, int]], gates: int = 1, beside: int = 1) -> int:
        """Parameters of layers of (levels, channels), each level with a batch norm."""
        total = 0
        for levels, width in layers:
            own = dict.fromkeys(range(levels), width)
            recurrent = width if gates > 1 else 0
            total += sum(9 * (n + recurrent) * gates * width + gates * width + 2 * width for n in gathered(before, own).values())
            before = {j: beside * n for j, n in own.items()}
        return total

    image, layers = dict.fromkeys(range(3), 1), [(3, 4), (3, 4), (3, 8), (3, 8), (3, 16)]
    assert count(model.writer) == convs(image, layers, gates=4)
    assert count(model.reader) == convs(image, layers, beside=2)
    decoder = convs(dict.fromkeys(range(3), 32), [(3, 16), (3, 16), (2, 16), (2, 16), (1, 10)])
    assert count(model.decoder) == decoder + 3 * 3 * 10 * 10 + 10
    assert [m.levels for m in model.decoder.links] == [(), (), (), (0, 1), ()]
    with torch.no_grad():
        assert model(torch.randn(2, 2, 1, 28, 28))[0].shape == (2, 2, 10)
    assert model.cells == (4 + 4 + 8 + 8 + 16) * (9 + 36 + 144)


# ---- the cell ---------------------------------------------------------------------------------------------------------------


def test_a_cell_without_weights():
    cell = ConvLSTMCell(2, 1)
    for p in cell.parameters():
        nn.init.zeros_(p)
    c = torch.tensor(0.7).view(1, 1, 1, 1)
    h, (last, after) = cell(torch.randn(1, 2, 1, 1), 1, (torch.tensor(0.3).view(1, 1, 1, 1), c))
    torch.testing.assert_close(after, torch.tensor(1.0).sigmoid() * c)
    torch.testing.assert_close(h, 0.5 * after.tanh())
    assert torch.equal(h, last)


def test_a_cell_step_by_step_on_one_cell_is_a_scalar_lstm_with_peepholes():
    torch.manual_seed(0)
    cell = ConvLSTMCell(1, 1, forget_bias=0.5, peepholes=(1, 1))
    nn.init.normal_(cell.peepholes)
    nn.init.normal_(cell.input.bias)
    x = torch.randn(3, 1, 1, 1)
    outputs, (h, c) = cell(x, 3)
    # a 3x3 kernel meets padding everywhere but in its middle
    wx, wh, b = cell.input.weight[:, 0, 1, 1], cell.hidden.weight[:, 0, 1, 1], cell.input.bias
    p = cell.peepholes.flatten()
    hh = cc = torch.zeros(())
    for t in range(3):
        i, f, o, g = (wx * x[t].squeeze() + wh * hh + b).unbind()
        i, f = (i + p[0] * cc).sigmoid(), (f + p[1] * cc + 0.5).sigmoid()
        cc = f * cc + i * g.tanh()
        hh = (o + p[2] * cc).sigmoid() * cc.tanh()
        torch.testing.assert_close(outputs[t].squeeze(), hh)
    torch.testing.assert_close((h.squeeze(), c.squeeze()), (hh, cc))


def test_a_cell_equals_one_convolution_of_frame_and_hidden_maps():
    torch.manual_seed(0)
    cell = ConvLSTMCell(3, 2)
    x, h, c = torch.randn(4, 3, 5, 5), torch.randn(2, 2, 5, 5), torch.randn(2, 2, 5, 5)
    outputs, after = cell(x, 2, (h, c))
    kernel = torch.cat([cell.input.weight, cell.hidden.weight], 1)
    bound = (6 / (9 * (5 + 8))) ** 0.5
    assert 0.9 * bound < kernel.abs().max() <= bound and not cell.input.bias.any()
    for t in range(2):
        i, f, o, g = F.conv2d(torch.cat([x[2 * t : 2 * t + 2], h], 1), kernel, cell.input.bias, padding=1).chunk(4, 1)
        c = (f + 1).sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        torch.testing.assert_close(outputs[2 * t : 2 * t + 2], h)
    torch.testing.assert_close(after, (h, c))


# ---- memory -----------------------------------------------------------------------------------------------------------------


def test_one_step_reaches_every_cell_from_every_input():
    torch.manual_seed(0)
    frames = torch.randn(1, 1, 4, 3, 3, dtype=torch.float64).repeat(10, 1, 1, 1, 1)
    for place in range(9):
        frames[1 + place, 0, 0].flatten()[place] += 1
    model = MultigridMemory([4, 3, 3], None, [1, 48, 48]).double()
    with torch.no_grad():
        _, state = model.write(frames)
        for _, c in state[-1]:
            assert ((c[1:] - c[:1]).abs() > 0).all()
        # one scale, as many layers, the same size: a cell is reached from seven cells away and no farther
        flat = ConvLSTMMemory([1, 48, 48], None, [1, 48, 48], channels=(2,) * 7).double()
        frames = torch.zeros(2, 1, 1, 48, 48, dtype=torch.float64)
        frames[1, 0, 0, 0, 0] = 1
        _, state = flat.write(frames)
        _, c = state[-1][0]
        changed = (c[1] - c[0]).abs().amax(0) > 0
    assert changed[:8, :8].all() and int(changed.sum()) == 64


def test_queries_are_local_and_leave_the_memory_alone():
    model = small()
    frames, query = torch.randn(2, 3, 2, 3, 3), torch.randn(2, 3, 1, 3, 3)
    answers, state = model(frames, None, query)
    other = query.clone()
    other[:, 1] += 1
    changed, same = model(frames, None, other)
    torch.testing.assert_close(same, state, rtol=0, atol=0)
    assert torch.equal(changed[:, [0, 2]], answers[:, [0, 2]]) and not torch.equal(changed[:, 1], answers[:, 1])
    torch.testing.assert_close(model(frames)[0], model(frames, None, torch.zeros_like(query))[0])


def test_earlier_frames_matter_and_later_ones_do_not():
    model = small()
    frames, query = torch.randn(2, 3, 2, 3, 3), torch.randn(2, 3, 1, 3, 3)
    answers = model(frames, None, query)[0]
    changed = frames.clone()
    changed[:, 1] += 1
    moved = (model(changed, None, query)[0] - answers).abs().flatten(2).amax(2) > 0
    assert moved.all(0).tolist() == [False, True, True] and not moved[:, 0].any()


def test_residual_links_do_not_enter_the_recurrence():
    with_links, without = small(levels=(2,) * 4, channels=(2,) * 4), small(levels=(2,) * 4, channels=(2,) * 4, residual=False)
    without.load_state_dict(with_links.state_dict())
    frames = torch.randn(2, 3, 2, 3, 3)
    (passed, a), (plain, b) = with_links.write(frames), without.write(frames)
    torch.testing.assert_close(a[:3], b[:3], rtol=0, atol=0)
    assert not torch.equal(a[3][0][0], b[3][0][0])
    assert torch.equal(passed[2][1], plain[2][1] + plain[0][1]) and torch.equal(passed[1][1], plain[1][1])


def test_only_what_is_asked_is_read():
    model = small()
    frames, query = torch.randn(2, 3, 2, 3, 3), torch.randn(2, 3, 1, 3, 3)
    asked = torch.tensor([[False, True, True], [False, False, True]])
    rows = []
    model.decoder.register_forward_hook(lambda module, args, out: rows.append(len(out)))
    answers, state = model(frames, None, query, asked)
    whole, same = model(frames, None, query)
    torch.testing.assert_close(answers[asked], whole[asked])
    assert not answers[~asked].any() and rows == [3, 6]
    torch.testing.assert_close(state, same)
    nothing = model(frames, None, query, torch.zeros_like(asked))[0]
    assert nothing.shape == whole.shape
    (nothing * 0).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_several_readers_share_a_writer():
    model = small()
    frames, query = torch.randn(2, 3, 2, 3, 3), torch.randn(6, 1, 3, 3)
    memory, _ = model.write(frames)
    answers = model.read(memory, query)
    assert answers.shape == (6, 1, 12, 12)
    # time stands in front
    first = model(frames, None, query.unflatten(0, (3, 2)).transpose(0, 1))[0]
    torch.testing.assert_close(answers.unflatten(0, (3, 2)).transpose(0, 1), first)
    with pytest.raises(UserError, match="is read by queries"):
        model.read(memory)
    other = Reader({0: 5}, model.writer.channels, True, lambda channels: nn.ReLU())
    passed = other({0: torch.randn(6, 5, 3, 3)}, memory)
    assert [maps[0].shape[1] for maps in passed] == [4, 6, 6]
    assert torch.equal(passed[2][2][:, 3:], memory[2][2])


@pytest.mark.parametrize("out_shape", [(1, 12, 12), (2, 6, 6), (2, 3, 3), (3, 7, 9), (1, 20, 20), (5,)])
def test_answers_have_the_shape_asked_for(out_shape):
    model = small(out_shape=out_shape)
    answers, _ = model(torch.randn(2, 3, 2, 3, 3))
    assert answers.shape == (2, 3, *out_shape)
    assert model.decoder.target == {(1, 12, 12): 2, (2, 6, 6): 1, (3, 7, 9): 2, (1, 20, 20): 2}.get(out_shape, 0)


def test_without_queries_the_decoder_stands_on_the_writer():
    model = small(query_shape=None, out_shape=[4])
    assert model.reader is None
    answers, _ = model(torch.randn(2, 3, 2, 3, 3))
    assert answers.shape == (2, 3, 4)
    # the third layer of all links to the first, the fifth to the third, whose channels are fewer
    assert [m.levels for m in model.writer.links] == [(), (), (0,)] and [m.levels for m in model.decoder.links] == [(), (0, 1)]


def test_batch_norm_is_behind_the_recurrence():
    model = small(norm="batch")
    frames = torch.randn(4, 3, 2, 3, 3)
    memory, state = model.write(frames)
    h = state[1][0][0]
    assert not torch.allclose(memory[1][0].unflatten(0, (3, 4))[-1], h)
    passed: Tensor = memory[1][0]
    torch.testing.assert_close(passed.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    plain = small()
    plain.load_state_dict(model.state_dict(), strict=False)
    torch.testing.assert_close(plain.write(frames)[1][0], state[0])
    assert count(model) - count(plain) == 2 * (2 + 2 * 3 + 3 * 3) * 2 + 2 * 4 * 4


def test_weights_in_channels_last_give_the_same():
    model = small()
    frames, query = torch.randn(2, 3, 2, 3, 3), torch.randn(2, 3, 1, 3, 3)
    answers, state = model(frames, None, query)
    last, same = model.to(memory_format=torch.channels_last)(frames, None, query)
    torch.testing.assert_close(last, answers)
    torch.testing.assert_close(same, state)


def test_a_conv_lstm_is_a_memory_of_one_level():
    model = ConvLSTMMemory([2, 3, 3], [1, 3, 3], [1, 12, 12], channels=(2, 3), decoder_channels=(4,))
    answers, state = model(torch.randn(2, 3, 2, 3, 3))
    assert answers.shape == (2, 3, 1, 12, 12) and [c.shape for ((_, c),) in state] == [(2, 2, 12, 12), (2, 3, 12, 12)]
    assert model.cells == 5 * 144
    writer = 9 * (2 + 2) * 8 + 8 + 9 * (2 + 3) * 12 + 12
    reader = 9 * 1 * 2 + 2 + 9 * 4 * 3 + 3 + 9 * 6 * 4 + 4 + 9 * 4 * 1 + 1
    assert count(model) == writer + reader
    assert ConvLSTMMemory([2, 8, 8], None, [5], channels=(2,)).decoder.head.in_features == 8 * 8 * 16
    assert ConvLSTMMemory([9], None, [5], channels=(2,)).cells == 2 * 9


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"levels": (1, 2)}, r"levels=\[1, 2\] and channels=\[2, 3, 3\] must have one number for each layer"),
        ({"decoder_channels": [4]}, r"decoder_levels=\[2, 2\] and decoder_channels=\[4\]"),
        ({"levels": (1, 1, 3)}, "level 2 reads nothing, as the layer before has the levels 0 to 0"),
        ({"decoder_levels": (4, 2)}, "must not grow, nor begin with more than levels ends with"),
        ({"decoder_levels": (1, 2)}, "must not grow"),
        ({"levels": (), "channels": ()}, "leaves no memory"),
        ({"levels": (1, 2, 0)}, r"levels\[2\]=0"),
        ({"base": 0}, "base=0"),
        ({"norm": "layer"}, "norm='layer' must be none or batch"),
        ({"in_shape": [2, 3]}, r"in_shape=\[2, 3\] is not possible"),
        ({"out_shape": [0]}, r"out_shape\[0\]=0"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(UserError, match=message):
        small(**changes)
