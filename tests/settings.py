"""One table: the smallest setting that exercises each option. The generic tests run over all of them; a missing entry fails.

Each entry is a list of overrides on :data:`TINY`. Options that only preset another one (resnet20 on resnet_cifar) need none.
"""

# a run of a few steps on random data, checkpoints in the middle of epochs
TINY = [
    "hardware=cpu",
    "hardware.threads=1",
    "dataset.fake=true",
    "trainer.max_epochs=2",
    "trainer.limit_train_batches=6",
    "trainer.limit_val_batches=2",
    "trainer.limit_test_batches=2",
    "trainer.log_every_n_steps=2",
    "callbacks=[checkpoints,rng,nonfinite]",
    "callbacks.checkpoints.every_n_steps=2",
]

IMAGES = ["dataset.batch_size=8", "dataset.limit=160"]
# drawn or fake scenes, changed in every way
SCENES = ["dataset.batch_size=4", "dataset.limit=80", "dataset.image_size=32", "dataset.workers=0"]
PHOTOS = [*SCENES, "dataset.image_size=40", "dataset.resize=24", "dataset.max_size=32", "dataset.augment.crop=[16,24]"]
TEXT = ["dataset.batch_size=4", "dataset.seq_len=12", "dataset.limit=1200"]

DATASETS: dict[str, list[str]] = {
    "digits": IMAGES,
    "mnist": IMAGES,
    "fashion_mnist": IMAGES,
    "cifar10": IMAGES,
    "cifar100": IMAGES,
    "svhn": IMAGES,
    "imagenet": [*IMAGES, "dataset.image_size=32", "dataset.workers=0"],
    "pydocs_char": TEXT,
    "pydocs_word": TEXT,
    "ptb_char": TEXT,
    "ptb_word": TEXT,
    "shapes_semantic": SCENES,
    "shapes_instance": SCENES,
    "shapes_panoptic": SCENES,
    "shapes_depth": SCENES,
    "voc_segmentation": PHOTOS,
    "coco_panoptic": PHOTOS,
    "coco_instances": PHOTOS,
    "cityscapes_panoptic": PHOTOS,
    "coco_captions": [*PHOTOS, "dataset.vocab_size=300"],
    "flood_fill": ["dataset.batch_size=4", "dataset.limit=80", "dataset.image_size=12"],
    "shortest_path": ["dataset.batch_size=4", "dataset.limit=80", "dataset.image_size=12"],
}

MODELS: dict[str, list[str]] = {
    "mlp": ["model.hidden=[16]"],
    "small_cnn": ["model.widths=[4,8]", "model.convs=[1,1]"],
    "resnet_cifar": ["model.depth=8", "model.width=4"],
    "wide_resnet": ["model.depth=10", "model.widen=1"],
    "vgg_cifar": ["model.depth=11", "model.width=4"],
    "densenet_cifar": ["model.depth=10", "model.growth=4"],
    "timm": ["model.name=test_resnet"],
    "lstm_lm": ["model.width=12"],
    "transformer_lm": ["model.width=16", "model.layers=1", "model.heads=2"],
    "branched": ["model.backbone=small_cnn_cifar"],
    "nested_mlp": ["model.width=4", "model.layers=1", "model.exits=3"],
    "nested_width": ["model.width=2", "model.exits=2", "model.blocks=[1,1,1]"],
    "nested_depth": ["model.width=4", "model.exits=2", "model.layers=[1,1,1]"],
    "shared": ["model.name=resnet20_cifar"],
    "swrn": ["model.depth=16", "model.widen=1"],
    "isotropic_cnn": ["model.layers=4", "model.width=8"],
    "iterative_cnn": ["model.layers=4", "model.width=8"],
    "fpn": ["model.backbone=test_resnet", "model.width=8"],
    "unet": ["model.width=4"],
    "deeplabv3": ["model.backbone=test_resnet", "model.width=8"],
}

METHODS: dict[str, list[str]] = {
    "supervised": [],
    "linear_probe": ["method.normalize=true"],
    "finetune": ["method.layer_decay=0.5", "method.frozen_epochs=1"],
    "multi_exit": [],
    "orthogonalized": [],
    "greedy_exits": [],
    "center_offset": ["method.sigma=2.0", "method.center_weight=2.0", "method.stuff_area=16", "optimizer.lr=0.01"],
}

SPARSITIES: dict[str, list[str]] = {
    "none": [],
    "magnitude": ["sparsity.updates=2", "sparsity.end=0.5", "sparsity.density=0.5"],
    "continuous": ["sparsity.rounds=2", "sparsity.retrain=rewind", "sparsity.rewind=0.25"],
    "stochastic": ["sparsity.rounds=2"],
    "l0": [],
    "iterative_magnitude": ["sparsity.rounds=2"],
    "random_mask": ["sparsity.density=0.5"],
    "ticket": [],
    "growing": ["sparsity.stages=2", "sparsity.start=0.5"],
    "structured": ["sparsity.interval=0.5", "sparsity.seed_channels=2"],
}

OPTIMIZERS: dict[str, list[str]] = {
    "sgd": [],
    "adam": [],
    "adamw": [],
    "rmsprop": ["optimizer.lr=0.001"],
    "by_name": ["optimizer.name=lamb"],
    "avagrad": [],
    "avagradw": [],
    "delayed_adam": ["optimizer.lr=0.01"],
}

SCHEDULERS: dict[str, list[str]] = {
    "constant": ["scheduler.warmup=3 steps"],
    "cosine": [],
    "linear": [],
    "multistep": [],
    "one_cycle": [],
    "plateau": ["scheduler.patience=0"],
    "polynomial": [],
}

TABLE = {
    "dataset": DATASETS,
    "model": MODELS,
    "method": METHODS,
    "sparsity": SPARSITIES,
    "optimizer": OPTIMIZERS,
    "scheduler": SCHEDULERS,
}


def base_of(group: str, name: str) -> str:
    """The option that a preset builds on (its own name when it is none)."""
    import yaml

    from papermix.run.catalog import CONF

    tree = yaml.safe_load((CONF / group / f"{name}.yaml").read_text()) or {}
    bases = [d for d in tree.get("defaults", []) if isinstance(d, str) and d != "_self_"]
    return base_of(group, bases[0]) if bases else name


def completed(**chosen: str) -> dict[str, str]:
    """``chosen`` options, and a dataset, model and method that go with them."""
    from papermix.run.catalog import options

    needs = frozenset().union(*(options(group)[name].needs for group, name in chosen.items()))
    if "dataset" not in chosen:
        kinds = {"tokens": "pydocs_char", "vocabulary": "pydocs_char", "panoptic": "shapes_panoptic", "dense": "shapes_semantic"}
        chosen["dataset"] = next((name for word, name in kinds.items() if word in needs), "digits")
    data = options("dataset")[chosen["dataset"]]
    if "model" not in chosen:
        chosen["model"] = "lstm_lm" if "tokens" in data.gives else "unet" if "dense_model" in data.needs else "mlp"
        if "exits" in needs:
            chosen["model"] = "nested_mlp"
        elif "shared_layers" in needs:
            chosen["model"] = "isotropic_cnn"
    if "method" not in chosen and "grouping" in data.needs:
        chosen["method"] = "center_offset"
    return chosen


def smallest(**chosen: str) -> list[str]:
    """Overrides of the smallest run with these options (``model="mlp"``); what is not named is as small as it gets."""
    overrides = list(TINY)
    for group, name in completed(**chosen).items():
        overrides += [f"{group}={name}", *TABLE[group][name]]
    return overrides
