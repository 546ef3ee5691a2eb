"""The publishers' formats of segmentations, written and read back equal: COCO's run lengths, results and panoptic PNGs, VOC's
and Cityscapes' PNGs of classes.

What is written grows one image at a time and takes its name when it is whole, so that a stopped run leaves no half file there.
Formats: https://cocodataset.org/#format-data and #format-results; Everingham et al., "The PASCAL VOC Challenge", 2010; Cordts et
al., "Cityscapes", 2016.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from papermix.errors import UserError
from papermix.segmentation.segments import VOID, Category, Segments, boxes_of

Rle = dict[str, Any]  # {"size": [H, W], "counts": compressed run lengths as a string}
# coordinates farther out than so many times the longer side are a fault; the outline they draw would take for ever
_FAR = 10


class Instances(NamedTuple):
    """Objects of one image that may overlap.

    Attributes:
        masks: bool [S, H, W].
        category: int64 [S], classes as the network counts.
        score: float32 [S].
    """

    masks: Tensor
    category: Tensor
    score: Tensor


def numbers_of(categories: Sequence[Category]) -> dict[int, int]:
    """The publisher's id of a class -> its number as the network counts."""
    return {category.id: number for number, category in enumerate(categories)}


# run lengths


def rles_of(masks: Tensor) -> list[Rle]:
    """Masks bool [S, H, W] -> COCO's compressed run lengths (down the columns), ready for JSON."""
    from faster_coco_eval.core import mask as api

    if not len(masks):
        return []
    # the library wants the rows to be the fastest dimension: [H, W, S] in Fortran's order
    columns = np.ascontiguousarray(masks.detach().cpu().numpy().transpose(0, 2, 1), dtype=np.uint8).T
    return [{"size": list(rle["size"]), "counts": rle["counts"].decode()} for rle in api.encode(columns)]


def masks_of(rles: Sequence[Rle], height: int, width: int) -> Tensor:
    """Compressed run lengths of an image of this size -> masks bool [S, H, W]."""
    from faster_coco_eval.core import mask as api

    if not rles:
        return torch.zeros(0, height, width, dtype=torch.bool)
    columns = api.decode(list(rles)).T
    return torch.from_numpy(np.ascontiguousarray(columns.transpose(0, 2, 1))).bool()


def counts_of(rle: Rle) -> list[int]:
    """Uncompressed run lengths: pixels outside and inside the mask by turns, down the columns; the first number may be 0."""
    import faster_coco_eval.mask_api_new_cpp as api

    return api.toUncompressedRLE([rle])[0]["counts"]


def areas_of(rles: Sequence[Rle]) -> list[int]:
    """Pixels of every mask."""
    from faster_coco_eval.core import mask as api

    return [int(area) for area in api.area(list(rles))] if rles else []


def rle_of(annotation: Mapping[str, Any], height: int, width: int) -> Rle:
    """Compressed run lengths of an annotation's ``segmentation``, or of its ``bbox`` where that is missing or empty.

    Polygons ``[[x0, y0, x1, y1, ...], ...]`` in pixels are united and cut off at the image's borders; run lengths may be numbers
    or a string; a box is [x, y, width, height].

    Raises:
        ValueError: what is wrong with it, to be put behind the annotation's name.
    """
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, Mapping):
        return _checked_rle(segmentation, height, width)
    if segmentation:
        return _polygons(segmentation, height, width)
    return _box(annotation.get("bbox"), height, width)


def _checked_rle(rle: Mapping[str, Any], height: int, width: int) -> Rle:
    from faster_coco_eval.core import mask as api

    size, counts = rle.get("size"), rle.get("counts")
    if not isinstance(size, Sequence) or list(size) != [height, width]:
        raise ValueError(f"its run lengths are for {_by(size)} pixels, the image has {height} x {width}")
    fault = ValueError(f"its run lengths do not cover the {height * width} pixels of the image")
    if isinstance(counts, str | bytes):
        try:
            numbers = counts_of({"size": [height, width], "counts": counts})
        except (ValueError, RuntimeError):
            raise fault from None
        text = counts.decode("ascii", "replace") if isinstance(counts, bytes) else counts
    elif isinstance(counts, Sequence) and all(isinstance(count, int) and count >= 0 for count in counts):
        numbers = list(counts)
        if sum(numbers) == height * width:
            text = api.frPyObjects([{"size": [height, width], "counts": numbers}], height, width)[0]["counts"].decode()
    else:
        raise ValueError("its run lengths are neither a string nor whole numbers from 0 on")
    if sum(numbers) != height * width or min(numbers) < 0:
        raise fault
    return {"size": [height, width], "counts": text}


