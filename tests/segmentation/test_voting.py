"""Votes: true ones by definition, a slow twin of the equality convolution, and perfect votes that give the truth back."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from papermix.metrics.panoptic_quality import PanopticQuality
from papermix.segmentation.segments import VOID, Segments
from papermix.segmentation.vote_grid import VoteGrid
from papermix.segmentation.voting import Targets, ballots, claims, components, fuse, group, peaks, targets, weights
from tests.segmentation.scenes import CLASSES, THINGS, batch_of, classes_of, one_hot, scene

GRID = VoteGrid([[1, 1], [3, 2], [5, 2]])


def targets_of(scenes: list[Segments], grid: VoteGrid = GRID, **options) -> Targets:
    batch = batch_of(scenes)
    return targets(batch["panoptic"], batch["category"], batch["crowd"], THINGS, grid, **options)


def perfect(vote: Tensor, grid: VoteGrid = GRID, sure: float = 30.0) -> Tensor:
    """Logits [1, K + 1, H, W] of these votes; where there is nothing to learn, no vote."""
    return F.one_hot(torch.where(vote < 0, grid.bins, vote), grid.bins + 1).movedim(-1, -3).float() * sure


def found_in(semantic: Tensor, votes: Tensor, grid: VoteGrid = GRID, threshold: float = 4.0, top: int = 1, stuff_area: int = 0) -> Segments:
    """Segments of an image from logits [C, H, W] and [K + 1, H, W]."""
    probability = semantic.softmax(0)
    parts, choices = ballots(votes[None], top)
    regions = peaks(grid.heat(parts)[0], threshold)
    owner, category = group(choices[0], regions, probability, THINGS, grid)
    rows, columns = (torch.arange(n) for n in owner.shape)
    return fuse(owner, category, probability, parts[0].amax(0), THINGS, rows, columns, stuff_area)


def disc(y: int, x: int, radius: float, size: tuple[int, int] = (60, 84)) -> Tensor:
    rows, columns = torch.meshgrid(*(torch.arange(n) for n in size), indexing="ij")
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


# ---- truth -------------------------------------------------------------------------------------------------------------------


def test_rectangle_by_hand() -> None:
    """Rows 1 to 3 and columns 2 to 5: its centre of mass (2, 3.5) is rounded down, its box's middle is (1 + 3 // 2, 2 + 4 // 2)."""
    map = torch.ones(6, 9, dtype=torch.int64)
    map[1:4, 2:6] = 2
    map[5] = 0
    one = Segments.of(map, torch.tensor([2, 0]))
    truth = targets_of([one])
    # rows -1..1 x columns -1..1 of the cells are [[5, 4, 3], [6, 0, 2], [7, 8, 1]], read with centre minus pixel
    right = [GRID.cells[17 + dy, 17 - 2].item() for dy in (1, 0, -1)]
    assert truth.vote[0, 1:4, 2:6].tolist() == [[1, 8, 7, right[0]], [2, 0, 6, right[1]], [3, 4, 5, right[2]]]
    assert bool((truth.vote[0, 0] == GRID.bins).all()) and bool((truth.vote[0, 5] == -1).all())
    box = targets_of([one], center="box").vote[0]
    assert box[2, 4] == 0 and box[1, 4] == 8 and box[2, 3] == 2
    assert truth.weight[0, 2, 3] == pytest.approx(12**-0.5) and truth.weight[0, 0, 0] == pytest.approx((45 - 12) ** -0.5)
    assert not truth.weight[0, 5].any()


