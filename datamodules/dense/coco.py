"""COCO (Lin et al., ECCV 2014) in its official layout: panoptic segments, instances, captions.

Below ``data_dir`` lie ``train2017/*.jpg``, ``val2017/*.jpg`` and ``annotations/`` with ``instances_``, ``captions_`` and
``panoptic_{train,val}2017.json`` and the folders ``panoptic_{train,val}2017`` of PNGs. Any set in the same form will do: classes
are those that the JSON lists, things before stuff, in the order of their ids.
"""

import json
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules.dense.augment import Example
from datamodules.dense.base import DenseData
from datamodules.loaders import Damaged, WorkerLoader, leave_out
from datamodules.vocabulary import UNK, Vocabulary
from papermix.errors import UserError
from papermix.segmentation import formats
from papermix.segmentation.segments import Category

# name and id of the 80 things and the 53 kinds of stuff of the panoptic task, in the order of their ids
_THINGS = """person 1, bicycle 2, car 3, motorcycle 4, airplane 5, bus 6, train 7, truck 8, boat 9, traffic light 10,
fire hydrant 11, stop sign 13, parking meter 14, bench 15, bird 16, cat 17, dog 18, horse 19, sheep 20, cow 21, elephant 22,
bear 23, zebra 24, giraffe 25, backpack 27, umbrella 28, handbag 31, tie 32, suitcase 33, frisbee 34, skis 35, snowboard 36,
sports ball 37, kite 38, baseball bat 39, baseball glove 40, skateboard 41, surfboard 42, tennis racket 43, bottle 44,
wine glass 46, cup 47, fork 48, knife 49, spoon 50, bowl 51, banana 52, apple 53, sandwich 54, orange 55, broccoli 56, carrot 57,
hot dog 58, pizza 59, donut 60, cake 61, chair 62, couch 63, potted plant 64, bed 65, dining table 67, toilet 70, tv 72,
laptop 73, mouse 74, remote 75, keyboard 76, cell phone 77, microwave 78, oven 79, toaster 80, sink 81, refrigerator 82, book 84,
clock 85, vase 86, scissors 87, teddy bear 88, hair drier 89, toothbrush 90"""
_STUFF = """banner 92, blanket 93, bridge 95, cardboard 100, counter 107, curtain 109, door-stuff 112, floor-wood 118, flower 119,
fruit 122, gravel 125, house 128, light 130, mirror-stuff 133, net 138, pillow 141, platform 144, playingfield 145, railroad 147,
river 148, road 149, roof 151, sand 154, sea 155, shelf 156, snow 159, stairs 161, tent 166, towel 168, wall-brick 171,
wall-stone 175, wall-tile 176, wall-wood 177, water-other 178, window-blind 180, window-other 181, tree-merged 184,
fence-merged 185, ceiling-merged 186, sky-other-merged 187, cabinet-merged 188, table-merged 189, floor-other-merged 190,
pavement-merged 191, mountain-merged 192, grass-merged 193, dirt-merged 194, paper-merged 195, food-other-merged 196,
building-other-merged 197, rock-merged 198, wall-other-merged 199, rug-merged 200"""
_COLORS = [tuple(color) for color in formats.voc_colors().tolist()]


def category(id: int, name: str, thing: bool) -> Category:
    """A class in the colour that VOC's map has for its id."""
    return Category(id, name, thing, _COLORS[id % len(_COLORS)])


def _table(text: str, thing: bool) -> tuple[Category, ...]:
    rows = (entry.split() for entry in text.split(","))
    return tuple(category(int(number), " ".join(words), thing) for *words, number in rows)


THINGS = _table(_THINGS, True)
PANOPTIC = THINGS + _table(_STUFF, False)
# no id of anybody's files
BACKGROUND = Category(-1, "background", False, (0, 0, 0))
START, END = "<start>", "<end>"
SPECIAL = ("<pad>", START, END, UNK)

_SPACE = re.compile(r"[ \t\n\r]*")
_WORD = re.compile(r"\w+(?:'\w+)?")


