"""Writers of tiny data sets in their publishers' layouts."""

import gzip
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np

RANDOM = np.random.default_rng(0)


def write_idx(folder: Path, train: int = 30, test: int = 10, size: int = 28, packed: bool = True) -> dict[str, np.ndarray]:
    """MNIST's four files; returns what is in them."""
    folder.mkdir(parents=True)
    content = {}
    for name, count in (("train", train), ("t10k", test)):
        content[f"{name}-images-idx3-ubyte"] = RANDOM.integers(0, 256, (count, size, size), dtype=np.uint8)
        content[f"{name}-labels-idx1-ubyte"] = (np.arange(count) % 10).astype(np.uint8)
    for name, array in content.items():
        data = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(data))
        else:
            (folder / name).write_bytes(data)
    return content


class _Python2(pickle._Pickler):  # type: ignore[name-defined]
    """Pickles as Python 2 did, in which CIFAR is published: all strings are byte strings."""

    dispatch = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def _save(self, text: bytes | str) -> None:
        data = text.encode("latin1") if isinstance(text, str) else text
        self.write(b"T" + struct.pack("<i", len(data)) + data)

    dispatch[bytes] = _save
    dispatch[str] = _save


def dump_python2(content: object, path: Path) -> None:
    with path.open("wb") as file:
        _Python2(file, protocol=2).dump(content)


def write_cifar(folder: Path, classes: int = 10, archive: bool = False) -> np.ndarray:
    """CIFAR-10's or CIFAR-100's folder of batches, 20 images each, or the archive of it; returns the training images."""
    key, names = ("labels", [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"])
    base, packed = "cifar-10-batches-py", "cifar-10-python.tar.gz"
    if classes == 100:
        key, names, base, packed = "fine_labels", ["train", "test"], "cifar-100-python", "cifar-100-python.tar.gz"
    (folder / base).mkdir(parents=True)
    images = []
    for name in names:
        images.append(RANDOM.integers(0, 256, (20, 3072), dtype=np.uint8))
        labels = [n * (classes // 10) % classes for n in range(20)]
        dump_python2({"data": images[-1], key: labels, "batch_label": name, "filenames": ["a.png"] * 20}, folder / base / name)
    if archive:
        with tarfile.open(folder / packed, "w:gz") as file:
            file.add(folder / base, base)
        for name in names:
            (folder / base / name).unlink()
        (folder / base).rmdir()
    return np.concatenate(images[:-1]).reshape(-1, 3, 32, 32)


def write_svhn(folder: Path, parts: tuple[str, ...] = ("train", "test")) -> dict[str, np.ndarray]:
    """SVHN's .mat files of 20 images each, labels 1 to 10; returns the images, [32, 32, 3, 20]."""
    from scipy.io import savemat

    folder.mkdir(parents=True, exist_ok=True)
    content = {}
    for part in parts:
        content[part] = RANDOM.integers(0, 256, (32, 32, 3, 20), dtype=np.uint8)
        labels = (np.arange(20) % 10 + 1).astype(np.uint8)[:, None]
        savemat(folder / f"{part}_32x32.mat", {"X": content[part], "y": labels}, do_compression=True)
    return content


def write_images(folder: Path, names: list[str], size: tuple[int, int] = (40, 32)) -> None:
    """JPEG files of one colour each."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", size, (40 * number % 256, 100, 200)).save(folder / name, "JPEG")


def write_imagenet(folder: Path, classes: tuple[str, ...] = ("n01", "n02", "n03"), train: int = 6, val: int = 3) -> None:
    """ImageNet's folders of classes."""
    for wnid in classes:
        write_images(folder / "train" / wnid, [f"{wnid}_{n}.JPEG" for n in range(train)])
        write_images(folder / "val" / wnid, [f"ILSVRC2012_val_{wnid}_{n}.JPEG" for n in range(val)])