def _polygons(polygons: Any, height: int, width: int) -> Rle:
    import faster_coco_eval.mask_api_new_cpp as api

    checked = []
    for polygon in polygons:
        points = _numbers(polygon, "polygon", height, width)
        if len(points) < 6 or len(points) % 2:
            raise ValueError(f"its polygon has {len(points)} numbers instead of an even number from 6 on")
        checked.append(points)
    rle = api.merge(api.frPoly(checked, height, width), 0)
    return {"size": [height, width], "counts": rle["counts"].decode()}


def _box(box: Any, height: int, width: int) -> Rle:
    import faster_coco_eval.mask_api_new_cpp as api

    if box is None:
        raise ValueError("it has neither a segmentation nor a box")
    numbers = _numbers(box, "box", height, width)
    if len(numbers) != 4:
        raise ValueError(f"its box has {len(numbers)} numbers instead of x, y, width, height")
    return {"size": [height, width], "counts": api.frBbox([numbers], height, width)[0]["counts"].decode()}


def _numbers(values: Any, name: str, height: int, width: int) -> list[float]:
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"its {name} holds something that is no number") from None
    if numbers.ndim != 1:
        raise ValueError(f"its {name} is not a list of numbers")
    inside = np.abs(numbers) <= _FAR * max(height, width)  # false for NaN too
    if not inside.all():
        raise ValueError(f"its {name} has the number {numbers[~inside][0]:g}, far outside the image")
    return numbers.tolist()


def _by(size: Any) -> str:
    return " x ".join(map(str, size)) if isinstance(size, Sequence) else str(size)


# panoptic PNGs


def id_of_rgb(color: np.ndarray) -> np.ndarray:
    """Colours uint8 [..., 3] of a panoptic PNG -> segment ids R + 256 G + 65536 B, int64 [...]."""
    wide = color.astype(np.int64)
    return wide[..., 0] + 256 * wide[..., 1] + 65536 * wide[..., 2]


def rgb_of_id(ids: np.ndarray) -> np.ndarray:
    """The inverse: segment ids below 2^24, [...] -> colours uint8 [..., 3]. Raises ValueError for others."""
    wide = np.asarray(ids, dtype=np.int64)
    if wide.size and (wide.min() < 0 or wide.max() >= 1 << 24):
        raise ValueError(f"segment ids must lie from 0 to {(1 << 24) - 1}, not {wide.min()} to {wide.max()}")
    return np.stack([wide & 255, wide >> 8 & 255, wide >> 16], -1).astype(np.uint8)


def read_ids(path: Path | str) -> np.ndarray:
    """Segment ids of a panoptic PNG, int64 [H, W]; 0 is void. Raises ValueError saying what is wrong with it."""
    return id_of_rgb(read_image(path))


