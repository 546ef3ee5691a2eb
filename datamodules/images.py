"""Labelled images: how they are split, thinned out, spoilt with label noise, and the small sets that fit into memory."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules import readers, splits
from datamodules.augment import Normalize, gray, make_augment
from datamodules.base import DataModule
from datamodules.loaders import Batch, IndexLoader, TensorLoader, generator
from datamodules.readers import Parts
from papermix.errors import UserError, nearest

SPLITS = ("train", "val", "test")


class ImageData(DataModule):
    """Base of labelled image sets: official training and test parts -> splits train, val and test.

    Subclasses give ``read_labels`` and ``image_loader``. A batch holds `image` float32 [B, C, H, W], normalised and (train)
    augmented; `label` int64 [B]; `index` int64 [B], the place in its split; with label noise `clean_label` int64 [B] (train);
    with mixup or CutMix `label_soft` float32 [B, num_classes] (train).

    The training part is worked on in this order: validation split, ``imbalance``, ``labels_fraction``, ``limit``, label noise.
    All of it is stratified and drawn from ``split_seed``, never from ``seed``. The test part is only ever cut by ``limit``.

    Args:
        num_classes, in_chans, image_size: facts about the images that come out.
        mean, std: per channel (or one number) in units of 0 to 1.
        batch_size: global batch size, over all processes.
        augment: see :func:`datamodules.augment.make_augment`.
        val_fraction: see :func:`datamodules.splits.validation_count`.
        split_seed: of the validation split and of what else is drawn once.
        label_noise: ``{kind, rate}``, see :func:`datamodules.splits.noisy`.
        imbalance: see :func:`datamodules.splits.long_tail`; 1 is off.
        labels_fraction: see :func:`datamodules.splits.label_subset`; 1 is off.
        fake: random bytes of the true shape: four batches for training and one for each evaluation, or ``limit`` examples.
        limit: at most so many examples of each split, stratified.
        seed: of the order and of the augmentation.

    Raises:
        UserError: values out of range (here); damaged or missing data, labels beyond ``num_classes`` (in ``setup``).
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_chans: int,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int,
        augment: Mapping[str, Any] | None = None,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        label_noise: Mapping[str, Any] | None = None,
        imbalance: float = 1.0,
        labels_fraction: float = 1.0,
        fake: bool = False,
        limit: int | None = None,
        seed: int = 0,
    ):
        super().__init__(batch_size, fake=fake, limit=limit, seed=seed)
        if in_chans not in (1, 3):
            raise UserError(f"dataset.in_chans={in_chans} must be 1 (gray) or 3 (colour)")
        for name, value in (("mean", mean), ("std", std)):
            if len(value) not in (1, in_chans):
                raise UserError(
                    f"dataset.{name} has {len(value)} numbers for dataset.in_chans={in_chans}: give one or {in_chans}"
                )
        noise = dict(label_noise or {})
        for key in noise.keys() - {"kind", "rate"}:
            raise UserError(f"dataset.label_noise has no '{key}'{nearest(key, ('kind', 'rate'))}: it knows kind and rate")
        self.noise_kind, self.noise_rate = noise.get("kind"), noise.get("rate", 0.0)
        splits.check_noise(self.noise_kind, self.noise_rate)
        splits.check_composition(imbalance, labels_fraction)
        self.num_classes, self.in_chans, self.image_size = num_classes, in_chans, image_size
        self.val_fraction, self.split_seed = val_fraction, split_seed
        self.imbalance, self.labels_fraction = imbalance, labels_fraction
        self.plain = Normalize(mean, std)
        self.augment = make_augment(augment, mean, std, num_classes, image_size)
        # by split: labels and what else lies in memory, and where the examples stand in the official parts
        self.tensors: dict[str, Batch] = {}
        self.rows: dict[str, Tensor] = {}

    def read_labels(self) -> tuple[tuple[Tensor, str], tuple[Tensor, str]]:
        """Read the official training and test parts; return for each its labels and its place, for messages."""
        raise NotImplementedError

    def image_loader(self, split: str, tensors: Batch, train: bool, **settings: Any) -> IndexLoader:
        """Return the loader of the examples ``self.rows[split]`` when ``tensors`` holds their labels but not their images.

        Args:
            train: whether the images are for training, cropped at random.
        """
        raise NotImplementedError

    def load(self) -> None:
        if self.fake:
            self._fake()
        else:
            self._choose()
        if self.noise_kind is not None:
            train = self.tensors["train"]
            train["clean_label"] = train["label"]
            train["label"] = splits.noisy(
                train["label"], self.noise_kind, self.noise_rate, self.num_classes, self.split_seed, "noise"
            )

    def _fake(self) -> None:
        shape = (self.in_chans, self.image_size, self.image_size)
        for split in SPLITS if self.val_fraction else ("train", "test"):
            count = self.limit or self.batch_size * (4 if split == "train" else 1)
            image = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator("fake", split))
            self.tensors[split] = {"image": image, "label": torch.arange(count) % self.num_classes}

    def _choose(self) -> None:
        (train, train_place), (test, test_place) = self.read_labels()
        for labels, place in ((train, train_place), (test, test_place)):
            self._check_labels(labels, place)
        key = self.split_seed
        count = splits.validation_count(len(train), self.val_fraction)
        held_out = splits.stratified(train, count, key, "val")
        rows = {"train": (~held_out).nonzero()[:, 0], "val": held_out.nonzero()[:, 0], "test": torch.arange(len(test))}
        if self.imbalance > 1:
            thin = splits.long_tail(train[rows["train"]], self.num_classes, self.imbalance, key, "imbalance")
            rows["train"] = rows["train"][thin]
        if self.labels_fraction < 1:
            labelled = splits.label_subset(train[rows["train"]], self.labels_fraction, key, "labelled")
            rows["train"] = rows["train"][labelled]
        largest = max(len(chosen) for chosen in rows.values())
        if self.limit is not None and self.limit >= largest:
            raise UserError(
                f"dataset.limit={self.limit} limits nothing: the largest split has {largest} examples; set it to null"
            )
        for split, chosen in rows.items():
            labels = (test if split == "test" else train)[chosen]
            if self.limit is not None and self.limit < len(chosen):
                mask = splits.stratified(labels, self.limit, key, "limit", split)
                chosen, labels = chosen[mask], labels[mask]
            if len(chosen):
                self.rows[split], self.tensors[split] = chosen, {"label": labels}

    def _check_labels(self, labels: Tensor, place: str) -> None:
        if not len(labels):
            raise UserError(f"{place} has no examples: get the data again, or try dataset.fake=true")
        bad = ((labels < 0) | (labels >= self.num_classes)).nonzero()
        if len(bad):
            sample = int(bad[0])
            raise UserError(
                f"{place}: sample {sample} has label {int(labels[sample])}, but dataset.num_classes={self.num_classes} "
                f"allows 0 to {self.num_classes - 1}: raise it to at least {int(labels.max()) + 1}"
            )

    def eval_dataloader(self, split: str) -> IndexLoader:
        """Return a loader of a split in its own order and without augmentation: the training images too, to be looked at."""
        loader = self.loader(split, evaluate=True)
        if loader is None:
            raise UserError(f"there is no {split} split to evaluate: set dataset.val_fraction above 0")
        return loader

    def loader(self, split: str, evaluate: bool = False) -> IndexLoader | None:
        if split not in self.tensors:
            return None
        train = split == "train" and not evaluate
        share = self.batch_size // self.world
        if train and self.world > 1 and share % 2 and (self.augment.mixup or self.augment.cutmix):
            raise UserError(
                f"dataset.augment.mixup and cutmix mix pairs, but each of {self.world} processes gets {share} images: "
                f"use dataset.batch_size={(share + 1) * self.world}"
            )
        settings: dict[str, Any] = {
            "batch_size": self.batch_size,
            "seed": self.seed,
            "shuffle": train,
            "drop_last": train,
            "rank": self.rank,
            "world": self.world,
            "frozen": self.frozen,
            "name": split,
            "transform": self.augment if train else self.plain,
            "device": self.device,
        }
        tensors = self.tensors[split]
        if "image" in tensors:
            return TensorLoader(tensors, **settings)
        return self.image_loader(split, tensors, train, **settings)