def elements(text: str) -> Iterator[tuple[str, Any, int, int]]:
    """Go through a JSON object without ever holding it: (key, element, start, end) for each element of the lists at its top, and
    (key, value, start, end) for what is no list; ``text[start:end]`` is the element.

    Raises:
        json.JSONDecodeError: where the text is broken.
    """
    decode = json.JSONDecoder().raw_decode

    def sign(at: int, allowed: str) -> tuple[str, int]:
        """The next sign, and the place of what follows it."""
        at = _SPACE.match(text, at).end()  # type: ignore[union-attr]
        if text[at : at + 1] not in tuple(allowed):
            raise json.JSONDecodeError(f"Expecting {' or '.join(allowed)}", text, at)
        return text[at], _SPACE.match(text, at + 1).end()  # type: ignore[union-attr]

    _, at = sign(0, "{")
    more, at = sign(at, "}") if text[at : at + 1] == "}" else (",", at)
    while more == ",":
        if text[at : at + 1] != '"':
            raise json.JSONDecodeError("Expecting a key", text, at)
        key, at = decode(text, at)
        _, at = sign(at, ":")
        if text[at : at + 1] != "[":
            value, end = decode(text, at)
            yield key, value, at, end
            more, at = sign(end, ",}")
            continue
        _, at = sign(at, "[")
        inner, at = sign(at, "]") if text[at : at + 1] == "]" else (",", at)
        while inner == ",":
            value, end = decode(text, at)
            yield key, value, at, end
            inner, at = sign(end, ",]")
        more, at = sign(at, ",}")
    if at < len(text):
        raise json.JSONDecodeError("Extra data", text, at)


class AnnotationFile:
    """An annotation JSON in COCO's form: its list of images, its classes, and where each image's annotations stand in it.

    A file of half a gigabyte is gone through once, element by element, and not kept (twice its size is needed for that moment):
    memory holds two numbers for each annotation and a row for each image, as arrays that worker processes share. What belongs
    to an image is read from the file again when it is wanted.

    Args:
        path: of the JSON.
        damaged: takes note (path -> reason) of the images and annotations that cannot be used, which are left out; None raises.

    Attributes:
        ids: of the images, int64 [N], in the file's order.
        names: of the image files, bytes [N].
        sizes: height and width of the images, int32 [N, 2], 0 where the file does not say.
        counts: annotations of each image, int64 [N].
        listed: ``categories`` of the file.

    Raises:
        UserError: the file is missing or broken; names the place. Without ``damaged``: an image that is listed twice or without id
            or name, an annotation that belongs to no image of the list; names the id and the place.
    """

    def __init__(self, path: Path, damaged: dict[str, str] | None = None):
        bad = partial(leave_out, damaged={} if damaged is None else damaged, skip_bad=damaged is not None)
        self.path = str(path)
        self.listed: list[dict[str, Any]] = []
        ids, sizes, names = array("q"), array("l"), []
        owners, starts, ends = array("q"), array("q"), array("q")
        known: set[int] = set()
        for key, value, start, end in self._elements():
            if key == "annotations":
                owner = value.get("image_id") if isinstance(value, dict) else None
                if not isinstance(owner, int):
                    bad(Damaged(f"{path}, annotation at byte {start}", "it has no image_id that is a whole number"))
                    continue
                owners.append(owner)
                starts.append(start)
                ends.append(end)
            elif key == "images":
                number, name = (value.get("id"), value.get("file_name")) if isinstance(value, dict) else (None, None)
                if not isinstance(number, int) or not isinstance(name, str):
                    bad(Damaged(f"{path}, image at byte {start}", "it has no id (a whole number) or no file_name"))
                    continue
                if number in known:
                    bad(Damaged(f"{path}, image {number} at byte {start}", "an image of this id was listed before"))
                    continue
                known.add(number)
                ids.append(number)
                sizes.extend(side if isinstance(side, int) else 0 for side in (value.get("height"), value.get("width")))
                names.append(os.fsencode(name))
            elif key == "categories":
                self.listed.append(value)
        self.ids, self.sizes = np.array(ids, np.int64), np.array(sizes, np.int32).reshape(-1, 2)
        self.names = np.array(names, dtype=np.bytes_)
        order = self.ids.argsort(kind="stable")
        ranked = self.ids[order]
        belongs = np.array(owners, np.int64)
        place = np.minimum(ranked.searchsorted(belongs), max(len(ranked) - 1, 0))
        found = ranked[place] == belongs if len(ranked) else np.zeros(len(belongs), bool)
        for lost in np.flatnonzero(~found).tolist():
            number = self._at([(starts[lost], ends[lost])])[0].get("id")
            bad(Damaged(f"{path}, annotation {number} at byte {starts[lost]}", f"it belongs to image {belongs[lost]}, which the file does not list"))
        image = order[place[found]]
        sequence = image.argsort(kind="stable")
        self._places = np.stack([np.array(starts, np.int64), np.array(ends, np.int64)], -1)[found][sequence]
        self.counts = np.bincount(image, minlength=len(self.ids))
        self._first = np.concatenate([[0], self.counts.cumsum()])

    @property
    def name(self) -> str:
        """The file's name without its folder."""
        return os.path.basename(self.path)

    def annotations(self, image: int) -> list[dict[str, Any]]:
        """What the file has for the image at this place of its list."""
        return self._at(self._places[self._first[image] : self._first[image + 1]].tolist())

    def everything(self, key: str) -> Iterator[Any]:
        """The elements of one of the file's lists, one by one."""
        return (value for name, value, _, _ in self._elements() if name == key)

    def _at(self, places: list[Any]) -> list[dict[str, Any]]:
        found = []
        with open(self.path, "rb") as file:
            for start, end in places:
                file.seek(start)
                found.append(json.loads(file.read(end - start)))
        return found

    def _elements(self) -> Iterator[tuple[str, Any, int, int]]:
        try:
            data = Path(self.path).read_bytes()
        except OSError as error:
            raise UserError(f"{self.path} cannot be read ({error.strerror})") from None
        # one character for each byte, so that places in the text are places in the file
        text = data.decode("latin-1")
        del data
        try:
            for key, value, start, end in elements(text):
                yield key, value if text.isascii() else json.loads(text[start:end].encode("latin-1")), start, end
        except json.JSONDecodeError as error:
            raise UserError(f"{self.path} is broken JSON at byte {error.pos} ({error.msg}): restore the file") from None
        except UnicodeDecodeError:
            raise UserError(f"{self.path} is broken JSON at byte {start} (no UTF-8): restore the file") from None