def read_image(path: Path | str) -> np.ndarray:
    """Pixels of an image file in RGB, whatever it has, uint8 [H, W, 3]. Raises ValueError saying what is wrong with it."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB"))
    # Pillow raises nearly anything on a damaged file
    except Exception as error:
        raise ValueError(reason_of(error)) from None


def segments_of(ids: np.ndarray, infos: Sequence[Mapping[str, Any]], numbers: Mapping[int, int]) -> Segments:
    """A panoptic PNG and its ``segments_info`` -> segments in the order of that list.

    Args:
        ids: of the pixels, int64 [H, W], 0 is void.
        infos: ``{id, category_id, iscrowd}`` of every segment.
        numbers: the publisher's id of a class -> its number.

    Raises:
        ValueError: ids of the two that do not fit, or an unknown category; names the segment.
    """
    listed = [info.get("id") for info in infos]
    for place, number in enumerate(listed):
        if not isinstance(number, int) or number <= 0:
            raise ValueError(f"the JSON has a segment with the id {number}, which must be a whole number above 0")
        if number in listed[:place]:
            raise ValueError(f"the JSON has segment {number} twice")
        if infos[place].get("category_id") not in numbers:
            raise ValueError(f"segment {number} has category {infos[place].get('category_id')}, which the JSON's categories lack")
    known = np.array([0, *listed], dtype=np.int64)
    order = known.argsort()
    place_in_order = np.minimum(known[order].searchsorted(ids), len(known) - 1)
    strange = known[order][place_in_order] != ids
    if strange.any():
        raise ValueError(f"its pixels have segment {ids[strange][0]}, which the JSON lacks")
    map = order[place_in_order]
    empty = np.bincount(map.ravel(), minlength=len(known))[1:] == 0
    if empty.any():
        raise ValueError(f"the JSON's segment {listed[int(empty.argmax())]} has no pixels")
    category = torch.tensor([numbers[info["category_id"]] for info in infos], dtype=torch.int64)
    crowd = torch.tensor([bool(info.get("iscrowd", 0)) for info in infos], dtype=torch.bool)
    return Segments.of(torch.from_numpy(map), category, crowd)


# files that are whole or not there


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path``, whose file takes that name when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


class _Growing:
    """A JSON file with a list that is written element by element; it gets its name when it is closed.

    A context manager: after an error in the block nothing is left behind, and an older file of that name is as it was.
    """

    def __init__(self, path: Path | str, head: str = "["):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._part = self.path.with_name(self.path.name + ".part")
        self._file = self._part.open("w", encoding="utf-8")
        self._file.write(head)
        self._separator = "\n"

    def write(self, element: Mapping[str, Any]) -> None:
        """Add an element to the list."""
        self._file.write(self._separator + json.dumps(element, allow_nan=False))
        self._separator = ",\n"

    def tail(self) -> str:
        """What ends the file."""
        return "\n]\n"

    def close(self) -> None:
        """Finish the file and give it its name."""
        self._file.write(self.tail())
        self._file.close()
        self._part.replace(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()
            self._part.unlink()


class PanopticWriter(_Growing):
    """COCO's panoptic form: one JSON, and beside it a folder of the JSON's name with a PNG for each image.

    Each image's segments are numbered from 1 there, as in :class:`papermix.segmentation.segments.Segments`; those without pixels
    are left out, as the form demands.

    Args:
        path: of the JSON.
        categories: in network order; the publisher's ids are written.
    """

    def __init__(self, path: Path | str, categories: Sequence[Category]):
        super().__init__(path, '{"annotations": [')
        self.categories, self.folder = categories, Path(path).with_suffix("")
        self.images: list[str] = []

    def add(self, image_id: int, segments: Segments, name: str | None = None) -> None:
        """Write an image's segments; ``name`` is the image file's without ending, by default the id in 12 digits as in COCO."""
        from PIL import Image

        name, segments = name or f"{image_id:012d}", segments.cpu().compact()
        with replacing(self.folder / f"{name}.png") as part:
            Image.fromarray(rgb_of_id(segments.map.numpy())).save(part, "PNG")
        boxes, areas = boxes_of(segments.masks()).int(), segments.areas()
        infos = [
            {
                "id": number,
                "category_id": self.categories[category].id,
                "area": area,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "iscrowd": int(crowd),
            }
            for number, (category, area, (x0, y0, x1, y1), crowd) in enumerate(
                zip(segments.category.tolist(), areas.tolist(), boxes.tolist(), segments.crowd.tolist()), 1
            )
        ]
        self.write({"image_id": image_id, "file_name": f"{name}.png", "segments_info": infos})
        height, width = segments.map.shape
        self.images.append(json.dumps({"id": image_id, "file_name": f"{name}.jpg", "height": height, "width": width}))

    def tail(self) -> str:
        """The images and the categories."""
        categories = [json.dumps({"id": c.id, "name": c.name, "isthing": int(c.thing)}) for c in self.categories]
        return (
            "\n],\n"
            + ",\n".join(
                f'"{key}": [\n' + ",\n".join(rows) + "\n]" for key, rows in (("images", self.images), ("categories", categories))
            )
            + "}\n"
        )


class InstanceWriter(_Growing):
    """COCO's results of instance segmentation: ``[{image_id, category_id, segmentation, bbox, score}, ...]``.

    Args:
        path: of the JSON.
        categories: in network order; the publisher's ids are written. Objects of stuff (the background) are left out.
    """

    def __init__(self, path: Path | str, categories: Sequence[Category]):
        super().__init__(path)
        self.categories = categories

    def add(self, image_id: int, found: Instances) -> None:
        """Write an image's objects."""
        boxes = boxes_of(found.masks).int().tolist()
        for rle, (x0, y0, x1, y1), number, score in zip(
            rles_of(found.masks), boxes, found.category.tolist(), found.score.tolist()
        ):
            category = self.categories[number]
            if category.thing:
                box = [x0, y0, x1 - x0, y1 - y0]
                self.write({"image_id": image_id, "category_id": category.id, "segmentation": rle, "bbox": box, "score": score})


