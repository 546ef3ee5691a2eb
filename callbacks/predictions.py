"""What a model predicts for every pixel, written in the formats in which the publishers' evaluations read it."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from callbacks.base import Callback
from callbacks.picture_base import predict
from papermix.errors import UserError, nearest
from papermix.segmentation.formats import Instances, InstanceWriter, PanopticWriter, read_json, write_cityscapes, write_voc
from papermix.segmentation.segments import to_truth

FORMATS = ("auto", "voc", "cityscapes", "coco_panoptic", "coco_instances")
SPLITS = ("val", "test")


class Predictions(Callback):
    """Writes the predictions of a split into ``predictions/<split>`` of the run folder, at the size of the truth.

    - ``voc``: a PNG of classes with VOC's palette for each image;
    - ``cityscapes``: a gray PNG of the publisher's ids of the classes for each image;
    - ``coco_panoptic``: ``panoptic.json``, and a PNG of segment ids for each image in ``panoptic/``;
    - ``coco_instances``: ``instances.json``, the instances of things with run lengths, box and score.

    Files have the publisher's names of the images, or their ids; JSONs have the publisher's ids of images and categories. The
    folder takes its place when all is written. Of ``test`` this is once, at the end of the run; of ``val`` after each validation,
    with the weights that it used, and the last one stays. Each process writes its share and the first one joins them.

    Args:
        format: one of the above; ``auto``: ``voc``, or where the method finds segments ``coco_instances`` for instance sets and
            ``coco_panoptic`` for others.
        split: ``val`` or ``test``.

    Raises:
        UserError: unknown values; data without classes of pixels; a format of segments for a method that finds none.
    """

    def __init__(self, format: str = "auto", split: str = "test") -> None:
        for name, value, known in (("format", format, FORMATS), ("split", split, SPLITS)):
            if value not in known:
                raise UserError(f"callbacks.predictions.{name}={value} must be one of {', '.join(known)}{nearest(value, known)}.")
        self.format, self.split = format, split
        self._share: Share | None = None
        self._folder = Path()

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Refuse data without classes of pixels."""
        data: Any = getattr(trainer, "datamodule", None)
        if not hasattr(data, "categories") or "semantic" not in getattr(pl_module.task, "heads", {}):
            raise UserError("callbacks=predictions needs data with a class for every pixel, such as dataset=shapes_semantic.")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin, if it is this split."""
        self._begin(trainer, "val")

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin, if it is this split."""
        self._begin(trainer, "test")

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Write a batch, if it is this split."""
        self._write(trainer, pl_module, outputs, batch, "val")

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Write a batch, if it is this split."""
        self._write(trainer, pl_module, outputs, batch, "test")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Join the shares, if it is this split."""
        self._end(trainer, "val")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Join the shares, if it is this split."""
        self._end(trainer, "test")

    def _mine(self, trainer: pl.Trainer, split: str) -> bool:
        return split == self.split and not trainer.sanity_checking

    def _begin(self, trainer: pl.Trainer, split: str) -> None:
        if not self._mine(trainer, split):
            return
        self._folder = Path(trainer.default_root_dir) / "predictions" / f".{split}.part"
        if trainer.is_global_zero:
            shutil.rmtree(self._folder, ignore_errors=True)  # of a run that was stopped
        trainer.strategy.barrier("predictions of earlier runs are removed")
        self._share = None

    def _write(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: dict[str, Tensor], split: str) -> None:
        if not self._mine(trainer, split):
            return
        # a step that gives its output saves a second pass
        output = predict(trainer, pl_module, batch, split) if outputs is None else outputs
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if self._share is None:
            form = chosen(self.format, output, getattr(data, "kind", ""))
            self._share = Share(self._folder / str(trainer.global_rank), form, data.categories, getattr(data, "image_name", None))
        self._share.add(output, batch)

    def _end(self, trainer: pl.Trainer, split: str) -> None:
        if not self._mine(trainer, split):
            return
        if self._share is not None:
            self._share.close()
        trainer.strategy.barrier("all shares of the predictions are written")
        if trainer.is_global_zero:
            join([self._folder / str(rank) for rank in range(trainer.world_size)], self._folder.with_name(split))
            shutil.rmtree(self._folder, ignore_errors=True)


