"""Images with a truth for every pixel: classes, segments, masks or measurements; read, augmented and padded to batches."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from datamodules.augment import Normalize, gray
from datamodules.base import DataModule
from datamodules.dense.augment import DenseTransform, Example, checked, collate
from datamodules.loaders import Batch, Damaged, Draw, WorkerLoader, generator
from datamodules.splits import validation_count
from papermix.errors import UserError
from papermix.segmentation.formats import voc_colors
from papermix.segmentation.segments import VOID, Category


class Source(Protocol):
    """Where the examples of an official part come from. Picklable; worker processes have a copy each."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Example | Damaged:
        """An example at the publisher's size, or what is wrong with it."""
        ...


class DenseData(DataModule):
    """Base of image sets with a truth for every pixel. Subclasses give ``kind``, ``sources`` and ``categories``.

    A raw example (what a source reads) is a dict with `image` uint8 [C, H, W], `image_id` and, by ``kind``,

    * semantic: `semantic` uint8 [H, W], classes, 255 void;
    * panoptic: `panoptic` int32 [H, W], numbers of segments, 0 void; `category` int64 [S] and `crowd` bool [S] of segment s at s - 1;
    * instance: `masks` bool [S, H, W], the first in front; `category`, `crowd`;
    * depth: `depth` float32 [1, H, W];
    * caption: `caption` int64 [T].

    A batch holds tensors, padded at the bottom and on the right: `image` float32 [B, C, H, W], normalised, 0 where padded; `size`
    int64 [B, 2], height and width of the image within it; `truth_size` int64 [B, 2], the same of the truth, which in training is
    that of the image and in evaluation the publisher's; `image_id`, `index` int64 [B]; by ``kind`` `semantic` int64 [B, H', W']
    (255 void and padding; all kinds with segments have it), `panoptic` int64 [B, H', W'] (0 void and padding), `category` int64
    [B, S] (-1 padding), `crowd` bool [B, S], `masks` bool [B, S, H', W'], `boxes` float [B, S, 4] (x0, y0, x1, y1), `depth` float
    [B, 1, H', W'] (NaN padding), `tokens` int64 [B, T], the caption's words but the last (0 padding), `target`, its words but the
    first (-100 padding), and `fresh` bool [B], true: every caption is a sequence of its own. In instance sets the last class is the background: the
    pixels outside all masks are a segment of it.

    Args:
        num_classes: classes of pixels, void not among them.
        in_chans: 3 (colour) or 1 (gray).
        image_size: side in pixels of square data, or null.
        mean, std: per channel, in units of 0 to 1.
        batch_size: global batch size, over all processes.
        augment: ``{scale, crop, flip, color}`` of the training images, see :class:`datamodules.dense.augment.DenseTransform`.
        resize: shorter side in pixels, of training and evaluation; null: the publisher's size.
        max_size: longest side in pixels; null: any.
        val_fraction: part of the official training images held out, below 1 a fraction, from 1 on a number; 0: none. The official
            validation images are the test split.
        split_seed: of the validation split and of ``limit``.
        workers: processes that read; 0 reads in this one.
        skip_bad: leave bad examples out, counted, instead of stopping.
        fake: random images and truths: four batches for training and one for each evaluation, or ``limit`` examples.
        limit: at most so many examples of each split.
        seed: of the order and of the augmentation.

    Raises:
        UserError: values out of range (here); missing data (in ``setup``); bad examples (while reading).
    """

    kind = "semantic"
    # height and width of fake images of data that has no one size
    typical_size = (480, 640)
    # images of a batch are padded to a multiple of this, the stride of the deepest maps of common networks
    multiple = 32
    categories: tuple[Category, ...] = ()

    def __init__(
        self,
        *,
        num_classes: int,
        in_chans: int = 3,
        image_size: int | None = None,
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int,
        augment: Mapping[str, Any] | None = None,
        resize: int | None = None,
        max_size: int | None = None,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        workers: int = 0,
        skip_bad: bool = False,
        fake: bool = False,
        limit: int | None = None,
        seed: int = 0,
    ):
        super().__init__(batch_size, fake=fake, limit=limit, seed=seed)
        if in_chans not in (1, 3):
            raise UserError(f"dataset.in_chans={in_chans} must be 1 (gray) or 3 (colour)")
        for name, numbers in (("mean", mean), ("std", std)):
            if len(numbers) not in (1, in_chans):
                raise UserError(f"dataset.{name} has {len(numbers)} numbers for dataset.in_chans={in_chans}: give {in_chans}")
        for name, side in (("image_size", image_size), ("resize", resize), ("max_size", max_size)):
            if side is not None and side < 1:
                raise UserError(f"dataset.{name}={side} must be at least 1, or null")
        if not 1 <= num_classes < VOID:
            raise UserError(f"dataset.num_classes={num_classes} must be from 1 to {VOID - 1}")
        if workers < 0:
            raise UserError(f"dataset.workers={workers} must be at least 0")
        self.num_classes, self.in_chans, self.image_size = num_classes, in_chans, image_size
        self.resize, self.max_size, self.augment = resize, max_size, checked(augment)
        self.val_fraction, self.split_seed, self.workers, self.skip_bad = val_fraction, split_seed, workers, skip_bad
        self.plain = Normalize(mean, std)
        self.rows: dict[str, Tensor] = {}
        self._sources: dict[str, Source] = {}

    def sources(self) -> dict[str, Source]:
        """The official parts, "train" and "test"; sets ``categories``."""
        raise NotImplementedError

    @property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names in the order in which the network counts."""
        return tuple(category.name for category in self.categories)

    @property
    def background(self) -> int | None:
        """Class of the pixels outside all masks."""
        return self.num_classes - 1 if self.kind == "instance" else None

    def load(self) -> None:
        parts = self._fake() if self.fake else self.sources()
        train, test = parts["train"], parts["test"]
        for part, source in parts.items():
            if not len(source):
                raise UserError(f"the {part} part has no images: check dataset.data_dir, or try dataset.fake=true")
        count = 0 if self.fake and not self.val_fraction else self._validation(len(train))
        order = torch.randperm(len(train), generator=generator(self.split_seed, "val"))
        chosen = {"val": order[:count], "train": order[count:], "test": torch.arange(len(test))}
        for split, rows in chosen.items():
            if self.limit is not None and self.limit < len(rows):
                rows = rows[torch.randperm(len(rows), generator=generator(self.split_seed, "limit", split))[: self.limit]]
            if len(rows):
                self.rows[split] = rows.sort().values
                self._sources[split] = test if split == "test" else train

    def _validation(self, examples: int) -> int:
        return self.batch_size if self.fake else validation_count(examples, self.val_fraction)

    def _fake(self) -> dict[str, Source]:
        train, test = self.limit or self.batch_size * 4, self.limit or self.batch_size
        size = (self.image_size, self.image_size) if self.image_size else self.typical_size
        if not self.categories:
            colors = voc_colors()[1:].tolist()
            self.categories = tuple(Category(n, f"class {n}", n % 2 == 0, tuple(colors[n])) for n in range(self.num_classes))
        things = [category.thing for category in self.categories[: self.num_classes]]
        make = partial(FakeScenes, kind=self.kind, num_classes=self.num_classes, things=things, shape=(self.in_chans, *size))
        return {"train": make(train + self.batch_size), "test": make(test)}

    def eval_dataloader(self, split: str) -> WorkerLoader:
        """A loader of a split in its own order and without augmentation."""
        loader = self.loader(split, evaluate=True)
        if loader is None:
            raise UserError(f"there is no {split} split to evaluate: set dataset.val_fraction above 0")
        return loader

    def loader(self, split: str, evaluate: bool = False) -> WorkerLoader | None:
        if split not in self.rows:
            return None
        train = split == "train" and not evaluate
        changes = self.augment if train else {}
        transform = DenseTransform(train, self.background, self.resize, self.max_size, **changes)
        return WorkerLoader(
            ReadExample(self._sources[split], self.rows[split].numpy(), transform),
            {},
            self.batch_size,
            collate=partial(collate, least=changes.get("crop") or (1, 1), multiple=self.multiple),
            workers=self.workers,
            transform=self.finish,
            device=self.device,
            skip_bad=self.skip_bad,
            damaged=self.damaged,
            seed=self.seed,
            shuffle=train,
            drop_last=train,
            rank=self.rank,
            world=self.world,
            frozen=self.frozen,
            name=split,
        )

    def finish(self, batch: Batch, draw: Draw) -> Batch:
        """On the training device: bytes to numbers, padding to 0; int64 where torch's losses want it."""
        image, size = batch["image"], batch["size"]
        if image.shape[1] != self.in_chans:
            image = gray(image.float())
        image = self.plain.normalize(image)
        height, width = image.shape[-2:]
        if bool((size != size.new_tensor([height, width])).any()):
            rows, columns = torch.arange(height, device=size.device), torch.arange(width, device=size.device)
            inside = (rows < size[:, :1])[:, :, None] & (columns < size[:, 1:])[:, None, :]
            image = image * inside[:, None]
        batch["image"] = image
        for name in ("semantic", "panoptic"):
            if name in batch:
                batch[name] = batch[name].long()
        return batch


