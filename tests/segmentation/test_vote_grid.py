"""The voting grid: the numbers of the paper's code, and the sum of votes against the transposed convolution that defines it."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from papermix.errors import UserError
from papermix.segmentation.vote_grid import PAPER, VoteGrid

SMALL = ((1, 1), (3, 2), (5, 2))
# rings, cells, field: the grids of the authors' code, and a small one
GRIDS = [
    (PAPER, 233, 243),
    (((3, 4), (9, 3), (27, 3)), 225, 243),
    (((3, 3), (7, 3), (21, 4)), 233, 231),
    (((1, 1), (3, 1), (9, 1), (27, 1), (81, 1)), 41, 243),
    (((3, 2), (15, 2), (25, 3)), 121, 225),
    (((15, 7),), 225, 225),
    (SMALL, 73, 35),
]


def by_convolution(grid: VoteGrid, votes: Tensor) -> Tensor:
    """The paper's words: for every level a dilated transposed convolution with one-hot kernels, then a mean over a cell's size."""
    total = torch.zeros_like(votes[:, 0])
    for size, side, first, last in grid.levels:
        weight = torch.zeros(last - first, 1, side, side, dtype=votes.dtype)
        for cell in range(first, last):
            y, x = (grid.center[cell] // size + side // 2).tolist()
            weight[cell - first, 0, y, x] = 1
        cast = F.conv_transpose2d(votes[:, first:last], weight, dilation=size, padding=(side - 1) // 2 * size)
        total += F.avg_pool2d(cast, size, 1, (size - 1) // 2)[:, 0]
    return total


@pytest.mark.parametrize(("rings", "bins", "field"), GRIDS)
def test_sizes_of_the_grids(rings: tuple, bins: int, field: int) -> None:
    grid = VoteGrid(rings)
    assert (grid.bins, grid.field) == (bins, field)
    assert grid.cells.shape == (field, field)
    assert grid.cells.unique().tolist() == list(range(bins)), "every cell is somewhere, and nothing is nowhere"
    assert len(grid.center) == len(grid.reach) == bins
    # a cell's numbers say where it is
    for cell in range(0, bins, 7):
        place = (grid.cells == cell).nonzero() - field // 2
        assert torch.equal(place.amin(0), grid.center[cell] - grid.reach[cell])
        assert torch.equal(place.amax(0), grid.center[cell] + grid.reach[cell])
        assert len(place) == (2 * int(grid.reach[cell]) + 1) ** 2


def test_numbers_of_the_default_grid() -> None:
    """As the authors' code numbers them."""
    grid = VoteGrid()
    assert grid.cells[121, 121] == 0
    assert grid.cells[120:123, 120:123].tolist() == [[5, 4, 3], [6, 0, 2], [7, 8, 1]]
    assert [last - first for _, _, first, last in grid.levels] == [9, 80, 72, 72]
    area = torch.bincount(grid.cells.flatten())
    wanted = torch.tensor([1] * 9 + [9] * 80 + [81] * 72 + [729] * 72)
    assert torch.equal(area, wanted)


@pytest.mark.parametrize(("cell", "rows", "columns"), [(100, (155, 163), (128, 136)), (232, (245, 271), (218, 244))])
def test_one_vote(cell: int, rows: tuple[int, int], columns: tuple[int, int]) -> None:
    """A vote of the pixel (150, 150) is spread evenly over its cell, and counts one in all."""
    grid = VoteGrid()
    votes = torch.zeros(1, grid.bins, 300, 300)
    votes[0, cell, 150, 150] = 1
    heat = grid.heat(votes)[0]
    seen = heat > 1e-6
    wanted = torch.zeros_like(seen)
    wanted[rows[0] : rows[1] + 1, columns[0] : columns[1] + 1] = True
    assert torch.equal(seen, wanted)
    assert torch.allclose(heat[seen], torch.tensor(1 / seen.sum().item()))
    # the same cell, said by the map of cells
    where = (grid.cells == cell).nonzero() - grid.field // 2 + 150
    assert bool(seen[where[:, 0], where[:, 1]].all()) and len(where) == seen.sum()


