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
EPISODES = ["dataset.batch_size=4", "dataset.limit=80"]
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
    "figures": SCENES,
    "digits_recall": [*EPISODES, "dataset.length=3"],
    "babi": [*EPISODES, "dataset.seq_len=12", "dataset.vocab_size=30"],
    "priority_sort": [*EPISODES, "dataset.items=4", "dataset.top=3"],
    "maze_maps": [*EPISODES, "dataset.seq_len=5", "dataset.map_size=7", "dataset.grid=12"],
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
    "label_autoencoder": ["model.base=4", "model.code=4"],
    "multigrid_memory": ["model.levels=[1,2,2]", "model.channels=[2,3,3]", "model.decoder_levels=[2,1]", "model.decoder_channels=4"],
    "conv_lstm_memory": ["model.channels=[2,3]", "model.decoder_channels=[4]"],
    "lstm_memory": ["model.width=12"],
    "dnc": ["model.width=12", "model.slots=6", "model.word=4", "model.reads=2"],
}

METHODS: dict[str, list[str]] = {
    "supervised": [],
    "linear_probe": ["method.normalize=true"],
    "finetune": ["method.layer_decay=0.5", "method.frozen_epochs=1"],
    "multi_exit": [],
    "orthogonalized": [],
    "greedy_exits": [],
    "center_offset": ["method.sigma=2.0", "method.center_weight=2.0", "method.stuff_area=16", "optimizer.lr=0.01"],
    "contrastive": [
        "method.framework=moco",
        "method.support=1",
        "method.cancel=attract",
        "method.threshold=0.0",
        "method.queue=64",
        "method.projector.hidden=16",
    ],
    "label_autoencoder": [],
    "pixel_consensus": ["method.grid=[[1,1],[3,2]]", "method.stuff_area=16", "method.threshold=2.0", "optimizer.lr=0.01"],
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
        kinds = {
            "tokens": "pydocs_char",
            "vocabulary": "pydocs_char",
            "maps": "maze_maps",
            "sequence": "digits_recall",
            "panoptic": "shapes_panoptic",
            "dense": "shapes_semantic",
        }
        chosen["dataset"] = next((name for word, name in kinds.items() if word in needs), "digits")
    data = options("dataset")[chosen["dataset"]]
    if "model" not in chosen:
        kinds = {
            "exits": "nested_mlp",
            "shared_layers": "isotropic_cnn",
            "label_model": "label_autoencoder",
            "dense_model": "unet",
            "memory": "lstm_memory",
        }
        usual = "lstm_lm" if "tokens" in data.gives else "mlp"
        chosen["model"] = next((name for word, name in kinds.items() if word in needs | data.needs), usual)
    if "method" not in chosen:
        if "labels_alone" in needs:
            chosen["method"] = "label_autoencoder"
        elif "false_negatives" in needs:
            chosen["method"] = "contrastive"
        elif "grouping" in data.needs:
            chosen["method"] = "center_offset"
    return chosen


def smallest(**chosen: str) -> list[str]:
    """Overrides of the smallest run with these options (``model="mlp"``); what is not named is as small as it gets."""
    overrides = list(TINY)
    for group, name in completed(**chosen).items():
        overrides += [f"{group}={name}", *TABLE[group][name]]
    return overrides