@dataclass(frozen=True)
class Source:
    """A small image set: where it may lie, how it is read and got.

    Attributes:
        title: its name, for messages.
        find: data folder -> what to read, or None.
        read: what ``find`` returned -> the official parts.
        cure: what a person can do when it is missing; ``{folder}`` stands for the data folder.
        download: gets it from the publisher into the data folder; None: it comes with a package.
        class_names: in the order of the labels.
    """

    title: str
    find: Callable[[Path], Path | None]
    read: Callable[[Path], Parts]
    cure: str
    download: Callable[[Path], None] | None = None
    class_names: tuple[str, ...] | None = None


def _find_mnist(folder: Path, *, name: str, packaged: str | None = None) -> Path | None:
    return readers.idx_files([folder / name / "raw", folder / name, *([Path(packaged)] if packaged else [])])


def _download_mnist(folder: Path, *, name: str) -> None:
    from torchvision import datasets

    getattr(datasets, name)(folder, download=True)


def _find_cifar(folder: Path, *, names: tuple[str, str], own: str) -> Path | None:
    return readers.first(names, (folder, folder / own))


def _download_cifar(folder: Path, *, name: str) -> None:
    from torchvision import datasets
    from torchvision.datasets.utils import download_and_extract_archive

    # not the class itself: it would unpickle what it got
    source = getattr(datasets, name)
    download_and_extract_archive(source.url, folder, filename=source.filename, md5=source.tgz_md5)