class ReadExample:
    """``read(index)`` of a loader: the source's example, transformed.

    Args:
        source: an official part.
        rows: int64 [examples], which of its images are in the split.
        transform: what is done to each.
    """

    def __init__(self, source: Source, rows: Any, transform: DenseTransform):
        self.source, self.rows, self.transform = source, rows, transform

    def __len__(self) -> int:
        return len(self.rows)

    def __call__(self, index: int) -> Example | Damaged:
        example = self.source.read(int(self.rows[index]))
        return example if isinstance(example, Damaged) else self.transform(example)


class FakeScenes:
    """Random images with random rectangles on them, a function of the index.

    Args:
        count: how many.
        kind: which truth, see :class:`DenseData`.
        num_classes: classes of pixels.
        things: for each class whether it has instances.
        shape: of the images, (channels, height, width).
    """

    rectangles = 8

    def __init__(self, count: int, *, kind: str, num_classes: int, things: Sequence[bool], shape: tuple[int, int, int]):
        self.count, self.kind, self.num_classes, self.things, self.shape = count, kind, num_classes, list(things), shape

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> Example:
        """Example ``index``."""
        draw = generator("fake", index)
        height, width = self.shape[1:]
        image = torch.randint(0, 256, self.shape, dtype=torch.uint8, generator=draw)
        example: Example = {"image": image, "image_id": index}
        if self.kind == "depth":
            return example | {"depth": torch.rand(1, height, width, generator=draw)}
        if self.kind == "caption":
            return example | {"caption": torch.randint(0, self.num_classes, (12,), generator=draw)}
        # in instance sets the last class is what no mask covers
        classes = [c for c, thing in enumerate(self.things) if thing or self.kind != "instance"]
        category = torch.tensor(classes)[torch.randint(0, len(classes), (self.rectangles,), generator=draw)]
        masks = torch.zeros(self.rectangles, height, width, dtype=torch.bool)
        for mask, (top, left) in zip(masks, torch.rand(self.rectangles, 2, generator=draw).tolist()):
            y, x = int(top * height * 0.7), int(left * width * 0.7)
            mask[y : y + max(height // 3, 1), x : x + max(width // 3, 1)] = True
        crowd = torch.zeros(self.rectangles, dtype=torch.bool)
        if self.kind == "instance":
            return example | {"masks": masks, "category": category, "crowd": crowd}
        # the first rectangle lies in front; what none covers is void
        panoptic = torch.where(masks.any(0), masks.to(torch.uint8).argmax(0) + 1, 0).int()
        if self.kind == "semantic":
            table = torch.cat([torch.tensor([VOID]), category])
            return example | {"semantic": table[panoptic.long()].to(torch.uint8)}
        stuff = [c for c in range(self.num_classes) if not self.things[c]]
        # a stuff class has one segment: later rectangles of it join the first
        for c in stuff:
            same = (category == c).nonzero()[:, 0].tolist()
            for other in same[1:]:
                panoptic[panoptic == other + 1] = same[0] + 1
        return example | {"panoptic": panoptic, "category": category, "crowd": crowd}
