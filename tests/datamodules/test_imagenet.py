"""ImageNet's folders, flat validation folders, subsets of classes, damaged files, workers."""

import shutil

import pytest
import torch
from PIL import Image

from datamodules.imagenet import ImageFolders
from papermix.errors import UserError
from tests.datamodules.official import write_imagenet, write_images

FACTS = {"in_chans": 3, "mean": [0.5], "std": [0.25], "image_size": 16, "resize": 20, "batch_size": 4, "workers": 0}


def folders(path, **changes):
    return ImageFolders(data_dir=str(path), **{**FACTS, "num_classes": 3, "val_fraction": 3, **changes})


def ready(path, **changes):
    data = folders(path, **changes)
    data.setup()
    return data


@pytest.fixture
def imagenet(tmp_path):
    write_imagenet(tmp_path / "imagenet")
    return tmp_path / "imagenet"


def flat(imagenet):
    """Put all validation images into one folder, numbered as in the publisher's; return (name, class) of each."""
    files = sorted((imagenet / "val").glob("*/*"))
    names = [f"ILSVRC2012_val_{number:08d}" for number in range(1, len(files) + 1)]
    truth = [(name, file.parent.name) for name, file in zip(names, files)]
    for name, file in zip(names, files):
        file.rename(imagenet / "val" / f"{name}.JPEG")
    for folder in {file.parent for file in files}:
        folder.rmdir()
    return truth


def test_folders(imagenet):
    (imagenet / "train" / "n01" / "notes.txt").write_text("no image")
    data = ready(imagenet)
    assert data.class_names == ("n01", "n02", "n03")
    sizes = {split: tensors["label"].bincount().tolist() for split, tensors in data.tensors.items()}
    assert sizes == {"train": [5, 5, 5], "val": [1, 1, 1], "test": [3, 3, 3]}
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (4, 3, 16, 16) and batch["image"].dtype == torch.float32
    for batch in data.test_dataloader():
        for image, index, label in zip(batch["image"], batch["index"], batch["label"]):
            number = int(index) % 3
            colour = torch.tensor([40.0 * number, 100, 200]) / 255
            torch.testing.assert_close(image.mean((1, 2)), (colour - 0.5) / 0.25, atol=0.1, rtol=0)
            assert int(label) == int(index) // 3
    (imagenet / "LOC_synset_mapping.txt").write_text("n01 tench, Tinca tinca\nn03 great white shark, jaws\n")
    assert ready(imagenet).class_names == ("tench", "n02", "great white shark")


def test_gray_and_fake(imagenet):
    assert next(iter(ready(imagenet, in_chans=1).val_dataloader()))["image"].shape == (3, 1, 16, 16)
    data = ready("nowhere", fake=True, augment={"flip": True, "crop": 2})
    assert next(iter(data.train_dataloader()))["image"].shape == (4, 3, 16, 16)


