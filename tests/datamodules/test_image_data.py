"""Small image sets in official layouts, and what is done with every labelled image set."""

import gzip
import hashlib
import os
import pickle
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from hydra.utils import get_class
from omegaconf import OmegaConf
from torchvision.datasets import CIFAR10

from datamodules import readers
from datamodules.images import SOURCES, SmallImages, fit
from papermix.errors import UserError
from tests.datamodules.official import dump_python2, write_cifar, write_idx, write_svhn

CONF = Path(__file__).parents[2] / "conf" / "dataset"


def option(name, **changes):
    """The datamodule of ``conf/dataset/<name>.yaml`` with some keys changed."""
    root = OmegaConf.create({"seed": 1, "paths": {"data": "nowhere"}, "dataset": OmegaConf.load(CONF / f"{name}.yaml")})
    for key, value in changes.items():
        OmegaConf.update(root, f"dataset.{key}", value)
    dataset = OmegaConf.to_container(root, resolve=True)["dataset"]
    assert dataset.pop("task")["num_classes"] == dataset["num_classes"] and dataset.pop("_gives_") == [
        "image",
        "label",
        "classes",
    ]
    return get_class(dataset.pop("_target_"))(**dataset)


def ready(name, **changes):
    data = option(name, **changes)
    data.prepare_data()
    data.setup()
    return data


def digits(**changes):
    return ready("digits", **changes)


def cifar(folder, **changes):
    write_cifar(folder)
    return ready("cifar10", **{"data_dir": str(folder), "val_fraction": 20, "batch_size": 8, **changes})


# each set in its layout


def test_digits_have_fixed_stratified_splits():
    data = digits()
    sizes = {split: len(tensors["label"]) for split, tensors in data.tensors.items()}
    assert sizes == {"train": 1222, "val": 216, "test": 359}
    other = digits(split_seed=1, seed=5)
    assert torch.equal(data.tensors["test"]["image"], other.tensors["test"]["image"]), "no setting touches the test split"
    assert not torch.equal(data.rows["val"], other.rows["val"])
    assert torch.equal(data.rows["val"], digits(seed=9).rows["val"])
    for tensors in data.tensors.values():
        assert (tensors["label"].bincount() / len(tensors["label"]) - 0.1).abs().max() < 0.01
        assert tensors["image"].dtype == torch.uint8 and tensors["image"].max() == 240
    path = readers.digits_file()
    table = gzip.decompress(path.read_bytes()).decode().splitlines()
    lines = {tuple(map(float, line.split(","))) for line in table}
    for tensors in data.tensors.values():
        for image, label in zip(tensors["image"], tensors["label"]):
            assert (*(image.flatten() / 15).tolist(), float(label)) in lines
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (64, 1, 8, 8) and batch["image"].dtype == torch.float32
    assert batch["label"].dtype == batch["index"].dtype == torch.int64
    values = torch.cat([batch["image"].flatten() for batch in data.loader("train")])
    assert abs(values.mean()) < 0.1 and abs(values.std() - 1) < 0.1


def test_digits_are_found_without_importing_sklearn(monkeypatch):
    monkeypatch.delitem(sys.modules, "sklearn", raising=False)
    assert readers.digits_file().exists() and "sklearn" not in sys.modules


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name, folder", [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_mnist_layout(tmp_path, name, folder, packed):
    content = write_idx(tmp_path / folder / "raw", packed=packed)
    data = ready(name, data_dir=str(tmp_path), val_fraction=0, batch_size=10)
    assert data.val_dataloader() == [] and set(data.tensors) == {"train", "test"}
    for split, part in (("train", "train"), ("test", "t10k")):
        assert data.tensors[split]["image"].squeeze(1).tolist() == content[f"{part}-images-idx3-ubyte"].tolist()
        assert data.tensors[split]["label"].tolist() == content[f"{part}-labels-idx1-ubyte"].tolist()