def chosen(form: str, output: dict[str, Any], kind: str) -> str:
    """The format of an output of data of this kind. Raises UserError when it needs segments and there are none."""
    if form == "auto":
        return "voc" if "segments" not in output else "coco_instances" if kind == "instance" else "coco_panoptic"
    if form.startswith("coco") and "segments" not in output:
        raise UserError(f"callbacks.predictions.format={form} needs a method that finds segments, such as method=center_offset.")
    return form


class Share:
    """The predictions of one process.

    Args:
        folder: where they are written.
        form: a format other than ``auto``.
        categories: of the data, in network order.
        image_name: the publisher's name of an image by its id; None: the id.
    """

    def __init__(self, folder: Path, form: str, categories: Sequence[Any], image_name: Callable[[int], str] | None = None):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.form, self.categories, self.image_name = folder, form, categories, image_name
        self._done: set[int] = set()
        self._panoptic = PanopticWriter(folder / "panoptic.json", categories) if form == "coco_panoptic" else None
        self._instances = InstanceWriter(folder / "instances.json", categories) if form == "coco_instances" else None

    def add(self, output: dict[str, Any], batch: dict[str, Tensor]) -> None:
        """Write what a method says of a batch; images that are there already are left out."""
        for place, image_id in enumerate(batch["image_id"].tolist()):
            if image_id in self._done:
                continue
            self._done.add(image_id)
            name = self.image_name(image_id) if self.image_name else None
            if self._panoptic:
                self._panoptic.add(image_id, output["segments"][place], name)
            elif self._instances:
                found = output["segments"][place].cpu().compact()
                self._instances.add(image_id, Instances(found.masks(), found.category, found.score))
            else:
                one = {key: batch[key][place : place + 1] for key in ("image", "size", "truth_size")}
                classes = next(to_truth(output["semantic"][place : place + 1], one)).argmax(0)
                path = self.folder / f"{name or image_id}.png"
                if self.form == "voc":
                    write_voc(path, classes)
                else:
                    write_cityscapes(path, classes, self.categories)

    def close(self) -> None:
        """Finish the JSON."""
        for writer in (self._panoptic, self._instances):
            if writer:
                writer.close()


def join(shares: Sequence[Path], folder: Path) -> None:
    """Make ``folder`` of the shares of all processes, in one step; every image once, in the order of their ids."""
    whole = shares[0].with_name("whole")
    whole.mkdir(parents=True)
    for share in shares:
        for path in sorted(share.rglob("*.png")):
            place = whole / path.relative_to(share)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, place)  # an image of two shares is the same in both
    for name in sorted({path.name for share in shares for path in share.glob("*.json")}):
        parts = [read_json(share / name) for share in shares if (share / name).exists()]
        joined: Any
        if isinstance(parts[0], list):
            joined = unique(parts, "image_id")
        else:
            joined = {
                "images": unique([part["images"] for part in parts], "id"),
                "annotations": unique([part["annotations"] for part in parts], "image_id"),
                "categories": parts[0]["categories"],
            }
        (whole / name).write_text(json.dumps(joined), encoding="utf-8")
    old = whole.with_name("old")
    if folder.exists():
        folder.rename(old)
    whole.rename(folder)


def unique(parts: Iterable[list[dict[str, Any]]], key: str) -> list[dict[str, Any]]:
    """The entries of all parts, sorted by ``key``; those of an image that an earlier part has are left out."""
    entries: dict[int, list[dict[str, Any]]] = {}
    for part in parts:
        known = set(entries)
        for entry in part:
            if entry[key] not in known:
                entries.setdefault(entry[key], []).append(entry)
    return [entry for number in sorted(entries) for entry in entries[number]]