def _find_svhn(folder: Path, *, parts: tuple[str, ...]) -> Path | None:
    places = (folder, folder / "svhn", folder / "SVHN")
    return next((place for place in places if all((place / f"{part}_32x32.mat").exists() for part in parts)), None)


def _download_svhn(folder: Path, *, parts: tuple[str, ...]) -> None:
    from torchvision.datasets import SVHN
    from torchvision.datasets.utils import download_url

    for part in parts:
        url, name, md5 = SVHN.split_list[part]
        download_url(url, folder / "svhn", name, md5)


DIGITS = tuple("0123456789")
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR100 = tuple(
    """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
    man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
    pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
    skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
    tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm""".split()
)
_FASHION = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_IDX = "put the four .gz files of its publisher in {folder}/%s/raw"
_FIVE = [f"data_batch_{n}" for n in range(1, 6)]


def _svhn(parts: tuple[str, ...]) -> Source:
    return Source(
        title="SVHN",
        find=partial(_find_svhn, parts=parts),
        read=partial(readers.read_svhn, extra="extra" in parts),
        cure="put " + " and ".join(f"{part}_32x32.mat" for part in parts) + " in {folder}/svhn",
        download=partial(_download_svhn, parts=parts),
        class_names=DIGITS,
    )


SOURCES = {
    "digits": Source(
        title="scikit-learn's digits",
        find=lambda folder: readers.digits_file(),
        read=readers.read_digits,
        cure="install scikit-learn (pip install scikit-learn), which holds them",
        class_names=DIGITS,
    ),
    "mnist": Source(
        title="MNIST",
        find=partial(_find_mnist, name="MNIST"),
        read=readers.read_idx_set,
        cure=_IDX % "MNIST",
        download=partial(_download_mnist, name="MNIST"),
        class_names=DIGITS,
    ),
    "fashion_mnist": Source(
        title="Fashion-MNIST",
        # Debian's package dataset-fashion-mnist
        find=partial(_find_mnist, name="FashionMNIST", packaged="/usr/share/datasets/fashion-mnist"),
        read=readers.read_idx_set,
        cure=_IDX % "FashionMNIST" + ", or install Debian's package dataset-fashion-mnist",
        download=partial(_download_mnist, name="FashionMNIST"),
        class_names=_FASHION,
    ),
    "cifar10": Source(
        title="CIFAR-10",
        find=partial(_find_cifar, names=("cifar-10-batches-py", "cifar-10-python.tar.gz"), own="cifar10"),
        read=partial(readers.read_cifar, train=_FIVE, test=["test_batch"], label="labels"),
        cure="put cifar-10-python.tar.gz in {folder}",
        download=partial(_download_cifar, name="CIFAR10"),
        class_names=_CIFAR10,
    ),
    "cifar100": Source(
        title="CIFAR-100",
        find=partial(_find_cifar, names=("cifar-100-python", "cifar-100-python.tar.gz"), own="cifar100"),
        read=partial(readers.read_cifar, train=["train"], test=["test"], label="fine_labels"),
        cure="put cifar-100-python.tar.gz in {folder}",
        download=partial(_download_cifar, name="CIFAR100"),
        class_names=_CIFAR100,
    ),
    "svhn": _svhn(("train", "test")),
    "svhn_extra": _svhn(("train", "extra", "test")),
}