@pytest.mark.parametrize("listing", ["LOC_val_solution.csv", "val_labels.txt", "mine.txt", "kit"])
def test_a_flat_validation_folder_takes_its_labels_from_a_list(imagenet, listing):
    truth = flat(imagenet)
    changes = {}
    if listing == "kit":
        from scipy.io import savemat

        kit = imagenet / "ILSVRC2012_devkit_t12" / "data"
        kit.mkdir(parents=True)
        numbers = {"n01": 3, "n02": 1, "n03": 2}
        (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{numbers[wnid]}\n" for _, wnid in truth))
        import numpy as np

        kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")]
        savemat(kit / "meta.mat", {"synsets": np.array([(n, wnid, "word") for wnid, n in numbers.items()], dtype=kinds)})
    elif listing == "LOC_val_solution.csv":
        lines = ["ImageId,PredictionString", *(f"{name},{wnid} 1 2 3 4 {wnid} 5 6 7 8" for name, wnid in truth)]
        (imagenet / listing).write_text("\n".join(lines))
    else:
        (imagenet / listing).write_text("\n".join(f"{name}.JPEG {wnid}" for name, wnid in truth))
        changes = {"val_labels": str(imagenet / listing)} if listing == "mine.txt" else {}
    assert ready(imagenet, **changes).tensors["test"]["label"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    subset = ready(imagenet, classes=["n03", "n01"], num_classes=2, val_fraction=2, **changes)
    assert subset.tensors["test"]["label"].tolist() == [0, 0, 0, 1, 1, 1]


def test_classes_from_a_list_or_a_file(imagenet):
    (imagenet / "subset.txt").write_text("n03 great white shark\n\nn02\n")
    for classes in (["n03", "n02"], str(imagenet / "subset.txt")):
        data = ready(imagenet, classes=classes, num_classes=2, val_fraction=2)
        assert data.class_names == ("n02", "n03") and data.tensors["test"]["label"].tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_resume_bit_for_bit_whatever_the_number_of_workers(imagenet, workers):
    augment = {"flip": True, "jitter": 0.3, "cutmix": 1.0}
    whole = ready(imagenet, augment=augment).train_dataloader()
    expected = [*whole, *whole]
    stopped = ready(imagenet, augment=augment, workers=workers).train_dataloader()
    before = [batch for _, batch in zip(range(2), stopped)]
    resumed = ready(imagenet, augment=augment, workers=2 - workers).train_dataloader()
    resumed.load_state_dict(stopped.state_dict())
    batches = [*before, *resumed, *resumed]
    assert len(batches) == len(expected) == 6
    for a, b in zip(batches, expected):
        assert all(torch.equal(a[name], b[name]) for name in b)
    one, two = expected[0], expected[3]
    assert not torch.equal(one["image"], two["image"])


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_a_damaged_image_is_named_or_skipped(imagenet, damage, workers):
    path = imagenet / "val" / "n02" / "ILSVRC2012_val_n02_1.JPEG"
    data = path.read_bytes()
    path.write_bytes({"cut": data[:-40], "empty": b"", "text": b"<html>404</html>"}[damage])
    with pytest.raises(UserError) as error:
        list(ready(imagenet, workers=workers).test_dataloader())
    assert str(error.value).startswith(f"{path} cannot be used (") and "\n" not in str(error.value)
    loader = ready(imagenet, workers=workers, skip_bad=True).test_dataloader()
    with pytest.warns(UserWarning, match="damaged examples skipped so far: 1"):
        seen = torch.cat([batch["index"] for batch in loader])
    assert seen.tolist() == [0, 1, 2, 3, 5, 6, 7, 8] and list(loader.damaged) == [str(path)]


def test_unusual_images_are_read(imagenet):
    folder = imagenet / "val" / "n01"
    for number, mode in enumerate(["CMYK", "L", "RGBA"]):
        name = folder / f"ILSVRC2012_val_n01_{number}.JPEG"
        Image.new(mode, (30, 50)).save(name, "PNG" if mode == "RGBA" else "JPEG")
    assert sum(len(batch["image"]) for batch in ready(imagenet).test_dataloader()) == 9


def remove(name):
    return lambda path: shutil.rmtree(path / name)


@pytest.mark.parametrize(
    "break_it, changes, words",
    [
        (remove("train"), {}, "{}/train is missing: put class folders of images there"),
        (remove("val"), {}, "{}/val is missing"),
        (remove("train/n02"), {}, "{}/train offers 2 classes but dataset.num_classes=3: set dataset.num_classes=2 or list"),
        (None, {"classes": ["n01", "n2"]}, "{}/train has no class 'n2' (did you mean 'n02'?), which dataset.classes names"),
        (None, {"classes": ["n01"]}, "offers 1 classes but dataset.num_classes=3: set dataset.num_classes=1"),
        (None, {"classes": "/no/list.txt"}, "dataset.classes=/no/list.txt cannot be read (No such file or directory)"),
        (flat, {}, "{}/val has no class folders and {}/val_labels.txt is missing: write a line 'file class'"),
        (flat, {"val_labels": "/no/labels"}, "{}/val has no class folders and /no/labels is missing"),
        (remove("val/n01"), {"batch_size": 16}, "dataset.batch_size=16 is larger than the train split of 15 examples"),
        (None, {"resize": 8}, "dataset.resize=8 is smaller than dataset.image_size=16"),
        (None, {"crop_scale": [0.5]}, "dataset.crop_scale=[0.5] must be two growing numbers"),
        (None, {"workers": -1}, "dataset.workers=-1 must be at least 0"),
        (None, {"in_chans": 4}, "dataset.in_chans=4 must be 1 (gray) or 3 (colour)"),
        (lambda path: [f.unlink() for f in (path / "val").glob("*/*")], {}, "{}/val has no examples"),
    ],
)
def test_what_is_wrong_is_said(imagenet, break_it, changes, words):
    if break_it:
        break_it(imagenet)
    with pytest.raises(UserError) as error:
        ready(imagenet, **changes).train_dataloader()
    assert words.replace("{}", str(imagenet)) in str(error.value)


def test_an_image_without_a_label_and_a_damaged_kit_are_named(imagenet):
    truth = flat(imagenet)
    (imagenet / "val_labels.txt").write_text("\n".join(f"{name} {wnid}" for name, wnid in truth[1:]))
    with pytest.raises(UserError, match=r"ILSVRC2012_val_00000001\.JPEG has no label"):
        ready(imagenet)
    (imagenet / "val_labels.txt").unlink()
    kit = imagenet / "ILSVRC2012_devkit_t12" / "data"
    kit.mkdir(parents=True)
    (kit / "meta.mat").write_bytes(b"x")
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n")
    with pytest.raises(UserError, match="ILSVRC2012_devkit_t12/data is damaged"):
        ready(imagenet)


def test_any_suffix_of_an_image(tmp_path):
    for part in ("train", "val"):
        write_images(tmp_path / part / "cat", ["a.jpg", "b.JPG", "c.png"])
    data = ready(tmp_path, num_classes=1, val_fraction=0, batch_size=3)
    assert len(data.tensors["train"]["label"]) == 3
