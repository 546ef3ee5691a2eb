"""Readers of small image sets in their publishers' formats. Data is only ever read: nothing stored in a file is executed."""

import gzip
import importlib.util
import io
import pickle
import tarfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from datamodules.splits import stratified
from papermix.errors import UserError


class Images(NamedTuple):
    """Images, uint8 [examples, channels, height, width], and labels, int64 [examples], of one official part of a set."""

    image: Tensor
    label: Tensor
    where: str


Parts = tuple[Images, Images]


def damaged(path: str | Path, reason: object) -> UserError:
    """The error for a file that cannot be read."""
    return UserError(f"{path} is damaged ({reason}): delete it and get it again")


def first(names: Iterable[str], folders: Iterable[Path]) -> Path | None:
    """The first of ``names`` that exists in the first of ``folders`` that has any."""
    names = list(names)
    return next((folder / name for folder in folders for name in names if (folder / name).exists()), None)


# digits


def digits_file() -> Path | None:
    """Where scikit-learn keeps its digits; found without importing it, which takes a second."""
    spec = importlib.util.find_spec("sklearn")
    places = spec.submodule_search_locations if spec else None
    return first(["digits.csv.gz"], (Path(place) / "datasets" / "data" for place in places or ()))


def read_digits(path: Path) -> Parts:
    """Read scikit-learn's digits: 64 pixels of 0 to 16 and a label a line. A fixed fifth of each class is the test part.

    Pixels are multiplied by 15, so that they fill the range of a byte.
    """
    try:
        with gzip.open(path, "rt") as file:
            table = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.float32, ndmin=2)).long()
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise damaged(path, error) from None
    if table.shape[1] != 65:
        raise damaged(path, f"{table.shape[1]} numbers a line instead of 65")
    image, label = (table[:, :64] * 15).to(torch.uint8).view(-1, 1, 8, 8), table[:, 64].contiguous()
    # a constant of its own: no setting may move examples between test and training
    test = stratified(label, round(0.2 * len(label)), "digits", "test")
    return Images(image[~test], label[~test], str(path)), Images(image[test], label[test], str(path))


# MNIST and Fashion-MNIST


def idx_files(folders: Iterable[Path]) -> Path | None:
    """The folder that holds the four files of MNIST's format, packed or not."""
    return next((folder for folder in folders if all(_idx_path(folder, name) for name in IDX_NAMES)), None)


IDX_NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def _idx_path(folder: Path, name: str) -> Path | None:
    return first([name, f"{name}.gz"], [folder])