class CocoPart:
    """Images of an official part, with what :meth:`truth` finds for them.

    Args:
        folder: of the image files.
        file: the annotations.
        rows: int64 [n], places in the file's list of the images that are used; None: all.
    """

    def __init__(self, folder: Path, file: AnnotationFile, rows: np.ndarray | None = None):
        self.folder, self.file = str(folder), file
        self.rows = np.arange(len(file.ids)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> Example | Damaged:
        """Example ``index``: `image` in colour whatever the file has, `image_id`, and the truth."""
        image = int(self.rows[index])
        path, number = os.path.join(self.folder, os.fsdecode(self.file.names[image])), int(self.file.ids[image])
        try:
            pixels = formats.read_image(path)
        except ValueError as error:
            return Damaged(path, f"image {number}: {error}")
        size, listed = list(pixels.shape[:2]), self.file.sizes[image].tolist()
        if all(listed) and listed != size:
            return Damaged(path, f"image {number}: it has {_by(size)} pixels, in {self.file.name} {_by(listed)}")
        truth = self.truth(image, path, *size)
        if isinstance(truth, Damaged):
            return truth
        return {"image": torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), "image_id": number, **truth}

    def truth(self, image: int, path: str, height: int, width: int) -> Example | Damaged:
        """What belongs to the image at this place of the file's list, which is ``path`` and has this size."""
        raise NotImplementedError


