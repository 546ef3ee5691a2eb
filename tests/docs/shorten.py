"""A page's training as one that takes seconds on a CPU without the data: two steps, fake images, CPU processes."""

from functools import cache

from papermix.run.compose import compose
from tests.docs.pages import Command, overrides

# what a machine without GPUs has instead
HARDWARE = {"gpu": "cpu", "mps": "cpu", "ddp": "ddp_cpu", "fsdp": "fsdp_cpu"}
# small pictures of large data sets: option -> overrides, for those keys that it has
SMALL = {"dataset.batch_size": "4", "dataset.workers": "0"}
SMALL_IMAGES = {
    "imagenet": ["dataset.image_size=64"],
    "coco_panoptic": ["dataset.resize=128", "dataset.augment.crop=96"],
    "coco_instances": ["dataset.resize=128", "dataset.augment.crop=96"],
    "cityscapes_panoptic": ["dataset.augment.crop=96"],
    "voc_segmentation": ["dataset.augment.crop=96"],
}


def arguments(command: Command) -> list[str]:
    """Arguments of train.py that do in seconds what the command does."""
    words, flags = overrides(command.words)
    if "--cfg" in flags or any(w.startswith("resume=") for w in words):
        return list(command.words[2:])
    given = {w.partition("=")[0].lstrip("+") for w in words}
    words = [_shorter(w) for w in words]
    if "debug" not in given:
        words.append("debug=two_steps")
    for name in _datasets(tuple(words)):
        own = ["dataset.fake=true", *(f"{k}={v}" for k, v in SMALL.items() if has(name, k)), *SMALL_IMAGES.get(name, [])]
        words += [w for w in own if w.partition("=")[0] not in given | {w.partition("=")[0] for w in words[len(given) :]}]
    return [*flags, *words]


def _shorter(word: str) -> str:
    """One override: fewer epochs, and processors that are here."""
    key, _, value = word.partition("=")
    if key == "trainer.max_epochs" and value != "0":
        return "trainer.max_epochs=1"
    if key == "hardware":
        return f"{key}={HARDWARE.get(value, value)}"
    if key == "hardware.sync_batchnorm":
        return f"{key}=false"
    return word


def _datasets(words: tuple[str, ...]) -> list[str]:
    """The data set of a command (the first of a sweep), if it reads files that have to be brought."""
    chosen = [w.partition(",")[0] for w in words if w.startswith(("dataset=", "experiment="))]
    name = str(compose(chosen, with_hydra=True).hydra.runtime.choices["dataset"])
    return [name] if needs_files(name) else []


@cache
def _node(name: str):
    return compose([f"dataset={name}"]).dataset


def has(name: str, key: str) -> bool:
    """Whether a data set has a key."""
    return key.partition(".")[2] in _node(name)


def needs_files(name: str) -> bool:
    """Whether a data set reads files that have to be brought."""
    return not {"data_dir", "root"}.isdisjoint(_node(name)) and name not in ("digits", "digits_recall")