def fit(images: Tensor, channels: int, size: int) -> Tensor:
    """Give uint8 images [N, C, H, W] the wanted channels (1 or 3) and side; return uint8 [N, channels, size, size]."""
    if images.shape[1:] == (channels, size, size):
        return images

    def change(part: Tensor) -> Tensor:
        part = part.float() if channels == 3 else gray(part.float())
        if part.shape[-2:] != (size, size):
            part = F.interpolate(part, (size, size), mode="bilinear", antialias=True)
        return part.round_().clamp_(0, 255).to(torch.uint8).expand(-1, channels, -1, -1)

    # in parts: as floats all images at once might not fit into memory
    return torch.cat([change(part) for part in images.split(1000)])


class SmallImages(ImageData):
    """A set that fits into memory: read once, kept as bytes on the training device, cut into batches and augmented there.

    Args:
        source: one of ``SOURCES``.
        image_size: when it is not the set's own, images are resized once (bilinear, antialiased).
        in_chans: 1 or 3; gray images are repeated, coloured ones turned to luma.
        data_dir: where data sets lie; a download goes there.
        download: get what is missing from its publisher.
        others: see :class:`ImageData`.
    """

    def __init__(self, source: str, *, data_dir: str = "data", download: bool = True, **others: Any):
        if source not in SOURCES:
            raise UserError(f"dataset.source={source} is not known{nearest(source, SOURCES)}: use one of {', '.join(SOURCES)}")
        super().__init__(**others)
        self.source = SOURCES[source]
        self.data_dir, self.download = Path(data_dir), download
        self.class_names = self.source.class_names

    def prepare_data(self) -> None:
        """Download what is missing; Lightning calls this in one process per machine."""
        download = self.source.download
        if self.fake or not self.download or download is None or self.source.find(self.data_dir):
            return
        from filelock import FileLock

        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            with FileLock(self.data_dir / ".download.lock"):
                # another run may have got it while this one waited
                if not self.source.find(self.data_dir):
                    download(self.data_dir)
        # torchvision reports a failed download or a wrong checksum as RuntimeError
        except (OSError, RuntimeError) as error:
            reason = str(error).partition("\n")[0].rstrip(":")
            raise UserError(f"{self.source.title} could not be downloaded ({reason}): {self._cure}") from None

    @property
    def _cure(self) -> str:
        return self.source.cure.format(folder=self.data_dir) + ", or try dataset.fake=true"

    def read_labels(self) -> tuple[tuple[Tensor, str], tuple[Tensor, str]]:
        path = self.source.find(self.data_dir)
        if path is None:
            cure = "" if self.source.download is None or self.download else "set dataset.download=true, or "
            raise UserError(f"{self.source.title} is not in {self.data_dir}: {cure}{self._cure}")
        train, test = self.source.read(path)
        self._parts = {"train": train, "val": train, "test": test}
        return (train.label, train.where), (test.label, test.where)

    def load(self) -> None:
        super().load()
        for split, rows in self.rows.items():
            self.tensors[split]["image"] = fit(self._parts[split].image[rows], self.in_chans, self.image_size)
        self._parts = {}