def read_json(path: Path | str) -> Any:
    """The content of a JSON file. Raises UserError naming the file, and the place where it is broken."""
    try:
        return json.loads(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check its name") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is broken JSON at byte {error.start} (no UTF-8): restore the file") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is broken JSON at character {error.pos} ({error.msg}): restore the file") from None


def read_panoptic(path: Path | str, categories: Sequence[Category]) -> Iterator[tuple[int, Segments]]:
    """Image ids and segments of COCO's panoptic form, as :class:`PanopticWriter` writes it.

    Raises:
        UserError: a JSON or PNG that is missing, broken or does not fit the other; names the file and the segment.
    """
    numbers, folder = numbers_of(categories), Path(path).with_suffix("")
    for entry in read_json(path)["annotations"]:
        png = folder / entry["file_name"]
        try:
            yield entry["image_id"], segments_of(read_ids(png), entry["segments_info"], numbers)
        except ValueError as error:
            raise UserError(f"{png} cannot be used ({error}): write it again") from None


def read_instances(path: Path | str, categories: Sequence[Category]) -> Iterator[tuple[int, Instances]]:
    """Image ids and objects of COCO's results of instance segmentation; images without objects are not in such a file.

    Raises:
        UserError: a file that is missing or broken; names it and the image.
    """
    numbers = numbers_of(categories)
    images: dict[int, list[Any]] = {}
    for result in read_json(path):
        images.setdefault(result["image_id"], []).append(result)
    for image_id, results in images.items():
        try:
            height, width = results[0]["segmentation"]["size"]
            masks = masks_of([rle_of(result, height, width) for result in results], height, width)
            category = torch.tensor([numbers[result["category_id"]] for result in results])
        except KeyError as error:
            raise UserError(
                f"{path}: image {image_id} has a result with an unknown category or key, {error}: correct it"
            ) from None
        except ValueError as error:
            raise UserError(f"{path}: image {image_id} has a result that cannot be used ({error}): correct it") from None
        yield image_id, Instances(masks, category, torch.tensor([result["score"] for result in results]))


def reason_of(error: Exception) -> str:
    """What an error says, on one line and without the file's name."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return " ".join(text.split()).rstrip(".")


# PNGs of classes


def voc_colors() -> np.ndarray:
    """VOC's colour map, uint8 [256, 3]: bit k of a number's bits 0, 1, 2 (3, 4, 5; ...) is a high bit of red, green, blue."""
    number = np.arange(256)
    channels = [sum((number >> 3 * k + c & 1) << 7 - k for k in range(3)) for c in range(3)]
    return np.stack(channels, -1).astype(np.uint8)


def write_voc(path: Path | str, semantic: Tensor) -> None:
    """Classes [H, W] (255 void) as VOC's PNG: numbers with a palette, the background being class 0."""
    _write_png(path, semantic.cpu().numpy(), voc_colors())


def read_voc(path: Path | str) -> Tensor:
    """Classes of a PNG with a palette (or in gray), uint8 [H, W], 255 void. Raises UserError naming a file that is not one."""
    return torch.from_numpy(_read_png(path))


def write_cityscapes(path: Path | str, semantic: Tensor, categories: Sequence[Category]) -> None:
    """Classes [H, W] (255 void) as Cityscapes' ``*_labelIds.png``: the publisher's ids in gray, void as 0 (unlabeled)."""
    ids = np.zeros(256, np.uint8)
    ids[: len(categories)] = [category.id for category in categories]
    _write_png(path, ids[semantic.cpu().numpy()])


def read_cityscapes(path: Path | str, categories: Sequence[Category]) -> Tensor:
    """Classes of a ``*_labelIds.png``, uint8 [H, W]; 255 for ids that are in no category. Raises UserError as ``read_voc``."""
    number = np.full(256, VOID, np.uint8)
    number[[category.id for category in categories]] = np.arange(len(categories))
    return torch.from_numpy(number[_read_png(path)])


def _write_png(path: Path | str, pixels: np.ndarray, palette: np.ndarray | None = None) -> None:
    from PIL import Image

    image = Image.fromarray(pixels.astype(np.uint8))
    if palette is not None:
        image.putpalette(palette.tobytes())
    with replacing(Path(path)) as part:
        image.save(part, "PNG")


def _read_png(path: Path | str) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode not in ("P", "L"):
                raise ValueError(f"its pixels are {image.mode}, not numbers of classes")
            return np.array(image)
    # Pillow raises nearly anything on a damaged file
    except Exception as error:
        raise UserError(f"{path} cannot be used ({reason_of(error)}): restore the file") from None