@pytest.mark.parametrize("archive", [False, True])
@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("own", [False, True])
def test_cifar_layout(tmp_path, archive, classes, own):
    images = write_cifar(tmp_path / f"cifar{classes}" if own else tmp_path, classes, archive)
    data = ready(f"cifar{classes}", data_dir=str(tmp_path), val_fraction=0, batch_size=10)
    assert data.tensors["train"]["image"].tolist() == images.tolist()
    assert data.tensors["train"]["label"][:20].tolist() == [n * (classes // 10) % classes for n in range(20)]
    assert len(data.tensors["test"]["label"]) == 20
    assert len(data.class_names) == classes


@pytest.mark.parametrize("source, parts", [("svhn", ("train", "test")), ("svhn_extra", ("train", "extra", "test"))])
def test_svhn_layout(tmp_path, source, parts):
    content = write_svhn(tmp_path / "svhn", parts)
    data = ready("svhn", data_dir=str(tmp_path), source=source, val_fraction=0, batch_size=10)
    train = data.tensors["train"]
    assert len(train["label"]) == 20 * (len(parts) - 1)
    assert train["label"][:11].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1], "10 stands for the digit 0"
    assert train["image"][3].permute(1, 2, 0).tolist() == content["train"][..., 3].tolist()


def test_names_of_classes():
    for name, source in SOURCES.items():
        assert source.class_names and len(set(source.class_names)) == (100 if name == "cifar100" else 10)
    assert list(SOURCES["cifar100"].class_names) == sorted(SOURCES["cifar100"].class_names)


@pytest.mark.parametrize("channels, size", [(3, 8), (1, 12), (3, 16), (1, 5)])
def test_images_are_converted_to_the_wanted_shape(channels, size):
    data = digits(in_chans=channels, image_size=size, limit=20)
    image = data.tensors["train"]["image"]
    assert image.shape == (20, channels, size, size) and image.dtype == torch.uint8
    assert torch.equal(image, image[:, :1].expand_as(image))
    native = digits(limit=20).tensors["train"]["image"].double().mean()
    assert abs(image.double().mean() - native) < 3


def test_colour_turns_to_luma():
    images = torch.tensor([255, 0, 0], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert torch.equal(fit(images, 1, 4), torch.full((1, 1, 4, 4), 76, dtype=torch.uint8))
    assert fit(images, 3, 4) is images


# what is done with the labels


def test_validation_comes_from_the_training_part_and_nothing_is_in_two_splits(tmp_path):
    data = cifar(tmp_path)
    train, val = data.rows["train"], data.rows["val"]
    assert len(train) == 80 and len(val) == 20 and set(train.tolist()) | set(val.tolist()) == set(range(100))
    assert data.tensors["val"]["label"].bincount().tolist() == [2] * 10


def test_batch_order_follows_seed_and_composition_follows_split_seed(tmp_path):
    a, b = cifar(tmp_path / "a", seed=1), None
    b = ready("cifar10", data_dir=str(tmp_path / "a"), val_fraction=20, batch_size=8, seed=2)
    assert torch.equal(a.rows["train"], b.rows["train"])
    x, y = (next(iter(data.train_dataloader())) for data in (a, b))
    assert not torch.equal(x["index"], y["index"])
    again = next(iter(a.train_dataloader()))
    assert all(torch.equal(x[name], again[name]) for name in x)


@pytest.mark.parametrize("kind", ["uniform", "flip"])
def test_label_noise_is_in_training_only_and_the_truth_is_kept(kind):
    data, clean = digits(**{"label_noise.kind": kind, "label_noise.rate": 0.25}), digits()
    train = data.tensors["train"]
    assert torch.equal(train["clean_label"], clean.tensors["train"]["label"])
    assert int((train["label"] != train["clean_label"]).sum()) == round(0.25 * 1222)
    assert "clean_label" in next(iter(data.train_dataloader()))
    for split in ("val", "test"):
        assert torch.equal(data.tensors[split]["label"], clean.tensors[split]["label"])
        assert set(data.tensors[split]) == {"label", "image"}
    assert torch.equal(digits(**{"label_noise.kind": kind, "label_noise.rate": 0.25}).tensors["train"]["label"], train["label"])


def test_imbalance_and_labels_fraction_thin_out_training_only():
    data = digits(imbalance=10)
    counts = data.tensors["train"]["label"].bincount()
    assert counts[0] == 121 and counts[9] == 12 and (counts.diff() < 3).all()
    assert len(data.tensors["val"]["label"]) == 216
    few = digits(labels_fraction=0.01, batch_size=10)
    assert few.tensors["train"]["label"].bincount().tolist() == [1] * 10
    assert len(few.tensors["test"]["label"]) == 359


def test_limit_is_stratified_and_for_every_split():
    data = digits(limit=250)
    assert {split: len(tensors["label"]) for split, tensors in data.tensors.items()} == {"train": 250, "val": 216, "test": 250}
    assert (data.tensors["train"]["label"].bincount() - 25).abs().max() <= 1


@pytest.mark.parametrize("name", ["digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "svhn", "imagenet"])
def test_fake_data_has_the_true_shapes_and_touches_no_file(name, monkeypatch):
    monkeypatch.setattr(readers, "first", lambda *_: pytest.fail("it looked for a file"))
    data = ready(name, fake=True, batch_size=4, **{"label_noise.kind": "flip", "label_noise.rate": 0.5})
    shape = (4, data.in_chans, data.image_size, data.image_size)
    for loader, batches in ((data.train_dataloader(), 4), (data.val_dataloader(), 1), (data.test_dataloader(), 1)):
        assert len(loader) == batches and all(batch["image"].shape == shape for batch in loader)
    assert len(ready(name, fake=True, batch_size=4, limit=9).train_dataloader()) == 2


def test_mixing_adds_soft_labels_to_training_batches():
    data = digits(**{"augment.mixup": 0.3})
    assert next(iter(data.train_dataloader()))["label_soft"].shape == (64, 10)
    assert "label_soft" not in next(iter(data.val_dataloader()))


# what goes wrong


class _Trap:
    """Unpickling it without care makes a folder."""

    def __init__(self, folder="sprung"):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("content", [_Trap(), {"data": _Trap(), "labels": []}, {"data": eval}, [1]])
def test_a_pickle_that_holds_more_than_arrays_is_refused_and_not_run(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"b is damaged .*: delete it and get it again"):
        readers.unpickle_arrays(pickle.dumps(content), "b")
    assert list(tmp_path.iterdir()) == []
    pickle.loads(pickle.dumps(_Trap()))
    assert (tmp_path / "sprung").is_dir(), "the trap works where there is no care"


def test_python_3_pickles_are_read_too():
    image = torch.zeros(2, 3072, dtype=torch.uint8).numpy()
    content = readers.unpickle_arrays(pickle.dumps({"data": image, "labels": [1, 2]}, protocol=2), "b")
    assert content["data"].tolist() == image.tolist() and content["labels"] == [1, 2]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "name, write, file",
    [
        ("fashion_mnist", lambda folder: write_idx(folder / "FashionMNIST/raw"), "FashionMNIST/raw/train-images-idx3-ubyte.gz"),
        ("mnist", lambda folder: write_idx(folder / "MNIST/raw", packed=False), "MNIST/raw/t10k-images-idx3-ubyte"),
        ("cifar10", write_cifar, "cifar-10-batches-py/data_batch_3"),
        ("cifar10", lambda folder: write_cifar(folder, archive=True), "cifar-10-python.tar.gz"),
        ("cifar100", lambda folder: write_cifar(folder, 100), "cifar-100-python/test"),
        ("svhn", lambda folder: write_svhn(folder / "svhn"), "svhn/train_32x32.mat"),
    ],
)
def test_a_truncated_file_is_named(tmp_path, name, write, file):
    write(tmp_path)
    cut(tmp_path / file)
    with pytest.raises(UserError) as error:
        ready(name, data_dir=str(tmp_path), val_fraction=0)
    assert str(error.value).startswith(f"{tmp_path / file} is damaged (") and "\n" not in str(error.value)


def test_files_of_another_shape_are_named(tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    write_idx(folder)
    (folder / "train-labels-idx1-ubyte").write_bytes(b"\0\0\x08\1\0\0\0\2\0\1")
    with pytest.raises(
        UserError, match=r"train-labels-idx1-ubyte is damaged \(labels of shape \[2\] for images of shape \[30, 28, 28\]\)"
    ):
        readers.read_idx_set(folder)
    (folder / "x").write_bytes(b"GIF89a")
    with pytest.raises(UserError, match="not a file of bytes in idx format"):
        readers.read_idx(folder / "x")
    for content, words in (
        ({"data": 1}, "no uint8 array"),
        ({"data": torch.zeros(2, 3072).byte().numpy()}, "no list of 2 labels"),
    ):
        (tmp_path / "c").mkdir(exist_ok=True)
        dump_python2(content, tmp_path / "c" / "train")
        with pytest.raises(UserError, match=words):
            readers.read_cifar(tmp_path / "c", ["train"], [], "labels")
    with pytest.raises(UserError, match="it has no test"):
        readers.read_cifar(tmp_path / "c", ["test"], [], "labels")
    (tmp_path / "digits.csv.gz").write_bytes(gzip.compress(b"1,2\n3,4\n"))
    with pytest.raises(UserError, match="2 numbers a line instead of 65"):
        readers.read_digits(tmp_path / "digits.csv.gz")


@pytest.mark.parametrize(
    "name, words",
    [
        ("mnist", "MNIST is not in {}: set dataset.download=true, or put the four .gz files of its publisher in {}/MNIST/raw"),
        ("cifar10", "CIFAR-10 is not in {}: set dataset.download=true, or put cifar-10-python.tar.gz in {}, or try dataset.fake"),
        ("cifar100", "CIFAR-100 is not in {}: set dataset.download=true, or put cifar-100-python.tar.gz in {}"),
        ("svhn", "SVHN is not in {}: set dataset.download=true, or put train_32x32.mat and test_32x32.mat in {}/svhn"),
    ],
)
def test_missing_data_says_what_to_get(tmp_path, name, words):
    with pytest.raises(UserError) as error:
        ready(name, data_dir=str(tmp_path), download=False)
    assert words.replace("{}", str(tmp_path)) in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["mnist", "cifar10", "svhn"])
def test_a_failed_download_says_what_to_get(tmp_path, name, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network\nsecond line")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(UserError) as error:
        ready(name, data_dir=str(tmp_path / "data"))
    assert "could not be downloaded (" in str(error.value) and ": put " in str(error.value) and "\n" not in str(error.value)


@pytest.fixture
def publisher(tmp_path):
    """A web server on this machine whose pages lie in ``publisher/``; yields its address."""
    (tmp_path / "publisher").mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path / "publisher")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_download_gets_the_checked_archive_once(tmp_path, monkeypatch, publisher):
    write_cifar(tmp_path / "publisher", archive=True)
    archive = tmp_path / "publisher" / "cifar-10-python.tar.gz"
    monkeypatch.setattr(CIFAR10, "url", f"{publisher}/{archive.name}")
    with pytest.raises(UserError, match="could not be downloaded"):
        ready("cifar10", data_dir=str(tmp_path / "data"), val_fraction=0, batch_size=10)
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    (tmp_path / "data" / "cifar-10-python.tar.gz").unlink()
    data = ready("cifar10", data_dir=str(tmp_path / "data"), val_fraction=0, batch_size=10)
    assert len(data.tensors["train"]["label"]) == 100
    archive.unlink()
    data.prepare_data()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"source": "cifar"}, "dataset.source=cifar is not known (did you mean 'cifar10'?): use one of digits, mnist"),
        ({"in_chans": 2}, "dataset.in_chans=2 must be 1 (gray) or 3 (colour)"),
        ({"mean": [0.1, 0.2]}, "dataset.mean has 2 numbers for dataset.in_chans=1"),
        ({"label_noise": {"typ": "flip"}}, "dataset.label_noise has no 'typ'"),
        ({"label_noise.rate": 0.5}, "dataset.label_noise.rate=0.5 does nothing without a kind"),
        ({"imbalance": 0.1}, "dataset.imbalance=0.1 must be at least 1"),
        ({"labels_fraction": 1.5}, "dataset.labels_fraction=1.5 must be above 0 and at most 1"),
        ({"limit": 0}, "dataset.limit=0 must be at least 1"),
        ({"batch_size": 0}, "dataset.batch_size=0 must be at least 1"),
        ({"augment.blur": 1}, "dataset.augment has no 'blur'"),
        ({"val_fraction": 2000}, "dataset.val_fraction=2000 takes 2000 of 1438 examples"),
        ({"limit": 1222}, "dataset.limit=1222 limits nothing: the largest split has 1222 examples"),
        ({"num_classes": 9}, "has label 9, but dataset.num_classes=9 allows 0 to 8: raise it to at least 10"),
        ({"batch_size": 1223}, "dataset.batch_size=1223 is larger than the train split of 1222 examples"),
    ],
)
def test_bad_settings_are_refused(changes, words):
    with pytest.raises(UserError) as error:
        digits(**changes).train_dataloader()
    assert words in str(error.value)