class PanopticPart(CocoPart):
    """Images and their segments.

    Args:
        pngs: folder of the maps of segment ids.
        numbers: id of a category -> class.
        others: see :class:`CocoPart`.
    """

    def __init__(self, folder: Path, file: AnnotationFile, pngs: Path, numbers: dict[int, int]):
        super().__init__(folder, file)
        self.pngs, self.numbers = str(pngs), numbers

    def truth(self, image: int, path: str, height: int, width: int) -> Example | Damaged:
        """`panoptic` int32 [H, W], `category`, `crowd` [S], segments in the JSON's order."""
        entries, number = self.file.annotations(image), self.file.ids[image]
        if len(entries) != 1:
            return Damaged(path, f"{self.file.name} has {len(entries)} entries for image {number} instead of one")
        png = os.path.join(self.pngs, str(entries[0].get("file_name")))
        try:
            ids = formats.read_ids(png)
            if ids.shape != (height, width):
                raise ValueError(f"it has {_by(ids.shape)} pixels, its image {height} x {width}")
            segments = formats.segments_of(ids, entries[0].get("segments_info") or [], self.numbers)
        except ValueError as error:
            return Damaged(png, f"image {number} of {self.file.name}: {error}")
        return {"panoptic": segments.map.int(), "category": segments.category, "crowd": segments.crowd}


class InstancePart(CocoPart):
    """Images and the masks of their objects.

    Objects so thin that they cover the middle of no pixel are left out, if their own box says that they are: the official files
    have a few. Others without a pixel are a fault.

    Args:
        numbers: id of a category -> class.
        others: see :class:`CocoPart`.
    """

    def __init__(self, folder: Path, file: AnnotationFile, numbers: dict[int, int], rows: np.ndarray | None = None):
        super().__init__(folder, file, rows)
        self.numbers = numbers

    def truth(self, image: int, path: str, height: int, width: int) -> Example | Damaged:
        """`masks` bool [S, H, W], `category`, `crowd` [S]; smaller objects lie in front of larger ones, and crowds behind all."""
        found = []
        for annotation in self.file.annotations(image):
            try:
                if annotation.get("category_id") not in self.numbers:
                    raise ValueError(f"its category {annotation.get('category_id')} is not one of the file's")
                rle = formats.rle_of(annotation, height, width)
                area = formats.areas_of([rle])[0]
                if not area and not _thin(annotation.get("bbox")):
                    raise ValueError("it has no pixel in the image")
            except ValueError as error:
                said = f"annotation {annotation.get('id')} of image {self.file.ids[image]} in {self.file.name}"
                return Damaged(path, f"{said}: {error}")
            if area:
                found.append((bool(annotation.get("iscrowd", 0)), area, self.numbers[annotation["category_id"]], rle))
        found.sort(key=lambda one: one[:2])
        return {
            "masks": formats.masks_of([rle for *_, rle in found], height, width),
            "category": torch.tensor([number for _, _, number, _ in found], dtype=torch.int64),
            "crowd": torch.tensor([crowd for crowd, *_ in found], dtype=torch.bool),
        }


class CaptionPart(CocoPart):
    """Images and what people said about them."""

    def captions(self, image: int) -> list[str]:
        """The captions of the image at this place of the file's list. Raises ValueError naming one that is no text."""
        annotations = self.file.annotations(image)
        for annotation in annotations:
            if not isinstance(annotation.get("caption"), str):
                said = f"annotation {annotation.get('id')} of image {self.file.ids[image]} in {self.file.name}"
                raise ValueError(f"{said}: its caption is no text")
        return [annotation["caption"] for annotation in annotations]

    def truth(self, image: int, path: str, height: int, width: int) -> Example | Damaged:
        """`captions`, a list of texts."""
        try:
            return {"captions": self.captions(image)}
        except ValueError as error:
            return Damaged(path, str(error))


