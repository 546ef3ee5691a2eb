"""Pixel consensus voting: every pixel votes for the place of its object's centre (Wang et al., CVPR 2020, arXiv 2004.01849)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.method import Method
from papermix.errors import UserError, nearest
from papermix.segmentation.draw import View
from papermix.segmentation.segments import Segments
from papermix.segmentation.vote_grid import PAPER, VoteGrid
from papermix.segmentation.voting import CENTERS, ballots, components, fuse, group, peaks, targets, weights

GROUPINGS = ("votes", "components")


class PixelConsensus(Method):
    """The task's loss on the semantic head, cross-entropy of the votes, both weighted by segments; evaluation counts the votes.

    Loss, with w = 1 / (area of the pixel's segment) ** area_power, the sums over all pixels of all processes (section 3.4):
    semantic_weight * sum(w * semantic) / sum(w) + vote_weight * sum(w * vote) / sum(w). Votes are learnt and counted on the map
    that the network gives, at its own stride; the semantic loss is the task's, at the truth's size.

    Args:
        grid: [size, rings] of the cells, see :class:`papermix.segmentation.vote_grid.VoteGrid`.
        center: what is voted for: the centre of ``mass`` or the middle of the bounding ``box``.
        semantic_weight: weight of the semantic loss.
        vote_weight: weight of the votes' loss.
        area_power: power of a segment's area by which its pixels' weight falls; 0: all pixels count the same.
        threshold: votes that make a peak, each of one position of the network's map.
        top_k: choices of a pixel that are compared with the peaks.
        silent: pixels that most probably have no vote take no part in it at all.
        flip: in evaluation, the mean of the log-probabilities of the image and of its mirror image.
        stuff_area: pixels, at the truth's size, below which a segment of stuff becomes void.
        grouping: ``votes``, or ``components``, the baseline without them: the connected parts of each class, of ``threshold``
            positions or more, are its instances.

    Raises:
        UserError: values out of range.
    """

    # one that has ``things``: panoptic or instance segmentation
    task: Any

    def __init__(
        self,
        *args: Any,
        grid: Sequence[Sequence[int]] = PAPER,
        center: str = "mass",
        semantic_weight: float = 1.0,
        vote_weight: float = 1.0,
        area_power: float = 0.5,
        threshold: float = 4.0,
        top_k: int = 1,
        silent: bool = True,
        flip: bool = False,
        stuff_area: int = 4096,
        grouping: str = "votes",
        **kwargs: Any,
    ) -> None:
        voting_grid = VoteGrid(grid)
        self.bins = voting_grid.bins  # heads() is asked before modules can be set
        super().__init__(*args, **kwargs)
        self.grid = voting_grid
        for name, word, known in (("center", center, CENTERS), ("grouping", grouping, GROUPINGS)):
            if word not in known:
                raise UserError(f"method.{name}={word} is not known{nearest(str(word), known)}: use {' or '.join(known)}.")
        if not threshold > 0:
            raise UserError(f"method.threshold={threshold} must be above 0.")
        if not 1 <= top_k <= self.bins:
            raise UserError(f"method.top_k={top_k} must be from 1 to the grid's {self.bins} cells.")
        least = {"semantic_weight": semantic_weight, "vote_weight": vote_weight, "area_power": area_power, "stuff_area": stuff_area}
        for name, value in least.items():
            if not value >= 0:
                raise UserError(f"method.{name}={value} must be at least 0.")
        self.center, self.grouping, self.silent, self.flip = center, grouping, silent, flip
        self.semantic_weight, self.vote_weight, self.area_power = semantic_weight, vote_weight, area_power
        self.threshold, self.top_k, self.stuff_area = threshold, top_k, stuff_area

    def heads(self) -> dict[str, int]:
        """The task's heads, and the votes: a class for each cell and, last, one for no vote."""
        return {**super().heads(), "vote": self.bins + 1}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Weighted sum of the two losses."""
        output = self.predict(batch, "train")
        panoptic, category, crowd = batch["panoptic"], batch["category"], batch["crowd"]
        # on the votes' own map: a vote map that is resized after it was made says wrong distances
        small = _nearest(panoptic, output["vote"].shape[-2:])
        truth = targets(small, category, crowd, self.task.things, self.grid, self.area_power, self.center)
        votes = F.cross_entropy(output["vote"], truth.vote, ignore_index=-1, reduction="none") * truth.weight
        vote = self.task.mean(votes, truth.weight.sum())
        weight = truth.weight if small is panoptic else weights(panoptic, crowd, self.area_power)
        semantic = self.task.loss(output, {**batch, "weight": weight})
        loss = self.semantic_weight * semantic + self.vote_weight * vote
        self.record(loss=loss, semantic_loss=semantic, vote_loss=vote)
        return loss

    def predict(self, batch: dict[str, Tensor], split: str) -> dict[str, Any]:
        """The heads' maps; for ``val`` and ``test`` also ``segments``, a list of :class:`Segments`, each at its truth's size."""
        output = self.model(batch[self.task.input])
        if split == "train":
            return output
        if self.flip:
            output = self._both(output, self.model(batch[self.task.input].flip(-1)))
        return {**output, "segments": [self._segments(output, batch, place) for place in range(len(output["vote"]))]}

    def views(self, output: dict[str, Any], batch: dict[str, Tensor], place: int) -> list[View]:
        """What led to the segments of an image: votes counted, peaks (framed), and the pixels that are given back to them."""
        instance, _, _, heat, regions = self._instances(output, batch, place)
        if heat is None:
            return [View(f"connected parts: {int(instance.max())}", instance, regions)]
        return [View(f"votes; peaks framed: {len(regions)}", heat, regions), View("masks of the peaks", instance, regions)]

    def _both(self, output: dict[str, Tensor], mirrored: dict[str, Tensor]) -> dict[str, Tensor]:
        """The maps of an image, and those of its mirror image turned back."""
        there = {name: F.log_softmax(mirrored[name].float().flip(-1), 1) for name in ("semantic", "vote")}
        there["vote"] = there["vote"][:, self.grid.mirror]
        return {**output, **{name: (F.log_softmax(output[name].float(), 1) + said) / 2 for name, said in there.items()}}

    def _real(self, maps: Tensor, batch: dict[str, Tensor], place: int) -> Tensor:
        """Maps [1, C, h, w] of one image without its padding."""
        height, width = (
            -(-side * own // whole) for side, own, whole in zip(batch["size"][place].tolist(), maps.shape[-2:], batch["image"].shape[-2:])
        )
        return maps[place : place + 1, :, :height, :width]

    def _instances(
        self, output: dict[str, Any], batch: dict[str, Tensor], place: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
        """Instance of every position and their classes; probabilities of the classes; heat map and peaks."""
        probability = self._real(output["semantic"], batch, place).float().softmax(1)[0]
        things = self.task.things
        if self.grouping == "components":
            instance, category = components(probability.argmax(0), things, self.threshold)
            return instance, category, probability, None, category.new_zeros(0, 4)
        votes, choices = ballots(self._real(output["vote"], batch, place), self.top_k, self.silent)
        heat = self.grid.heat(votes)[0]
        regions = peaks(heat, self.threshold)
        instance, category = group(choices[0], regions, probability, things, self.grid)
        return instance, category, probability, heat, regions

    def _segments(self, output: dict[str, Any], batch: dict[str, Tensor], place: int) -> Segments:
        """Segments of an image: grouped on the network's map, then brought to the truth's size by the nearest position."""
        instance, category, probability, heat, _ = self._instances(output, batch, place)
        vote = self._real(output["vote"], batch, place).float().softmax(1)[0, : self.bins].amax(0)
        sure = torch.ones_like(vote) if heat is None else vote
        shown = [
            (2 * torch.arange(true, device=vote.device) + 1) * side * own // (2 * true * whole)
            for true, side, own, whole in zip(
                batch["truth_size"][place].tolist(), batch["size"][place].tolist(), output["vote"].shape[-2:], batch["image"].shape[-2:]
            )
        ]
        return fuse(instance, category, probability, sure, self.task.things, shown[0], shown[1], self.stuff_area)


def _nearest(panoptic: Tensor, size: Sequence[int]) -> Tensor:
    """Segment numbers [B, H, W] at another size, each that of the pixel in its middle; themselves where they have it."""
    if panoptic.shape[-2:] == tuple(size):
        return panoptic
    # numbers of segments are exact in double precision
    return F.interpolate(panoptic[:, None].double(), tuple(size), mode="nearest-exact")[:, 0].long()
