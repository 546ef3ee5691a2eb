"""Panoptic quality of images at COCO size beside the plain Python algorithm, segment pair by segment pair."""

from collections import defaultdict
from typing import Any

import numpy as np
import torch

from papermix.metrics.panoptic_quality import PanopticQuality
from papermix.segmentation.segments import Segments
from scripts.benchmarks.harness import Check, Options, Report, each_round, interleave, timed

THINGS, STUFF = 80, 53
SIZE = 480, 640
Example = tuple[Segments, Segments]
Info = dict[int, dict[str, Any]]


def scene(seed: int, size: tuple[int, int] = SIZE) -> Example:
    """A made-up image's (prediction, truth): stuff bands, ellipses as things, one crowd, void; the prediction is a shaky copy."""
    random = np.random.default_rng(seed)
    height, width = size
    y, x = np.mgrid[:height, :width]
    stuff = THINGS + random.permutation(STUFF)[: random.integers(3, 6)]
    things = random.choice(random.permutation(THINGS)[:4], random.integers(7, 15))
    truth, prediction = np.zeros((2, height, width), np.int64)
    borders = np.sort(random.uniform(0, height, len(stuff) - 1))
    wave = 0.05 * height * np.sin(x / width * random.uniform(3, 9))
    truth[:] = 1 + np.searchsorted(borders, y + wave)
    prediction[:] = 1 + np.searchsorted(borders, y + wave + random.normal(0, 0.02 * height))
    said = np.concatenate([stuff, np.where(random.random(len(things)) < 0.1, random.integers(0, THINGS, len(things)), things)])
    for number in range(len(stuff) + 1, len(stuff) + len(things) + 1):
        center, radii = random.uniform(0, size, 2), random.uniform(0.04, 0.2, 2) * height
        for image, off in ((truth, 0.0), (prediction, random.normal(0, 0.15 * radii))):
            v, u = ((grid - c) / r for grid, c, r in zip((y, x), center + off, radii))
            image[v * v + u * u < 1] = number
    void = random.integers(0, height // 2), random.integers(0, width // 2)
    truth[void[0] : void[0] + height // 8, void[1] : void[1] + width // 3] = 0
    category = np.concatenate([stuff, things])
    crowd = np.arange(len(category)) == len(category) - 1
    real, guess = (torch.tensor(image) for image in (truth, prediction))  # in memory that torch aligned, as maps ever are
    return (
        Segments.of(guess, torch.from_numpy(said)).compact(),
        Segments.of(real, torch.from_numpy(category), torch.from_numpy(crowd)).compact(),
    )


def info(segments: Segments) -> Info:
    """What the JSON beside a panoptic PNG tells of an image's segments, by their numbers."""
    rows = zip(segments.category.tolist(), segments.crowd.tolist(), segments.areas().tolist())
    return {s: {"category_id": c, "iscrowd": int(crowd), "area": area} for s, (c, crowd, area) in enumerate(rows, 1)}


def by_hand(images: list[tuple[np.ndarray, Info, np.ndarray, Info]]) -> dict[str, float]:
    """PQ, SQ and RQ over all classes of (true map, its segments, predicted map, its segments), with loops and dictionaries."""
    offset = 256**3
    sums: list[dict[int, float]] = [defaultdict(float) for _ in range(4)]
    iou, tp, fp, fn = sums
    for truth, true_segments, prediction, segments in images:
        numbers, counts = np.unique(prediction, return_counts=True)
        areas = dict(zip(numbers.tolist(), counts.tolist()))
        pairs, counts = np.unique(truth.astype(np.uint64) * offset + prediction.astype(np.uint64), return_counts=True)
        overlaps = {divmod(pair, offset): count for pair, count in zip(pairs.tolist(), counts.tolist())}
        matched_truth, matched = set(), set()
        for (t, p), overlap in overlaps.items():
            if t not in true_segments or p not in segments or true_segments[t]["iscrowd"]:
                continue
            category = segments[p]["category_id"]
            if true_segments[t]["category_id"] != category:
                continue
            value = overlap / (areas[p] + true_segments[t]["area"] - overlap - overlaps.get((0, p), 0))
            if value > 0.5:
                iou[category] += value
                tp[category] += 1
                matched_truth.add(t)
                matched.add(p)
        crowds: dict[int, list[int]] = defaultdict(list)
        for t, about in true_segments.items():
            if about["iscrowd"]:
                crowds[about["category_id"]].append(t)
            elif t not in matched_truth:
                fn[about["category_id"]] += 1
        for p, about in segments.items():
            category = about["category_id"]
            forgiven = overlaps.get((0, p), 0) + sum(overlaps.get((t, p), 0) for t in crowds[category])
            if p not in matched and forgiven / areas[p] <= 0.5:
                fp[category] += 1
    seen = [c for c in range(THINGS + STUFF) if tp[c] + fp[c] + fn[c] > 0]
    weight = {c: tp[c] + fp[c] / 2 + fn[c] / 2 for c in seen}
    return {
        "pq": sum(iou[c] / weight[c] for c in seen) / len(seen),
        "sq": sum(iou[c] / tp[c] if tp[c] else 0.0 for c in seen) / len(seen),
        "rq": sum(tp[c] / weight[c] for c in seen) / len(seen),
    }


def vectorised(examples: list[Example]) -> dict[str, float]:
    """All of the metric's numbers."""
    metric = PanopticQuality(THINGS + STUFF, range(THINGS))
    for prediction, truth in examples:
        metric.update(prediction, truth)
    return {name: float(value) for name, value in metric.compute().items()}


def run(options: Options) -> Report:
    """Both over the same images, which are made before the clock starts."""
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads or before)
    examples = [scene(seed, (48, 64) if options.smoke else SIZE) for seed in range(2 if options.smoke else 100)]
    plain = [(truth.map.numpy(), info(truth), guess.map.numpy(), info(guess)) for guess, truth in examples]
    found: dict[str, dict[str, float]] = {}

    def arm(name: str, work: Any, images: list[Any]) -> Any:
        def score() -> int:
            found[name] = work(images)
            return len(images)

        return lambda: timed(score)

    arms = {"plain Python": arm("plain", by_hand, plain), "papermix": arm("ours", vectorised, examples)}
    timings = interleave(arms, options.repetitions, warmup=0 if options.smoke else 1)
    torch.set_num_threads(before)
    report = Report("metrics", "image", {f"panoptic quality, {SIZE[1]}x{SIZE[0]}": timings})
    what = "images per second, papermix over plain Python"
    report.checks.append(each_round(timings, lambda s: s["plain Python"] / s["papermix"], what, 3))
    difference = max(abs(value - found["ours"][name]) for name, value in found["plain"].items())
    report.checks.append(Check("largest difference of PQ, SQ and RQ", [difference], 1e-9, "<="))
    segments = sum(len(truth) for _, truth in examples) / len(examples)
    report.notes.append(
        f"{len(examples)} made-up images, {segments:.1f} true segments each, void and crowds; PQ {found['ours']['pq']:.3f}"
    )
    return report
