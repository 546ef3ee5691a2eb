"""Values that a key may take, and keys that must agree: what torch or Lightning would refuse late, or nobody at all."""

from collections.abc import Callable
from typing import Any, NamedTuple

from papermix.errors import UserError, nearest


class Rule(NamedTuple):
    """What a key takes: a test, the same in words, and the spellings of names among it."""

    allows: Callable[[Any], bool]
    words: str
    names: tuple[str, ...] = ()


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(least: int) -> Rule:
    return Rule(lambda v: _is_whole(v) and v >= least, f"a whole number of at least {least}")


def _number(least: float) -> Rule:
    return Rule(lambda v: _is_number(v) and v >= least, f"a number of at least {least:g}")


def _one_of(*names: Any) -> Rule:
    texts = tuple("null" if n is None else str(n).lower() if isinstance(n, bool) else n for n in names)
    return Rule(
        lambda v: any(v is n if n is None or isinstance(n, bool) else v == n for n in names),
        " or ".join([", ".join(texts[:-1]), texts[-1]]),
        texts,
    )


def _or_null(rule: Rule) -> Rule:
    return Rule(lambda v: v is None or rule.allows(v), f"{rule.words}, or null", rule.names)


def _part(least: int) -> Rule:
    """A number of batches, or a fraction of them."""
    return Rule(
        lambda v: v is None or (_is_whole(v) and v >= least) or (isinstance(v, float) and least / 1e9 <= v <= 1.0),
        f"a number of batches (at least {least}), a fraction from 0.0 to 1.0{' above 0' if least else ''}, or null",
    )


_SWITCH = _one_of(True, False)


def _or_off(rule: Rule) -> Rule:
    return Rule(lambda v: v is None or v is False or rule.allows(v), f"{rule.words}, or null or false", rule.names)

# keys of a config, where they stand; a key that a mix does not have is not looked at
RULES: dict[str, Rule] = {
    "seed": Rule(lambda v: _is_whole(v) and 0 <= v < 2**63, "a whole number from 0 to 2**63 - 1"),
    "test": _one_of("last", "best", "none"),
    "dataset.batch_size": _whole(1),
    "dataset.limit": _or_null(_whole(1)),
    "dataset.num_classes": _whole(1),
    "dataset.in_chans": _whole(1),
    "dataset.image_size": _or_null(_whole(1)),
    "dataset.vocab_size": _whole(1),
    "dataset.seq_len": _whole(1),
    "dataset.workers": _whole(0),
    "dataset.augment.crop": _or_off(
        Rule(
            lambda v: (_is_whole(v) and v >= 0) or (isinstance(v, list) and len(v) == 2 and all(_is_whole(s) and s > 0 for s in v)),
            "a whole number, or two where pixels are labelled",
        )
    ),
    "dataset.augment.flip": _or_null(_SWITCH),
    "dataset.augment.cutout": _or_off(_whole(0)),
    "dataset.augment.randaugment": _or_off(_number(0)),
    "dataset.augment.jitter": _or_off(_number(0)),
    "dataset.augment.mixup": _or_off(_number(0)),
    "dataset.augment.cutmix": _or_off(_number(0)),
    "dataset.augment.color": _or_off(_number(0)),
    "method.augment.flip": _SWITCH,
    **{f"method.augment.{name}": _number(0) for name in ("jitter", "brightness", "contrast", "saturation", "hue", "gray", "randaugment")},
    "method.projector.layers": _whole(1),
    "method.projector.hidden": _or_null(_whole(1)),
    "method.projector.dim": _whole(1),
    "method.projector.norm": _SWITCH,
    "dataset.label_noise.kind": _one_of(None, "uniform", "flip"),
    "dataset.label_noise.rate": _number(0),
    "optimizer.lr": _or_null(_number(0)),
    "optimizer.weight_decay": _or_null(_number(0)),
    "optimizer.momentum": _number(0),
    "optimizer.eps": _number(0),
    "hardware.accelerator": _one_of("auto", "cpu", "gpu", "cuda", "mps"),
    "hardware.devices": Rule(
        lambda v: v == "auto" or (_is_whole(v) and v >= 1) or (isinstance(v, list) and bool(v) and all(_is_whole(d) for d in v)),
        "a number of processes, a list of devices, or auto",
        ("auto",),
    ),
    "hardware.num_nodes": _whole(1),
    "hardware.strategy": _one_of("auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false", "fsdp"),
    "hardware.blocks": _or_null(Rule(lambda v: isinstance(v, list) and all(isinstance(p, str) for p in v), "a list of patterns of names")),
    "hardware.precision": _one_of("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true"),
    "hardware.sync_batchnorm": _SWITCH,
    "hardware.compile": _SWITCH,
    "hardware.channels_last": _SWITCH,
    "hardware.deterministic": _one_of(True, False, "warn"),
    "hardware.threads": _or_null(_whole(1)),
    "trainer.max_epochs": Rule(lambda v: v is None or (_is_whole(v) and v >= -1), "a whole number, or -1 for no limit"),
    "trainer.max_steps": Rule(lambda v: _is_whole(v) and (v == -1 or v >= 1), "a whole number of at least 1, or -1 for no limit"),
    "trainer.check_val_every_n_epoch": _or_null(_whole(1)),
    "trainer.val_check_interval": Rule(
        lambda v: v is None or (_is_whole(v) and v >= 1) or (isinstance(v, float) and 0 < v <= 1),
        "a number of training batches, a fraction of an epoch above 0 and up to 1.0, or null",
    ),
    "trainer.log_every_n_steps": _whole(0),
    "trainer.accumulate_grad_batches": _whole(1),
    "trainer.gradient_clip_val": _or_null(_number(0)),
    "trainer.gradient_clip_algorithm": _one_of(None, "norm", "value"),
    "trainer.limit_train_batches": _part(1),
    "trainer.limit_val_batches": _part(0),
    "trainer.limit_test_batches": _part(0),
    "trainer.overfit_batches": _part(0),
    "trainer.profiler": _one_of(None, "simple", "advanced", "pytorch"),
}