@pytest.mark.parametrize("center", ["mass", "box"])
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_targets_equal_their_definition(power: float, center: str) -> None:
    scenes = [scene(0), scene(1)]
    truth = targets_of(scenes, power=power, center=center)
    far = 0
    for i, one in enumerate(scenes):
        vote, weight = torch.full_like(one.map, -1), torch.zeros(one.map.shape)
        for number in range(1, len(one) + 1):
            mask = one.map == number
            place = mask.nonzero()
            if not len(place) or one.crowd[number - 1]:
                continue
            weight[mask] = len(place) ** -power
            vote[mask] = GRID.bins
            if one.category[number - 1] in THINGS:
                low, high = place.amin(0), place.amax(0)
                middle = place.sum(0) // len(place) if center == "mass" else low + (high - low + 1) // 2
                for y, x in place.tolist():
                    dy, dx = middle[0] - y, middle[1] - x
                    inside = max(abs(dy), abs(dx)) <= 17
                    vote[y, x] = GRID.cells[17 + dy, 17 + dx] if inside else -1
                    far += not inside
        assert torch.equal(truth.vote[i], vote)
        assert torch.allclose(truth.weight[i], weight)
    if power == 1:  # all segments count the same
        segments = sum(int(((s.areas() > 0) & ~s.crowd).sum()) for s in scenes)
        assert truth.weight.sum().item() == pytest.approx(segments, rel=1e-5)


def test_objects_wider_than_the_field() -> None:
    map = torch.ones(60, 60, dtype=torch.int64)
    vote = targets_of([Segments.of(map, torch.tensor([0]))]).vote[0]
    y, x = (vote >= 0).nonzero().T
    assert (y.min(), y.max(), x.min(), x.max()) == (12, 46, 12, 46), "29 - 17 to 29 + 17; what is farther learns nothing"


def test_what_is_no_object() -> None:
    """Crowds, stuff, void, padding of the list of segments, segments that have no pixel."""
    map = torch.tensor([[[1, 1, 2, 2, 0, 0]], [[0, 0, 0, 0, 0, 0]]])
    category, crowd = torch.tensor([[0, 2, 1], [-1, -1, -1]]), torch.tensor([[True, False, False], [False, False, False]])
    truth = targets(map, category, crowd, THINGS, GRID)
    no = GRID.bins
    assert truth.vote[:, 0].tolist() == [[-1, -1, no, no, -1, -1], [-1] * 6]
    assert torch.allclose(truth.weight[:, 0], torch.tensor([[0, 0, 2**-0.5, 2**-0.5, 0, 0], [0.0] * 6]))
    none = targets(torch.zeros(2, 4, 5, dtype=torch.int64), category[:, :0], crowd[:, :0], THINGS, GRID)
    assert bool((none.vote == -1).all()) and not none.weight.any()


def test_votes_of_a_mirror_image() -> None:
    """Where the rounding of the centre is not seen: objects of odd width."""
    map = torch.ones(20, 31, dtype=torch.int64)
    map[3:12, 4:15], map[10:17, 18:25] = 2, 3
    there = targets_of([Segments.of(map, torch.tensor([2, 0, 1]))]).vote
    back = targets_of([Segments.of(map.flip(1), torch.tensor([2, 0, 1]))]).vote
    assert torch.equal(GRID.mirror[there.flip(2)], back)


def test_weighted_mean() -> None:
    """A factor on all weights changes nothing; segments of one area make it the plain mean."""
    g = torch.Generator().manual_seed(0)
    loss = torch.rand(1, 8, 9, generator=g)
    same = torch.arange(72).view(1, 8, 9) // 12 + 1
    crowd = torch.zeros(1, 6, dtype=torch.bool)
    weight = weights(same, crowd, 0.5)
    assert ((weight * loss).sum() / weight.sum()).item() == pytest.approx(loss.mean().item())
    uneven = weights(torch.where(same > 4, 4, same), crowd, 0.5)
    mean = (uneven * loss).sum() / uneven.sum()
    assert mean.item() != pytest.approx(loss.mean().item(), abs=1e-6)
    assert ((7 * uneven * loss).sum() / (7 * uneven).sum()).item() == pytest.approx(mean.item())


# ---- from votes to instances -------------------------------------------------------------------------------------------------


def test_one_disc() -> None:
    """Perfect votes add up to its area, and the one pixel at its centre has them all back."""
    inside = disc(28, 40, 11.0)
    one = Segments.of(inside.long() + 1, torch.tensor([2, 1]))
    truth = targets_of([one])
    assert truth.vote[0, 28, 40] == 0
    parts, choices = ballots(perfect(truth.vote))
    heat = GRID.heat(parts)[0]
    assert heat.sum().item() == pytest.approx(int(inside.sum()), rel=1e-5)
    assert heat.argmax() == 28 * 84 + 40
    owner, category = group(choices[0], torch.tensor([[28, 40, 28, 40]]), one_hot(one.semantic()).float().softmax(0), THINGS, GRID)
    assert torch.equal(owner == 1, inside) and category.tolist() == [1]


