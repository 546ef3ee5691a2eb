"""Lay out the data sets that you bring: check the publishers' archives, unpack them, say what is missing and who has it.

python scripts/prepare_data.py                                list all data sets with their state
python scripts/prepare_data.py coco_panoptic voc_segmentation unpack what lies in the data folder, say what is missing
python scripts/prepare_data.py coco_panoptic --download       get what may be got without registration, too
python scripts/prepare_data.py coco_panoptic --check          only look; exit with 1 when something is missing

Archives are looked for in --archives, in the data folder and in the set's own folder, and stay where they are. Size and checksum
are compared with the publisher's before anything is unpacked. What is there already is never overwritten, and nothing is there by
halves: an archive is unpacked into a hidden folder, counted, and then renamed. Exit with 1 unless all named sets are ready.
"""

import argparse
import glob
import hashlib
import os
import shutil
import sys
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PureWindowsPath
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from papermix.errors import UserError, nearest  # noqa: E402

CHUNK = 1 << 20


@dataclass(frozen=True)
class Archive:
    """A file as its publisher has it, and what comes out of it.

    Attributes:
        name: of the file.
        folder: where it is unpacked, below the data folder.
        parts: pattern below ``folder`` -> number of files that match it when all is there.
        size: bytes, None where the publisher's number is not known.
        digest: ``md5:...`` or ``sha256:...``.
        url: where it may be downloaded by anybody; None: see ``page``.
        page: where a person gets it, and under which condition.
        only: folder within the archive that is taken, its own name dropped; empty: all of it.
        optional: what it is for, when the set works without it.
    """

    name: str
    folder: str
    parts: dict[str, int]
    size: int | None
    digest: str
    url: str | None = None
    page: str = ""
    only: str = ""
    optional: str = ""

    def source(self) -> str:
        """Where to get it, for people."""
        return self.url or self.page