# arguments of Lightning's Trainer that this project gives itself, and where a user says what he wants
_ELSEWHERE = {
    **{name: f"set hardware.{name} instead" for name in ("accelerator", "devices", "num_nodes", "strategy", "precision")},
    **{name: f"set hardware.{name} instead" for name in ("deterministic", "sync_batchnorm")},
    "callbacks": "list them with callbacks=[default,...] instead",
    "logger": "list them with logger=[csv,...] instead",
    "default_root_dir": "set hydra.run.dir=DIR instead",
    "enable_checkpointing": "leave checkpoints out of callbacks=[...] instead",
    "enable_progress_bar": "leave progress out of callbacks=[...] instead",
    **dict.fromkeys(("plugins", "enable_model_summary", "num_sanity_val_steps"), "leave it out"),
    **dict.fromkeys(("use_distributed_sampler", "benchmark"), "leave it out"),
}  # fmt: skip

# keys of hardware that only some of its options have
_OPTIONAL = ("blocks",)
_SHARDED_PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")

# facts of the data that a model is built for
_FACTS = ("in_chans", "image_size", "vocab_size", "num_classes")


def check_values(plain: dict[str, Any]) -> None:
    """Refuse values out of range, unknown names, and keys that contradict each other. Raises UserError at the first fault."""
    for key, rule in RULES.items():
        *path, name = key.split(".")
        node: Any = plain
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, dict) and name in node and not rule.allows(node[name]):
            value = "null" if node[name] is None else node[name]
            hint = nearest(value, rule.names) if isinstance(value, str) else ""
            raise UserError(f"{key}={value} is not possible{hint}: it takes {rule.words}.")
    _check_hardware(plain)
    _check_trainer(plain)
    _check_facts(plain)
    _check_test(plain)