def test_silence() -> None:
    """Pixels that most probably have no vote have no choice, and only where it is asked for still a part in the count."""
    logits = torch.full((1, GRID.bins + 1, 1, 2), -30.0)
    logits[0, 3, 0], logits[0, GRID.bins, 0] = torch.tensor([math.log(0.6), math.log(0.4)]), torch.tensor([math.log(0.4), math.log(0.6)])
    parts, choices = ballots(logits)
    assert choices[0, 0, 0].tolist() == [3, -1]
    assert parts[0, 3, 0].tolist() == pytest.approx([0.6, 0.0])
    heard, same = ballots(logits, silent=False)
    assert heard[0, 3, 0].tolist() == pytest.approx([0.6, 0.4]) and torch.equal(same, choices)
    logits[0, 5, 0] = math.log(0.1)
    assert ballots(logits, 2)[1][0, :, 0].tolist() == [[3, -1], [5, -1]]


def test_peaks() -> None:
    heat = torch.zeros(12, 20)
    heat[2, 3], heat[3, 4], heat[4, 3] = 4.0, 5.0, 6.0  # touch at corners
    heat[8, 10:15], heat[0, 19], heat[11, 0] = 9.0, 3.99, 4.0
    assert peaks(heat, 4.0).tolist() == [[2, 3, 4, 4], [8, 10, 8, 14], [11, 0, 11, 0]]
    assert peaks(heat, 5.0).tolist() == [[3, 3, 4, 4], [8, 10, 8, 14]]
    assert peaks(heat, 9.5).shape == (0, 4)


@pytest.mark.parametrize("rings", [[[1, 1], [3, 2], [5, 2]], [[3, 2], [15, 1]], [[1, 1], [3, 1], [9, 1]]])
def test_claims_are_the_equality_convolution(rings: list) -> None:
    """The grid, turned by half a circle, is slid over a map of random choices and compared at every position of a region."""
    grid = VoteGrid(rings)
    radius = grid.field // 2
    g = torch.Generator().manual_seed(0)
    choice = torch.randint(-1, grid.bins, (50, 64), generator=g)
    regions = torch.tensor([[20, 30, 20, 30], [0, 0, 2, 5], [40, 60, 49, 63], [10, 10, 30, 11]])
    pixel = torch.ones_like(choice).nonzero()
    found = claims(choice.flatten(), pixel, regions, grid).view(len(regions), 50, 64)
    # -1 beyond the image, which is no cell
    padded = F.pad(choice, (radius,) * 4, value=-1)
    for region, mask in zip(regions.tolist(), found):
        wanted = torch.zeros_like(padded, dtype=torch.bool)
        for y in range(region[0], region[2] + 1):
            for x in range(region[1], region[3] + 1):
                window = (slice(y, y + grid.field), slice(x, x + grid.field))
                wanted[window] |= padded[window] == grid.query
        assert torch.equal(mask, wanted[radius:-radius, radius:-radius])
        assert 0 < mask.sum() < mask.numel()


