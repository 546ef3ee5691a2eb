"""A writer of a tiny COCO in the publisher's layout: drawn images, and everything that makes the real one awkward."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from datamodules.dense.coco import PANOPTIC

PERSON, STOP_SIGN, TOOTHBRUSH, SKY, GRASS = 1, 13, 90, 187, 193  # ids with gaps before them
WORDS = {PERSON: "person", STOP_SIGN: "sign", TOOTHBRUSH: "brush"}
COLOURS = {
    PERSON: (220, 40, 40),
    STOP_SIGN: (40, 60, 220),
    TOOTHBRUSH: (230, 210, 30),
    SKY: (150, 200, 240),
    GRASS: (60, 140, 60),
}
CROWD_IMAGE, GREY_IMAGE, CMYK_IMAGE, EMPTY_TRAIN, EMPTY_VAL = 25, 30, 139, 285, 632
# image id -> height, width; neither in order nor without gaps
TRAIN = {139: (48, 64), 9: (64, 96), 25: (80, 60), 30: (52, 76), 285: (48, 48)}
VAL = {724: (72, 56), 632: (50, 70), 785: (60, 60)}


@dataclass
class Truth:
    """What was drawn: objects as (mask, category id, crowd) in the order of the annotations, and the panoptic map of ids."""

    size: tuple[int, int]
    objects: list[tuple[np.ndarray, int, bool]] = field(default_factory=list)
    ids: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    segments: dict[int, tuple[int, bool]] = field(default_factory=dict)  # id -> category id, crowd
    captions: list[str] = field(default_factory=list)


def inside(polygon: list[float], height: int, width: int) -> np.ndarray:
    """Whether the middle of a pixel lies within a polygon [x0, y0, x1, y1, ...]: bool [H, W] (rays to the left)."""
    y, x = np.mgrid[:height, :width] + 0.5
    points = np.array(polygon).reshape(-1, 2)
    crossings = np.zeros((height, width), np.int64)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, 0)):
        if y0 != y1:
            crossings += ((y0 <= y) != (y1 <= y)) & (x0 + (y - y0) * (x1 - x0) / (y1 - y0) < x)
    return crossings % 2 == 1


def disc(x: float, y: float, radius: float) -> list[float]:
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    return np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], -1).ravel().round(2).tolist()


def square(x: float, y: float, side: float) -> list[float]:
    return [x, y, x + side, y, x + side, y + side, x, y + side]


def lengths(mask: np.ndarray) -> list[int]:
    """Uncompressed run lengths, counted pixel by pixel down the columns."""
    counts, last = [0], False
    for pixel in mask.T.ravel().tolist():
        if pixel != last:
            counts.append(0)
            last = pixel
        counts[-1] += 1
    return counts


def box_of(mask: np.ndarray) -> list[int]:
    y, x = np.nonzero(mask)
    return [int(x.min()), int(y.min()), int(np.ptp(x)) + 1, int(np.ptp(y)) + 1]


def write_coco(folder: Path) -> dict[int, Truth]:
    """Write train2017 and val2017 with all annotations; returns image id -> what was drawn."""
    truths: dict[int, Truth] = {}
    (folder / "annotations").mkdir(parents=True)
    for part, sizes in (("train2017", TRAIN), ("val2017", VAL)):
        (folder / part).mkdir()
        (folder / "annotations" / f"panoptic_{part}").mkdir()
        images, instances, panoptic, captions = [], [], [], []
        for image_id, (height, width) in sizes.items():
            truth, annotations, picture = _draw(image_id, height, width)
            truths[image_id] = truth
            name = f"{image_id:012d}"
            mode = {GREY_IMAGE: "L", CMYK_IMAGE: "CMYK"}.get(image_id, "RGB")
            Image.fromarray(picture).convert(mode).save(folder / part / f"{name}.jpg", quality=95, subsampling=0)
            # red is the lowest byte
            png = np.stack([truth.ids % 256, truth.ids // 256 % 256, truth.ids // 65536], -1).astype(np.uint8)
            Image.fromarray(png).save(folder / "annotations" / f"panoptic_{part}" / f"{name}.png")
            images.append({"id": image_id, "file_name": f"{name}.jpg", "height": height, "width": width, "license": 1})
            infos = []
            for number, (category, crowd) in truth.segments.items():
                mask = truth.ids == number
                infos.append(
                    {"id": number, "category_id": category, "area": int(mask.sum()), "bbox": box_of(mask), "iscrowd": int(crowd)}
                )
            panoptic.append({"segments_info": infos, "file_name": f"{name}.png", "image_id": image_id})
            instances += [{"image_id": image_id, **a} for a in annotations]
            captions += [{"image_id": image_id, "id": 10 * image_id + n, "caption": c} for n, c in enumerate(truth.captions)]
        # the publisher's annotations are in no order of images
        instances = instances[::2] + instances[1::2]
        categories = [
            {"supercategory": "any", "isthing": int(c.thing), "id": c.id, "name": c.name, "color": list(c.color)}
            for c in PANOPTIC
        ]
        things = [{key: c[key] for key in ("supercategory", "id", "name")} for c in categories if c["isthing"]]
        head = {"info": {"year": 2017, "version": "1.0"}, "licenses": [{"id": 1, "name": "any"}], "images": images}
        for name, rows, listed in (
            ("instances", instances, things),
            ("panoptic", panoptic, categories),
            ("captions", captions, None),
        ):
            content = {**head, "annotations": rows, **({"categories": listed} if listed else {})}
            (folder / "annotations" / f"{name}_{part}.json").write_text(json.dumps(content))
    return truths


def _draw(image_id: int, height: int, width: int) -> tuple[Truth, list[dict], np.ndarray]:
    truth = Truth((height, width))
    shift = image_id % 5
    shapes = [
        (PERSON, [disc(width * 0.3, height * 0.4, 9 + shift)]),
        (STOP_SIGN, [square(width // 3, height // 2, 14), square(width - 12, 2, 8)]),  # one object in two pieces
        (TOOTHBRUSH, [[width - 20.0, height - 4.0, width - 4.0, height - 4.0, width - 4.0, height - 22.0]]),
        (PERSON, [square(-4, height - 10, 12)]),  # leaves the image on the left
    ]
    if image_id in (EMPTY_TRAIN, EMPTY_VAL):
        shapes = []
    annotations = []
    for place, (category, polygons) in enumerate(shapes):
        mask = np.any([inside(polygon, height, width) for polygon in polygons], axis=0)
        truth.objects.append((mask, category, False))
        annotations.append({"segmentation": polygons, "iscrowd": 0, "id": 1000 * image_id + place, "category_id": category})
    if image_id == CROWD_IMAGE:
        mask = np.zeros((height, width), bool)
        mask[:6, 4:16] = mask[3:9, 12:24] = True
        truth.objects.append((mask, PERSON, True))
        rle = {"size": [height, width], "counts": lengths(mask)}
        annotations.append({"segmentation": rle, "iscrowd": 1, "id": 1000 * image_id + 9, "category_id": PERSON})
    for annotation, (mask, _, _) in zip(annotations, truth.objects):
        annotation |= {"bbox": box_of(mask), "area": int(mask.sum())}
    # sky above, grass below, a strip between them that belongs to nothing
    middle = height // 2
    layers = [(np.arange(height)[:, None] < middle - 2, SKY, False), (np.arange(height)[:, None] > middle, GRASS, False)]
    layers += sorted(truth.objects, key=lambda o: (not o[2], -o[0].sum()))
    truth.ids = np.zeros((height, width), np.int64)
    picture = np.full((height, width, 3), 90, np.uint8)
    for place, (mask, category, crowd) in enumerate(layers):
        number = 70_000 * place + 300 + image_id
        truth.segments[number] = (category, crowd)
        truth.ids = np.where(mask, number, truth.ids)
        picture[np.broadcast_to(mask, (height, width))] = COLOURS[category]
    names = " and ".join(f"a {WORDS[category]}" for _, category, _ in truth.objects) or "nothing at all"
    truth.captions = [
        f"There is {names}.",
        f"A photo of {names}!",
        "A caf\u00e9's lawn,  under the sky",
        "Grass",
        f"Image {image_id}",
    ]
    return truth, annotations, picture