# Where these numbers stand: sizes and SHA-256 of COCO, sizes of VOC and of ImageNet's images in TensorFlow Datasets
# (url_checksums); MD5 of VOC, SBD and ImageNet in torchvision.datasets; MD5 of Cityscapes on its download page; MD5 of the Penn
# Treebank in PaddlePaddle (imikolov), its size in Kaldi; the sizes of SBD and Cityscapes in records of downloads.
COCO_IMAGES = (
    Archive(
        "train2017.zip", "coco", {"train2017/*.jpg": 118_287}, 19_336_861_798,
        "sha256:69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
        "http://images.cocodataset.org/zips/train2017.zip",
    ),
    Archive(
        "val2017.zip", "coco", {"val2017/*.jpg": 5_000}, 815_585_330,
        "sha256:4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
        "http://images.cocodataset.org/zips/val2017.zip",
    ),
)  # fmt: skip
COCO_ANNOTATIONS = Archive(
    "annotations_trainval2017.zip",
    "coco",
    {f"annotations/{kind}_{part}2017.json": 1 for kind in ("instances", "captions") for part in ("train", "val")},
    252_907_541,
    "sha256:113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
    "http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
)
COCO_PANOPTIC = Archive(
    "panoptic_annotations_trainval2017.zip",
    "coco",
    {
        "annotations/panoptic_train2017.json": 1,
        "annotations/panoptic_val2017.json": 1,
        "annotations/panoptic_train2017/*.png": 118_287,
        "annotations/panoptic_val2017/*.png": 5_000,
    },
    860_725_834,
    "sha256:c05f76d2129b6b561eb70efe16e7006df62f73fb92889132d373b9d90e31a370",
    "http://images.cocodataset.org/annotations/panoptic_annotations_trainval2017.zip",
)
VOC = Archive(
    "VOCtrainval_11-May-2012.tar",
    "VOCdevkit",
    {
        "VOC2012/JPEGImages/*.jpg": 17_125,
        "VOC2012/SegmentationClass/*.png": 2_913,
        "VOC2012/ImageSets/Segmentation/train.txt": 1,
        "VOC2012/ImageSets/Segmentation/val.txt": 1,
    },
    1_999_639_040,
    "md5:6cd6e144f989b92b3379bac3b3de84fd",
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
    only="VOCdevkit",
)
SBD = Archive(
    "benchmark.tgz",
    "benchmark_RELEASE",
    {"dataset/cls/*.mat": 11_355, "dataset/train.txt": 1, "dataset/val.txt": 1},
    1_419_539_633,
    "md5:82b4d87ceb2ed10f6038a1cba92111cb",
    "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
    only="benchmark_RELEASE",
    optional="dataset.augmented=true",
)
CITYSCAPES_PAGE = "https://www.cityscapes-dataset.com/downloads/ (after registration there)"
CITYSCAPES = (
    Archive(
        "leftImg8bit_trainvaltest.zip", "cityscapes",
        {"leftImg8bit/train/*/*_leftImg8bit.png": 2_975, "leftImg8bit/val/*/*_leftImg8bit.png": 500}, 11_592_327_197,
        "md5:0a6e97e94b616a514066c9e2adb0c97f", page=CITYSCAPES_PAGE,
    ),
    Archive(
        "gtFine_trainvaltest.zip", "cityscapes",
        {"gtFine/train/*/*_gtFine_instanceIds.png": 2_975, "gtFine/val/*/*_gtFine_instanceIds.png": 500}, 252_567_705,
        "md5:4237c19de34c8a376e9ba46b495d6f66", page=CITYSCAPES_PAGE,
    ),
)  # fmt: skip
IMAGENET_PAGE = "https://image-net.org/challenges/LSVRC/2012/2012-downloads.php (after registration there)"
# the training archive holds one archive a class, which becomes the folder of that class
IMAGENET = (
    Archive(
        "ILSVRC2012_img_train.tar", "imagenet/train", {"n*/*.JPEG": 1_281_167}, 147_897_477_120,
        "md5:1d675b47d978889d74fa0da5fadfb00e", page=IMAGENET_PAGE,
    ),
    Archive(
        "ILSVRC2012_img_val.tar", "imagenet/val", {"**/ILSVRC2012_val_*.JPEG": 50_000}, 6_744_924_160,
        "md5:29b22e2961454d5413ddabcf34fc5622", page=IMAGENET_PAGE,
    ),
    # its size is not published where its checksum is
    Archive(
        "ILSVRC2012_devkit_t12.tar.gz", "imagenet",
        {"ILSVRC2012_devkit_t12/data/meta.mat": 1, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": 1}, None,
        "md5:fa75699e90414af021442c21a62c3abf", page=IMAGENET_PAGE,
    ),
)  # fmt: skip
PTB = Archive(
    "simple-examples.tgz",
    "ptb",
    {f"ptb.{kind}{part}.txt": 1 for kind in ("", "char.") for part in ("train", "valid", "test")},
    34_869_662,
    "md5:30177ea32e27c525793142b6bf2c8e2d",
    page="http://www.fit.vutbr.cz/~imikolov/rnnlm/simple-examples.tgz (the text is under a licence, LDC99T42)",
    only="simple-examples/data",
)
SETS: dict[str, tuple[Archive, ...]] = {
    "coco_panoptic": (*COCO_IMAGES, COCO_PANOPTIC),
    "coco_instances": (*COCO_IMAGES, COCO_ANNOTATIONS),
    "coco_captions": (*COCO_IMAGES, COCO_ANNOTATIONS),
    "voc_segmentation": (VOC, SBD),
    "cityscapes_panoptic": CITYSCAPES,
    "imagenet": IMAGENET,
    "ptb": (PTB,),
}
# these get themselves, with dataset.download=true
THEMSELVES = ("cifar10", "cifar100", "svhn", "mnist", "fashion_mnist", "babi")


# what is there


def counts(archive: Archive, folder: Path) -> dict[str, int]:
    """How many files of each part of the unpacked ``archive`` are in ``folder``."""
    return {part: sum(1 for _ in glob.iglob(part, root_dir=folder, recursive=True)) for part in archive.parts}


def lacks(archive: Archive, folder: Path) -> list[str]:
    """What the unpacked ``archive`` has too little of in ``folder``, a phrase for each part; empty: all is there."""
    return [
        f"{part} has {found:,} of {archive.parts[part]:,} files" if found else f"{part} is missing"
        for part, found in counts(archive, folder).items()
        if found < archive.parts[part]
    ]


def state(archives: tuple[Archive, ...], data: Path) -> str:
    """``ready``, ``incomplete`` or ``missing``; optional archives do not count."""
    found = [(archive, counts(archive, data / archive.folder)) for archive in archives if not archive.optional]
    if all(there[part] >= wanted for archive, there in found for part, wanted in archive.parts.items()):
        return "ready"
    return "incomplete" if any(number for _, there in found for number in there.values()) else "missing"


def find(archive: Archive, places: list[Path]) -> Path | None:
    """The archive's file in the first of ``places`` that has it."""
    return next((place / archive.name for place in places if (place / archive.name).is_file()), None)


def wrong(archive: Archive, path: Path) -> str:
    """Why the file at ``path`` is not the publisher's archive; empty when it is."""
    size = path.stat().st_size
    if archive.size is not None and size != archive.size:
        return f"{size:,} bytes instead of {archive.size:,}"
    kind, _, wanted = archive.digest.partition(":")
    digest = hashlib.new(kind, usedforsecurity=False)
    with progress(f"checking {archive.name}", size) as advance, path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            advance(len(chunk))
    return "" if digest.hexdigest() == wanted else f"its {kind} is {digest.hexdigest()} instead of {wanted}"


# unpacking


def lay_out(archive: Archive, path: Path, data: Path) -> None:
    """Unpack the archive at ``path`` and put into its folder what is not there yet; all or nothing.

    Raises:
        UserError: a damaged archive, a member outside the folder, other files than the publisher's; nothing is left behind.
    """
    folder = data / archive.folder
    # a rename must not cross file systems: inside the folder where there is one, which may be a link to another disk
    place = folder if folder.is_dir() else folder.parent
    hidden = place / f".unpacking-{archive.name}"
    try:
        shutil.rmtree(hidden, ignore_errors=True)  # of a run that was killed
        hidden.mkdir(parents=True)
        free, least = shutil.disk_usage(place).free, path.stat().st_size
        if free < least:
            raise UserError(f"{place} has {free:,} bytes free, but {archive.name} needs at least {least:,}: make room there")
        _unpack(path, hidden, tuple(archive.only.split("/")) if archive.only else ())
        gaps = lacks(archive, hidden)
        if gaps:
            raise UserError(f"{path} does not hold what its publisher's does ({'; '.join(gaps)}): get it again")
        if folder.is_dir():
            _merge(hidden, folder)
        else:
            hidden.rename(folder)
    # zipfile tells of a password by RuntimeError
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        raise UserError(f"{path} cannot be unpacked ({error})") from None
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _unpack(path: Path, folder: Path, only: tuple[str, ...] = (), drop: str = "") -> None:
    """Write the files of an archive into ``folder``, those of archives within it into a folder of that archive's name.

    Args:
        only: take what is below this folder alone, without its name.
        drop: a first folder that is left out of the names.
    """
    for name, stream in _members(path):
        place = PureWindowsPath(name)  # knows both kinds of separators and drives
        parts = place.parts
        if place.anchor or ".." in parts:
            raise UserError(f"{path} is refused: its member '{name}' would be written outside of its folder")
        if parts[: len(only)] != only or parts[:1] == ("__MACOSX",):
            continue
        parts = parts[len(only) :]
        target = folder.joinpath(*(parts[1:] if drop and parts[0] == drop else parts))
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            shutil.copyfileobj(stream, file, CHUNK)
        if target.suffix in (".tar", ".zip"):
            _unpack(target, target.with_suffix(""), drop=target.stem)
            target.unlink()


def _members(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Name and content of all plain files; links and devices are left out, so that no name can lead through one."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as packed:
            for info in packed.infolist():
                if not info.is_dir():
                    with packed.open(info) as stream:
                        yield info.filename, stream
    else:
        with tarfile.open(path) as tape:
            for member in tape:
                content = tape.extractfile(member) if member.isfile() else None
                if content is not None:
                    yield member.name, content


def _merge(source: Path, target: Path) -> None:
    """Move what ``target`` does not have, whole folders at once."""
    for entry in source.iterdir():
        place = target / entry.name
        if not place.exists():
            entry.rename(place)
        elif entry.is_dir() and place.is_dir():
            _merge(entry, place)


# downloads


def download(archive: Archive, folder: Path) -> Path:
    """Get an archive into ``folder``; goes on with what ``NAME.part`` has already.

    Raises:
        UserError: no connection, one that broke off, another file than the publisher's.
    """
    assert archive.url and archive.size is not None
    path, part = folder / archive.name, folder / f"{archive.name}.part"
    folder.mkdir(parents=True, exist_ok=True)
    have = part.stat().st_size if part.is_file() else 0
    try:
        if have < archive.size:
            _fetch(archive, part, have)
    except (urllib.error.URLError, HTTPException, OSError) as error:
        raise UserError(
            f"{archive.url} cannot be got ({str(error).strip('<>')}): try again later, it goes on where it was"
        ) from None
    have = part.stat().st_size
    if have < archive.size:
        raise UserError(f"{archive.url} broke off after {have:,} of {archive.size:,} bytes: run it again to go on")
    fault = wrong(archive, part)
    if fault:
        part.unlink()  # no use in going on from there
        raise UserError(
            f"{archive.url} gave another file ({fault}): run it again, or see whether the publisher has a new version"
        )
    part.rename(path)
    return path


def _fetch(archive: Archive, part: Path, have: int) -> None:
    headers = {"User-Agent": "papermix", **({"Range": f"bytes={have}-"} if have else {})}
    with urllib.request.urlopen(urllib.request.Request(str(archive.url), headers=headers), timeout=60) as answer:
        # a server that cannot go on in the middle answers 200 and starts anew
        goes_on = answer.status == 206
        with (
            progress(f"downloading {archive.name}", archive.size, have if goes_on else 0) as advance,
            part.open("ab" if goes_on else "wb") as file,
        ):
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                advance(len(chunk))


@contextmanager
def progress(title: str, total: int | None, done: int = 0) -> Iterator[Any]:
    """A bar on a terminal's standard error; gives a function that is told how many bytes came."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total, completed=done)
        yield lambda count: bar.advance(task, count)


# the command


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="DATASET", help=f"one of {', '.join(SETS)} (default: list all)")
    folder = Path(os.environ.get("PAPERMIX_DATA", "data"))
    parser.add_argument("--data-dir", type=Path, default=folder, metavar="DIR", help=f"the data folder (default: {folder})")
    parser.add_argument(
        "--archives", type=Path, metavar="DIR", help="where archives lie, and downloads go (default: the data folder)"
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--download", action="store_true", help="get what the publisher gives without registration")
    mode.add_argument("--check", action="store_true", help="change nothing; exit with 1 when something is missing")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """List, or check and prepare; returns the exit status."""
    args = parse(arguments)
    for name in args.names:
        if name in THEMSELVES:
            raise UserError(f"{name} gets itself: python train.py dataset={name} dataset.download=true")
        if name not in SETS:
            known = [*SETS, *THEMSELVES]
            raise UserError(f"there is no data set '{name}' to prepare{nearest(name, known)}: there are {', '.join(SETS)}")
    if not args.names and not args.check:
        if args.download or args.archives:
            raise UserError(f"say which data sets: {', '.join(SETS)}")
        show_all(args.data_dir)
        return 0
    told: dict[str, tuple[str, str]] = {}
    ready = [prepare(name, args, told) for name in args.names or SETS]
    return 0 if all(ready) else 1


def show_all(data: Path) -> None:
    """A table of all data sets and their state."""
    from papermix.run.result import print_table, quantity

    lines = []
    for name, archives in SETS.items():
        size = sum(archive.size or 0 for archive in archives if not archive.optional)
        folders = dict.fromkeys(archive.folder.split("/")[0] for archive in archives if not archive.optional)
        lines.append([name, state(archives, data), ", ".join(str(data / folder) for folder in folders), f"{quantity(size)}B"])
    print_table(["data set", "state", "lies in", "archives"], lines)
    print("python scripts/prepare_data.py NAME says what is missing and unpacks what is there.")
    print(f"These get themselves with dataset.download=true: {', '.join(THEMSELVES)}.")


def prepare(name: str, args: argparse.Namespace, told: dict[str, tuple[str, str]]) -> bool:
    """Do what can be done for one data set and print how it stands; returns whether it is ready.

    Args:
        told: archive -> its state and what to do, of sets that share archives.
    """
    from papermix.run.result import print_table

    archives = SETS[name]
    for archive in archives:
        if archive.name not in told:
            told[archive.name] = treat(archive, args)
    how = state(archives, args.data_dir)
    lines = []
    for archive in archives:
        size = f"{archive.size:,}" if archive.size is not None else "unknown"
        use = f" (only for {archive.optional})" if archive.optional else ""
        lines.append([archive.name + use, size, archive.digest, told[archive.name][0]])
    print_table(["archive", "bytes", "checksum", "state"], lines, title=f"{name}: {how}")
    for archive in archives:
        if told[archive.name][1]:
            print(f"  {'optional: ' if archive.optional else ''}{told[archive.name][1]}")
    return how == "ready"


def treat(archive: Archive, args: argparse.Namespace) -> tuple[str, str]:
    """Check, get and unpack one archive as ``args`` say; returns its state in a word or two, and what is to be done."""
    data = args.data_dir
    folder = data / archive.folder
    gaps = lacks(archive, folder)
    if not gaps:
        return "ready", ""
    places = [*([args.archives] if args.archives else []), data, folder, data / archive.folder.split("/")[0]]
    get = f"get {archive.name} from {archive.source()} and put it into {places[0]}"
    path = find(archive, places)
    try:
        if path is None:
            if not (args.download and archive.url):
                some = any(counts(archive, folder).values())
                return ("incomplete", f"in {folder} {'; '.join(gaps)}: {get}") if some else ("missing", get)
            path = download(archive, places[0])
        else:
            fault = wrong(archive, path)
            if fault:
                return "damaged", f"{path} is not the publisher's ({fault}): replace it ({get}), or unpack it yourself"
        if args.check:
            return "not unpacked", f"{path} is whole: run without --check to unpack it"
        print(f"unpacking {path} into {folder}", file=sys.stderr)
        lay_out(archive, path, data)
    except UserError as error:
        return "failed", str(error)
    return "ready", ""


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