def test_group_by_hand() -> None:
    """Who gets a pixel that voted for several: the best choice, then its own class, then the nearest middle, then the first."""
    grid = VoteGrid([[1, 1], [3, 1]])  # 3x3 cells of 1, then 8 of 3
    # cell 10 is 3 wide, around (0, 3): it lies over both regions at (2, 4) and (2, 6)
    cell = int(grid.of(torch.tensor([0, 3])))
    choices = torch.full((1, 5, 9), -1)
    choices[0, 2, 2] = cell
    regions = torch.tensor([[2, 4, 2, 4], [2, 6, 2, 6]])
    probability = torch.full((CLASSES, 5, 9), 0.1)
    probability[0] = 0.4
    owner, category = group(choices, regions, probability, THINGS, grid)
    assert owner[2, 2] == 1 and category.tolist() == [0, 0], "the nearer"
    assert group(choices, regions.flip(0), probability, THINGS, grid)[0][2, 2] == 2
    # a pixel of class 1 right at the farther one makes that one class 1, which is the first pixel's class as well
    choices[0, 2, 5] = int(grid.of(torch.tensor([0, 1])))
    probability[:, 2, 5] = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0])
    probability[1, 2, 2] = 0.5
    owner, category = group(choices, regions, probability, THINGS, grid)
    assert category.tolist() == [1, 1] and owner[2, 2] == 1
    choices[0, 2, 3] = int(grid.of(torch.tensor([0, 1])))
    probability[:, 2, 3] = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0])
    owner, category = group(choices, regions, probability, THINGS, grid)
    assert category.tolist() == [0, 1]
    assert owner[2].tolist() == [0, 0, 2, 1, 0, 2, 0, 0, 0], "its own class goes before the distance"
    # a second choice counts where no first one fits, or behind it
    more = torch.full((2, 5, 9), -1)
    more[:, 2, 5] = torch.tensor([int(grid.of(torch.tensor([0, 1]))), int(grid.of(torch.tensor([0, -1])))])
    more[:, 2, 3] = torch.tensor([int(grid.of(torch.tensor([-1, 0]))), int(grid.of(torch.tensor([0, 1])))])
    owner, _ = group(more, regions, probability, THINGS, grid)
    assert owner[2, 5] == 2 and owner[2, 3] == 1
    assert group(more[:1], regions, probability, THINGS, grid)[0][2, 3] == 0


def test_regions_that_meet_at_equal_distance_go_to_the_first() -> None:
    grid = VoteGrid([[3, 1]])
    choices = torch.full((1, 3, 9), -1)
    choices[0, 1, 4] = 0
    regions = torch.tensor([[1, 3, 1, 3], [1, 5, 1, 5]])
    assert group(choices, regions, torch.rand(CLASSES, 3, 9), THINGS, grid)[0][1, 4] == 1


def test_chunks_change_nothing() -> None:
    g = torch.Generator().manual_seed(0)
    choices = torch.randint(-1, GRID.bins, (2, 40, 50), generator=g)
    corner = torch.randint(0, 38, (23, 2), generator=g)
    regions = torch.cat([corner, corner + torch.randint(0, 3, (23, 2), generator=g)], 1)
    probability = torch.rand(CLASSES, 40, 50, generator=g).softmax(0)
    whole = group(choices, regions, probability, THINGS, GRID, chunk=10**9)
    assert len(whole[0].unique()) > 15 and len(whole[1].unique()) == 2
    for chunk in (1, 5000, 20000):
        for a, b in zip(whole, group(choices, regions, probability, THINGS, GRID, chunk)):
            assert torch.equal(a, b)


def quality(pairs: list[tuple[Segments, Segments]]) -> dict[str, float]:
    metric = PanopticQuality(CLASSES, THINGS)
    for found, truth in pairs:
        metric.update(found, truth)
    return {k: float(v) for k, v in metric.compute().items()}


def test_perfect_votes_are_near_the_truth() -> None:
    """Ground-truth votes and classes: what the cells lose is little, and connected components lose what touches."""
    scenes = [scene(seed) for seed in range(8)]
    truth = targets_of(scenes)
    # the class that stands for void and crowds covers less than 250 pixels, the bands of stuff more
    classes = [one_hot(classes_of(one)).float() for one in scenes]
    by_votes = quality([(found_in(c, perfect(v[None])[0], stuff_area=250), one) for c, v, one in zip(classes, truth.vote, scenes)])
    assert by_votes["pq"] > 0.97 and by_votes["pq_things"] > 0.97
    pairs = []
    for c, one in zip(classes, scenes):
        owner, category = components(c.argmax(0), THINGS)
        rows, columns = (torch.arange(n) for n in owner.shape)
        pairs.append((fuse(owner, category, c.softmax(0), torch.ones(owner.shape), THINGS, rows, columns, 250), one))
    by_parts = quality(pairs)
    assert by_parts["pq_things"] < by_votes["pq_things"] - 0.1
    assert by_parts["pq_stuff"] > 0.9


