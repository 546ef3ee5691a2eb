"""Which way, and how far, is the centre of my object? Offsets cut into numbered cells, fine near by and coarse far off.

Wang, Luo, Maire, Shakhnarovich, "Pixel Consensus Voting for Panoptic Segmentation", CVPR 2020, arXiv 2004.01849, section 3.
Offsets are centre minus pixel, (dy, dx) in positions of the map that votes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papermix.errors import UserError

# cells of 1, 3, 9 and 27 positions: 233 of them, 243 positions across
PAPER = ((1, 1), (3, 4), (9, 3), (27, 3))


class VoteGrid(nn.Module):
    """The voting filter: square cells around a pixel, numbered from the centre outwards, and the sum of votes cast in them.

    A central cell, then for every (size, rings) so many square rings of cells of this size. A ring is numbered from its bottom
    right corner upwards, then to the left, downwards, and to the right.

    Args:
        rings: (size, rings), sizes odd and each a divisor of the side covered so far.

    Attributes:
        bins: number of cells K; a pixel's classes are the cells 0 ... K - 1 and K, no vote.
        field: side M of the square that the cells cover, odd.
        cells: int64 [M, M] (buffer), the cell of every offset: ``cells[dy + M // 2, dx + M // 2]``.
        center: int64 [K, 2] (buffer), offset of every cell's middle.
        reach: int64 [K] (buffer), from there to the cell's last row and column.

    Raises:
        UserError: rings of which no grid can be made.
    """

    cells: Tensor
    center: Tensor
    reach: Tensor

    def __init__(self, rings: Sequence[Sequence[int]] = PAPER) -> None:
        super().__init__()
        said = [list(level) for level in rings]
        if not said or any(len(level) != 2 or not all(isinstance(n, int) and n >= 1 for n in level) for level in said):
            raise UserError(f"the voting grid {said} is no list of [size, rings], whole numbers from 1 on, such as [[1, 1], [3, 4]].")
        center, reach = [(0, 0)], [said[0][0] // 2]
        self.field = said[0][0]
        # size, cells along a side, numbers of the first and the last cell + 1 of every level; the first has the central cell too
        self.levels: list[tuple[int, int, int, int]] = []
        for size, count in said:
            if size % 2 == 0 or self.field % size:
                raise UserError(
                    f"the voting grid {said} cannot have cells of {size}: sizes are odd and divide the {self.field} before them."
                )
            first = len(center) if self.levels else 0
            inner = self.field // size // 2
            for ring in range(inner + 1, inner + count + 1):
                center += [(size * y, size * x) for y, x in _walk(ring)]
            reach += [size // 2] * (len(center) - len(reach))
            self.field += 2 * count * size
            self.levels.append((size, self.field // size, first, len(center)))
        self.bins = len(center)
        cells = torch.empty(self.field, self.field, dtype=torch.int64)
        for cell, ((y, x), around) in enumerate(zip(center, reach)):
            top, left = self.field // 2 + y - around, self.field // 2 + x - around
            cells[top : top + 2 * around + 1, left : left + 2 * around + 1] = cell
        # not in the checkpoint: they are what the option says
        for name, values in (("cells", cells), ("center", torch.tensor(center)), ("reach", torch.tensor(reach))):
            self.register_buffer(name, values, persistent=False)

    @property
    def query(self) -> Tensor:
        """int64 [M, M]: the cell in which a pixel at this place around a centre sees it, the grid turned by half a circle."""
        return self.cells.flip(0, 1)

    @property
    def mirror(self) -> Tensor:
        """int64 [K + 1]: class of a vote in the picture mirrored left to right; no vote stays no vote."""
        wide = self.center + self.field // 2
        return F.pad(self.cells[wide[:, 0], self.field - 1 - wide[:, 1]], (0, 1), value=self.bins)

    def of(self, offset: Tensor) -> Tensor:
        """Cell of every offset int64 [..., 2], -1 beyond the field."""
        place = offset + self.field // 2
        inside = ((place >= 0) & (place < self.field)).all(-1)
        y, x = place.clamp(0, self.field - 1).unbind(-1)
        return torch.where(inside, self.cells[y, x], -1)

    def heat(self, votes: Tensor) -> Tensor:
        """How many pixels point here: float [B, K, H, W], the part of a vote that a pixel has for each cell -> float [B, H, W].

        For every level of n x n cells of size s this is the paper's transposed convolution, of dilation s and with one 1 in
        each channel's n x n kernel, followed by the mean over s x s positions, so that a vote weighs the same in all its cells.
        What the ones are multiplied with is added straight where it belongs (``fold``): memory for n x n maps, full precision.
        """
        batch, _, height, width = votes.shape
        total = votes.new_zeros(batch, height, width)
        for size, side, first, last in self.levels:
            place = self.center[first:last] // size + side // 2
            columns = votes.new_zeros(batch, side * side, height * width)
            columns[:, place[:, 0] * side + place[:, 1]] = votes[:, first:last].flatten(2)
            cast = F.fold(columns, (height, width), side, dilation=size, padding=side // 2 * size)
            total += F.avg_pool2d(cast, size, 1, size // 2)[:, 0]
        return total


def _walk(ring: int) -> list[tuple[int, int]]:
    """The cells (y, x) of a square ring in their order."""
    along = range(-ring, ring)
    up, left = [(-k, ring) for k in along], [(-ring, -k) for k in along]
    down, right = [(k, -ring) for k in along], [(ring, k) for k in along]
    return up + left + down + right