@pytest.mark.parametrize("cell", range(0, 73, 9))
def test_a_vote_fills_its_cell(cell: int) -> None:
    grid = VoteGrid(SMALL)
    votes = torch.zeros(1, grid.bins, 60, 70)
    votes[0, cell, 30, 33] = 1
    heat = grid.heat(votes)[0]
    around = heat[30 - 17 : 30 + 18, 33 - 17 : 33 + 18]
    assert heat.sum().item() == pytest.approx(1) and around.sum().item() == pytest.approx(1)
    assert torch.equal(around > 1e-6, grid.cells == cell)


@pytest.mark.parametrize(("rings", "size"), [(PAPER, (60, 43)), (SMALL, (40, 40)), (SMALL, (7, 90)), (((3, 2), (15, 2)), (33, 21))])
def test_heat_is_the_transposed_convolution(rings: tuple, size: tuple[int, int]) -> None:
    """At the borders, too, and for images smaller than the field."""
    grid = VoteGrid(rings)
    votes = torch.rand(2, grid.bins, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(grid.heat(votes), by_convolution(grid, votes), atol=1e-10)


@pytest.mark.parametrize("rings", [PAPER, SMALL, ((3, 2), (15, 2))])
def test_query_and_cells_are_one_relation(rings: tuple) -> None:
    """What the pixel i calls the centre j is what the centre's query calls the pixel."""
    grid = VoteGrid(rings)
    radius = grid.field // 2
    assert torch.equal(grid.query, grid.cells.flip(0).flip(1))
    g = torch.Generator().manual_seed(0)
    i, j = torch.randint(-radius // 2, radius // 2 + 1, (2, 500, 2), generator=g)
    forth, back = (j - i) + radius, (i - j) + radius
    assert torch.equal(grid.cells[forth[:, 0], forth[:, 1]], grid.query[back[:, 0], back[:, 1]])
    assert torch.equal(grid.of(j - i), grid.cells[forth[:, 0], forth[:, 1]])


def test_beyond_the_field() -> None:
    grid = VoteGrid(SMALL)
    offset = torch.tensor([[17, 17], [18, 0], [0, -18], [-17, -17], [500, -500], [0, 0]])
    assert grid.of(offset).tolist() == [grid.cells[34, 34].item(), -1, -1, grid.cells[0, 0].item(), -1, 0]
    # the last ring's first cell is its bottom right corner
    assert grid.cells[34, 34] == grid.levels[-1][2] + 16 and grid.cells[34, 34] == 49


@pytest.mark.parametrize("rings", [PAPER, SMALL, ((15, 7),)])
def test_mirror(rings: tuple) -> None:
    grid = VoteGrid(rings)
    order = grid.mirror
    assert torch.equal(order[order], torch.arange(grid.bins + 1))
    assert order[grid.bins] == grid.bins and not torch.equal(order, torch.arange(grid.bins + 1))
    assert torch.equal(order[grid.cells], grid.cells.flip(1))


def test_the_grid_is_no_weight() -> None:
    """Nothing to train, prune or save; it goes where the network goes."""
    grid = VoteGrid(SMALL)
    assert not list(grid.parameters()) and not grid.state_dict()
    assert {name for name, _ in grid.named_buffers()} == {"cells", "center", "reach"}
    assert grid.to("meta").heat(torch.zeros(1, 73, 9, 9, device="meta")).shape == (1, 9, 9)


@pytest.mark.parametrize(
    "rings", [[], [[2, 1]], [[1, 1], [5, 1]], [[1, 1], [3, 0]], [[1]], [[1, 1, 1]], [[1, 1.5]], [[1, 1], [3, 1], [-3, 1]]]
)
def test_grids_that_cannot_be(rings: list) -> None:
    with pytest.raises(UserError, match=r"^the voting grid .*\.$"):
        VoteGrid(rings)