def test_the_first_bad_label_is_named(tmp_path):
    write_cifar(tmp_path)
    dump_python2(
        {"data": torch.zeros(3, 3072).byte().numpy(), "labels": [1, 12, 11]}, tmp_path / "cifar-10-batches-py/test_batch"
    )
    with pytest.raises(UserError) as error:
        ready("cifar10", data_dir=str(tmp_path), val_fraction=0)
    assert f"{tmp_path}/cifar-10-batches-py/test_batch: sample 1 has label 12, but" in str(error.value)


def test_an_empty_set_is_named(tmp_path):
    write_idx(tmp_path / "MNIST" / "raw", test=0)
    with pytest.raises(UserError, match=r"t10k-labels-idx1-ubyte\.gz has no examples"):
        ready("mnist", data_dir=str(tmp_path), val_fraction=0)


class _World:
    """The parts of a trainer that a datamodule asks."""

    overfit_batches = 0.0

    def __init__(self, rank, world):
        self.global_rank, self.world_size = rank, world
        self.strategy = type("Strategy", (), {"root_device": torch.device("cpu")})()


def test_processes_share_the_batch_of_one():
    def batches(rank, world, **changes):
        data = option("digits", **{"augment.mixup": 0.2, "augment.cutmix": 1, **changes})
        data.trainer = _World(rank, world)
        data.setup()
        return list(data.train_dataloader())

    whole, first, second = batches(0, 1), batches(0, 2), batches(1, 2)
    for one, a, b in zip(whole, first, second):
        assert all(torch.equal(one[name], torch.cat([a[name], b[name]])) for name in one)
    with pytest.raises(UserError, match="cannot be shared by 3 processes: use 63 or 66"):
        batches(0, 3)
    with pytest.raises(UserError, match=r"mix pairs, but each of 2 processes gets 3 images: use dataset\.batch_size=8"):
        batches(0, 2, batch_size=6)


def test_overfitting_repeats_the_same_batches():
    data = option("digits")
    data.trainer = _World(0, 1)
    data.trainer.overfit_batches = 1
    data.setup()
    loader = data.train_dataloader()
    first = list(loader)
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(first, loader))


def test_a_plain_datamodule_needs_no_config():
    data = SmallImages("digits", num_classes=10, in_chans=1, image_size=8, mean=[0.3], std=[0.35], batch_size=32)
    data.setup()
    assert len(data.train_dataloader()) == 40