def _check_hardware(plain: dict[str, Any]) -> None:
    hardware = plain["hardware"]
    known = sorted(k.partition(".")[2] for k in RULES if k.startswith("hardware."))
    for key in hardware:
        if key not in known and not str(key).startswith("_"):
            raise UserError(f"there is no key 'hardware.{key}'{nearest(str(key), known)}; there are {', '.join(known)}.")
    for key in known:
        if key not in hardware and key not in _OPTIONAL:
            raise UserError(f"hardware.{key} is missing: do not delete it.")
    if hardware["strategy"] == "fsdp":
        _check_sharded(hardware)
    elif hardware.get("blocks") is not None:
        raise UserError(f"hardware.blocks says what is sharded, but hardware.strategy={hardware['strategy']} shards nothing: use strategy=fsdp.")
    devices, batch = hardware["devices"], plain["dataset"].get("batch_size")
    if hardware["accelerator"] == "cpu":
        if isinstance(devices, list):
            raise UserError(f"hardware.devices={devices} lists devices, of which a CPU is one: give a number of processes.")
        if hardware["precision"] in ("16-mixed", "16-true"):
            raise UserError(f"hardware.precision={hardware['precision']} needs a GPU: use bf16-mixed or 32-true on the CPU.")
        if hardware["sync_batchnorm"] and (devices != 1 or hardware["num_nodes"] > 1):
            raise UserError("hardware.sync_batchnorm=true needs GPUs: torch cannot do it on the CPU; leave it false there.")
    if devices != "auto" and isinstance(batch, int):
        count = (len(devices) if isinstance(devices, list) else devices) * hardware["num_nodes"]
        if batch % count:
            near = max(batch // count, 1) * count
            raise UserError(
                f"dataset.batch_size={batch} cannot be shared equally among {count} processes: use {near} or {near + count}."
            )


def _check_sharded(hardware: dict[str, Any]) -> None:
    for key in ("compile", "channels_last"):
        if hardware[key]:
            raise UserError(f"hardware.{key}=true does not go with hardware.strategy=fsdp: set hardware.{key}=false, or use hardware=ddp.")
    if hardware["precision"] not in _SHARDED_PRECISIONS:
        raise UserError(
            f"hardware.precision={hardware['precision']} does not go with hardware.strategy=fsdp: use {', '.join(_SHARDED_PRECISIONS)}."
        )
    if hardware["accelerator"] == "mps" or (hardware["devices"] == 1 and hardware["num_nodes"] == 1):
        raise UserError("hardware.strategy=fsdp shares weights out among processes, and here is one: use hardware=fsdp, or hardware.devices=2.")


def _check_trainer(plain: dict[str, Any]) -> None:
    for key in plain["trainer"]:
        if key in _ELSEWHERE:
            raise UserError(f"trainer.{key} is set by this project itself: {_ELSEWHERE[key]}.")
    if plain["trainer"].get("check_val_every_n_epoch", 1) is None and not _is_whole(plain["trainer"].get("val_check_interval")):
        raise UserError(
            "trainer.check_val_every_n_epoch=null counts batches over all epochs: set trainer.val_check_interval to their number."
        )


def _check_facts(plain: dict[str, Any]) -> None:
    crop = (plain["dataset"].get("augment") or {}).get("crop")
    if isinstance(crop, list) and not str(plain["dataset"].get("_target_")).startswith("datamodules.dense."):
        raise UserError(f"dataset.augment.crop={crop} is not possible: this data set takes a number of pixels, by which images are shifted.")
    for fact in _FACTS:
        here, there = plain["model"].get(fact), plain["dataset"].get(fact)
        # 0 classes: a model without a classifier
        if None not in (here, there) and here != there and not (fact == "num_classes" and here == 0):
            raise UserError(f"model.{fact}={here} does not fit dataset.{fact}={there}: leave it at ${{dataset.{fact}}}.")


def _check_test(plain: dict[str, Any]) -> None:
    if plain.get("test") != "best":
        return
    if plain["sparsity"].get("_target_"):
        raise UserError("test=best would pick a checkpoint from before the network was sparse: use test=last with a sparsity.")
    kept = [c for c in (plain.get("callbacks") or {}).values() if c and str(c.get("_target_")).endswith(".Checkpoints")]
    if not any(c.get("top_k", 1) for c in kept):
        raise UserError(
            "test=best needs ranked checkpoints: add checkpoints to callbacks=[...], with top_k of at least 1, or use test=last."
        )
    if plain["trainer"].get("limit_val_batches") in (0, 0.0) or plain["dataset"].get("val_fraction") == 0:
        raise UserError("test=best needs a validation split to rank checkpoints by: use test=last, or validate.")