def read_idx(path: Path) -> Tensor:
    """Read one file of MNIST's format (magic 00 00 08 and the number of axes, then sizes as big-endian int32, then bytes)."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise damaged(path, error) from None
    if data[:3] != b"\0\0\x08" or len(data) < 4 + 4 * data[3]:
        raise damaged(path, "not a file of bytes in idx format")
    shape = np.frombuffer(data, ">i4", data[3], 4).tolist()
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3])
    if values.size != np.prod(shape):
        raise damaged(path, f"{values.size} bytes of data instead of {np.prod(shape)}")
    return torch.from_numpy(values.reshape(shape).copy())


def read_idx_set(folder: Path) -> Parts:
    """Read MNIST or a set in its format."""

    def part(images: str, labels: str) -> Images:
        image_path, label_path = _idx_path(folder, images), _idx_path(folder, labels)
        assert image_path and label_path, "idx_files looked for them"
        image, label = read_idx(image_path), read_idx(label_path)
        if image.dim() != 3 or label.shape != image.shape[:1]:
            raise damaged(label_path, f"labels of shape {list(label.shape)} for images of shape {list(image.shape)}")
        return Images(image[:, None], label.long(), str(label_path))

    return part(*IDX_NAMES[:2]), part(*IDX_NAMES[2:])


# CIFAR


class _Arrays(pickle.Unpickler):
    """Unpickles numbers, strings, lists, dicts and numpy arrays; refuses everything else before it can run."""

    _RECONSTRUCT = np.empty(0).__reduce__()[0]

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct"):
                return self._RECONSTRUCT
            case ("numpy", "ndarray"):
                return np.ndarray
            case ("numpy", "dtype"):
                return np.dtype
            case ("_codecs", "encode"):
                # how Python 3 writes bytes for Python 2
                return _encode
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no array")


def _encode(text: str, encoding: str) -> bytes:
    return text.encode(encoding)


def unpickle_arrays(data: bytes, where: str) -> dict[str, Any]:
    """Read a pickled dict of arrays, lists and strings (of Python 2 or 3) without executing anything.

    Raises:
        UserError: damaged, or holding anything else.
    """
    try:
        content = _Arrays(io.BytesIO(data), encoding="latin1").load()
    # a damaged pickle can fail in any way
    except Exception as error:
        raise damaged(where, error) from None
    if not isinstance(content, dict):
        raise damaged(where, "not a dict")
    return content


def read_cifar(path: Path, train: list[str], test: list[str], label: str) -> Parts:
    """Read CIFAR-10 or CIFAR-100 from the unpacked folder or straight from the archive.

    Args:
        path: the folder of pickled batches, or the .tar.gz that holds it.
        train, test: names of the batches.
        label: key of the labels in a batch.
    """

    def batch(name: str, data: bytes) -> Images:
        content = unpickle_arrays(data, name)
        image, labels = content.get("data"), content.get(label)
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 2 or image.shape[1] != 3072:
            raise damaged(name, "no uint8 array of 3072 numbers an image under 'data'")
        if not isinstance(labels, list) or len(labels) != len(image) or not all(isinstance(y, int) for y in labels):
            raise damaged(name, f"no list of {len(image)} labels under '{label}'")
        return Images(torch.from_numpy(image).view(-1, 3, 32, 32), torch.tensor(labels), name)

    def part(names: list[str], read: Callable[[str], bytes]) -> Images:
        batches = [batch(f"{path / name}", read(name)) for name in names]
        where = str(path / names[0]) if len(names) == 1 else str(path)
        return Images(torch.cat([b.image for b in batches]), torch.cat([b.label for b in batches]), where)

    if path.is_dir():
        return part(train, lambda name: _bytes(path / name)), part(test, lambda name: _bytes(path / name))
    try:
        with tarfile.open(path) as archive:
            members = {Path(member.name).name: member for member in archive.getmembers() if member.isfile()}

            def extract(name: str) -> bytes:
                if name not in members:
                    raise damaged(path, f"it has no {name}")
                file = archive.extractfile(members[name])
                assert file is not None, "a plain file"
                return file.read()

            return part(train, extract), part(test, extract)
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise damaged(path, error) from None


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise damaged(path.parent, f"it has no {path.name}") from None


# SVHN


def read_svhn(folder: Path, extra: bool = False) -> Parts:
    """Read SVHN's cropped digits (train_32x32.mat, test_32x32.mat; extra_32x32.mat joins the training part). 10 means digit 0."""
    from scipy.io import loadmat

    def part(name: str) -> Images:
        path = folder / f"{name}_32x32.mat"
        try:
            content = loadmat(path, variable_names=["X", "y"])
            image, label = content["X"], content["y"].reshape(-1)
        # scipy fails in many ways on a damaged file
        except Exception as error:
            raise damaged(path, error if str(error) else type(error).__name__) from None
        if image.dtype != np.uint8 or image.shape[:3] != (32, 32, 3) or image.shape[3:] != label.shape:
            raise damaged(path, f"images of shape {list(image.shape)} for labels of shape {list(label.shape)}")
        labels = torch.from_numpy(label.astype(np.int64))
        return Images(torch.from_numpy(image.transpose(3, 2, 0, 1).copy()), labels.where(labels != 10, 0), str(path))

    train = part("train")
    if extra:
        more = part("extra")
        train = Images(torch.cat([train.image, more.image]), torch.cat([train.label, more.label]), str(folder))
    return train, part("test")