class CocoData(DenseData):
    """Base of COCO's tasks: where the files lie, and which classes they have.

    The official validation images are the test split; the val split is cut from the training images.

    Args:
        data_dir: the folder with ``train2017``, ``val2017`` and ``annotations``.
        others: see :class:`datamodules.dense.base.DenseData`.

    Raises:
        UserError: in ``setup``, a folder or JSON that is missing or broken; classes that do not fit ``dataset.num_classes``.
    """

    # the word that the names of the JSON files begin with
    annotated = ""
    # the classes of the official files
    official: tuple[Category, ...] = ()

    def __init__(self, *, data_dir: str, **others: Any):
        super().__init__(**others)
        self.data_dir = Path(data_dir)
        if self.num_classes == len(self.official):
            self.categories = self.official

    def place(self, name: str) -> Path:
        """A file or folder of the official layout."""
        path = self.data_dir / name
        if not path.exists():
            raise UserError(
                f"{path} is missing: put COCO's files there (python scripts/prepare_data.py coco_{self.annotated} says which), "
                "set dataset.data_dir, or try dataset.fake=true"
            )
        return path

    def files(self) -> dict[str, tuple[Path, AnnotationFile]]:
        """Folder of images and annotations of the parts "train" and "test"."""
        names = {"train": "train2017", "test": "val2017"}
        places = {
            part: (self.place(name), self.place(f"annotations/{self.annotated}_{name}.json")) for part, name in names.items()
        }
        damaged = self.damaged if self.skip_bad else None
        return {part: (folder, AnnotationFile(path, damaged)) for part, (folder, path) in places.items()}

    def take_categories(self, train: AnnotationFile, test: AnnotationFile) -> dict[int, int]:
        """Set ``categories`` to those of the files; returns id -> class. Raises UserError when ``num_classes`` does not fit."""
        things_first = _categories(train)
        if _categories(test) != things_first:
            raise UserError(f"{test.path} lists other categories than {train.path}: take both from the same publisher")
        self.categories = things_first if self.background is None else (*things_first, BACKGROUND)
        count = len(self.categories)
        if count != self.num_classes:
            cure = f"dataset.num_classes={count}"
            if self.kind == "panoptic":
                cure += f" 'dataset.task.things=${{range:0,{sum(c.thing for c in things_first)}}}'"
            words = f"{len(things_first)} categories" + (" besides the background" if self.kind == "instance" else "")
            raise UserError(f"{train.path} lists {words}, which dataset.num_classes={self.num_classes} does not fit: set {cure}")
        return formats.numbers_of(things_first)


class CocoPanoptic(CocoData):
    """COCO's panoptic task: every pixel belongs to a segment of one of 80 things or 53 kinds of stuff, or to none.

    Args:
        data_dir, others: see :class:`CocoData`.
    """

    kind = "panoptic"
    annotated = "panoptic"
    official = PANOPTIC

    def sources(self) -> dict[str, Any]:
        parts = self.files()
        numbers = self.take_categories(*(file for _, file in parts.values()))
        pngs = {part: self.place(os.path.join("annotations", Path(file.path).stem)) for part, (_, file) in parts.items()}
        return {part: PanopticPart(folder, file, pngs[part], numbers) for part, (folder, file) in parts.items()}


class CocoInstances(CocoData):
    """COCO's instance task: masks of objects of 80 things, which may overlap; the last class is the background.

    Training images without any annotation are left out; the test split has all images. Crowds are kept, and flagged.

    Args:
        data_dir, others: see :class:`CocoData`.
    """

    kind = "instance"
    annotated = "instances"
    official = (*THINGS, BACKGROUND)

    def sources(self) -> dict[str, Any]:
        parts = self.files()
        numbers = self.take_categories(*(file for _, file in parts.values()))
        folder, train = parts["train"]
        return {
            "train": InstancePart(folder, train, numbers, np.flatnonzero(train.counts)),
            "test": InstancePart(*parts["test"], numbers),
        }