def test_touching_objects_of_a_class() -> None:
    """Three discs of one class that touch: components see one, votes see three; a fourth with the first one's centre is lost."""
    map = torch.ones(60, 84, dtype=torch.int64)
    for number, x in ((2, 16), (3, 38), (4, 60)):
        map[disc(30, x, 11.4)] = number
    one = Segments.of(map, torch.tensor([2, 0, 0, 0]))
    vote = targets_of([one]).vote
    found = found_in(one_hot(one.semantic()).float(), perfect(vote)[0])
    assert sorted(found.category.tolist()) == [0, 0, 0, 2] and quality([(found, one)])["pq"] > 0.99
    owner, category = components(one.semantic(), THINGS)
    assert category.tolist() == [0] and torch.equal(owner > 0, map > 1)


def test_components_by_hand() -> None:
    semantic = torch.tensor([[0, 2, 1, 1], [2, 0, 2, 2], [1, 2, 2, 0]])
    owner, category = components(semantic, THINGS)
    assert owner.tolist() == [[1, 0, 3, 3], [0, 1, 0, 0], [4, 0, 0, 2]]
    assert category.tolist() == [0, 0, 1, 1]
    assert components(semantic, [])[1].shape == (0,)
    large, kinds = components(semantic, THINGS, 2)
    assert large.tolist() == [[1, 0, 2, 2], [0, 1, 0, 0], [0, 0, 0, 0]] and kinds.tolist() == [0, 1]


def test_fuse_by_hand() -> None:
    """Instances go before classes; stuff around them; small stuff, and things without an instance, are void."""
    semantic = torch.tensor([[0, 0, 1, 2, 2, 2], [1, 1, 2, 3, 2, 2]])
    instance = torch.tensor([[1, 1, 1, 3, 0, 0], [0, 0, 0, 0, 0, 0]])
    # probabilities 1/2 and 1/8, so that means are exact
    probability = one_hot(semantic, sure=math.log(4)).softmax(0)
    sure = torch.full((2, 6), 0.5)
    rows, columns = torch.arange(2), torch.arange(6)
    kinds = torch.tensor([0, 1, 1])
    found = fuse(instance, kinds, probability, sure, THINGS, rows, columns, 2)
    assert found.map.tolist() == [[1, 1, 1, 2, 3, 3], [0, 0, 3, 0, 3, 3]]
    assert found.category.tolist() == [0, 1, 2]
    assert found.score.tolist() == pytest.approx([0.5 * 0.375, 0.5 * 0.125, 0.5])
    assert fuse(instance, kinds, probability, sure, THINGS, rows, columns, 1).category.tolist() == [0, 1, 2, 3]
    assert fuse(instance, kinds, probability, sure, THINGS, rows, columns, 6).category.tolist() == [0, 1]
    # twice the size: the areas are those of the result
    large = fuse(instance, kinds, probability, sure, THINGS, rows.repeat_interleave(2), columns.repeat_interleave(2), 4)
    assert large.map.shape == (4, 12) and large.category.tolist() == [0, 1, 2, 3]
    assert torch.equal(large.map[1::2, 1::2] == 1, found.map == 1)


def test_no_things_no_votes_no_peaks() -> None:
    one = scene(2)
    logits, vote = one_hot(one.semantic()).float(), targets_of([one]).vote
    nobody = perfect(torch.full_like(vote, GRID.bins))[0]
    stuff = found_in(logits, nobody)
    assert bool((stuff.category >= 2).all()) and torch.equal(stuff.map == 0, one.semantic() < 2)
    assert torch.equal(found_in(logits, perfect(vote)[0], threshold=1e6).map, stuff.map)
    parts, choices = ballots(perfect(vote))
    regions = peaks(GRID.heat(parts)[0], 4.0)
    owner, category = group(choices[0], regions, logits.softmax(0), [], GRID)
    assert not owner.any() and len(category) == len(regions) > 0
    every = fuse(owner, category, logits.softmax(0), torch.ones(owner.shape), [], *(torch.arange(n) for n in owner.shape), 0)
    assert torch.equal(every.semantic(), logits.argmax(0)) and VOID not in every.semantic()