class CocoCaptions(CocoData):
    """COCO's images and their captions, five or more each; images without any are left out.

    A batch holds `image`, `size`, `truth_size`, `image_id`, `index`, `tokens` (from <start> on), `target` (up to <end>) and
    `fresh` as in :class:`datamodules.dense.base.DenseData`. The words are those of one of the image's captions, drawn anew in every
    epoch of training, the first in evaluation; :meth:`captions` has them all. Words are lower-case, without punctuation.

    Args:
        data_dir: see :class:`CocoData`.
        vocab_size: different words at most, the most frequent of the official training part; <pad>, <start>, <end> and <unk>,
            which are 0 to 3, count as words.
        min_count: words that occur less often there are <unk>.
        others: see :class:`datamodules.dense.base.DenseData`, ``num_classes`` excepted.

    Attributes:
        vocabulary: of the captions; it turns numbers back into text.
    """

    kind = "caption"
    annotated = "captions"

    def __init__(self, *, data_dir: str, vocab_size: int = 10_000, min_count: int = 5, **others: Any):
        if vocab_size <= len(SPECIAL):
            raise UserError(f"dataset.vocab_size={vocab_size} must be above {len(SPECIAL)}, the number of special words")
        if min_count < 1:
            raise UserError(f"dataset.min_count={min_count} must be at least 1")
        # no pixel has a class
        super().__init__(data_dir=data_dir, num_classes=1, **others)
        self.vocab_size, self.min_count = vocab_size, min_count
        self.vocabulary = Vocabulary([*SPECIAL, *(f"word{n}" for n in range(vocab_size - len(SPECIAL)))], "word")

    def sources(self) -> dict[str, Any]:
        parts = self.files()
        counts: Counter[str] = Counter()
        listed = set(parts["train"][1].ids.tolist())
        for annotation in parts["train"][1].everything("annotations"):
            if isinstance(annotation, dict) and annotation.get("image_id") in listed and isinstance(annotation.get("caption"), str):
                counts.update(words(annotation["caption"]))
        often = [word for word, count in sorted(counts.items(), key=lambda c: (-c[1], c[0])) if count >= self.min_count]
        self.vocabulary = Vocabulary([*SPECIAL, *often][: self.vocab_size], "word")
        return {part: CaptionPart(folder, file, np.flatnonzero(file.counts)) for part, (folder, file) in parts.items()}

    def _fake(self) -> dict[str, Any]:
        parts: dict[str, Any] = super()._fake()
        for source in parts.values():
            source.num_classes = self.vocab_size  # what captions are drawn from
        return parts

    def captions(self, split: str, index: int) -> list[str]:
        """All captions of example ``index`` of a split, as they were written."""
        source, row = self._sources[split], int(self.rows[split][index])
        if isinstance(source, CaptionPart):
            return source.captions(int(source.rows[row]))
        example = source.read(row)
        assert not isinstance(example, Damaged)
        return [self.vocabulary.decode(example["caption"])]

    def loader(self, split: str, evaluate: bool = False) -> WorkerLoader | None:
        loader = super().loader(split, evaluate)
        if loader is not None and not self.fake:
            loader.read = OneCaption(loader.read, self.vocabulary, split == "train" and not evaluate)
        return loader


class OneCaption:
    """``read(index)`` of a loader: an example with one of its captions, as numbers of words.

    Args:
        read: gives examples with `captions`, a list of texts.
        vocabulary: with <start>, <end> and <unk>.
        random: draw one with torch's global generator; otherwise the first.
    """

    def __init__(self, read: Any, vocabulary: Vocabulary, random: bool):
        self.read, self.vocabulary, self.random = read, vocabulary, random

    def __call__(self, index: int) -> Example | Damaged:
        example = self.read(index)
        if isinstance(example, Damaged):
            return example
        texts = example.pop("captions")
        chosen = texts[int(torch.randint(len(texts), ())) if self.random else 0]
        return {**example, "caption": self.vocabulary.encode(" ".join([START, *words(chosen), END]))}


def words(text: str) -> list[str]:
    """The words of a caption, lower-case, without punctuation other than an apostrophe within a word."""
    return _WORD.findall(text.lower())


def _categories(file: AnnotationFile) -> tuple[Category, ...]:
    """The categories of a file, things first, then by id."""
    found: dict[int, Category] = {}
    for entry in file.listed:
        number, name = (entry.get("id"), entry.get("name")) if isinstance(entry, dict) else (None, None)
        if not isinstance(number, int) or not isinstance(name, str):
            raise UserError(f"{file.path} lists a category without an id (a whole number) or a name: correct it")
        if number in found:
            raise UserError(f"{file.path} lists category {number} twice: correct it")
        found[number] = category(number, name, bool(entry.get("isthing", 1)))
    if not found:
        raise UserError(f"{file.path} lists no categories: restore the file")
    return tuple(sorted(found.values(), key=lambda c: (not c.thing, c.id)))


def _thin(box: Any) -> bool:
    """Whether a box [x, y, width, height] is narrower than a pixel."""
    return isinstance(box, list) and len(box) == 4 and min(box[2:]) < 1


def _by(size: Any) -> str:
    return " x ".join(map(str, size))
