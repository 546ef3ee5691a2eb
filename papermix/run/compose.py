"""Configs of a run: the stages of an experiment, each composed as the command line that one would have typed."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from papermix.errors import UserError, nearest
from papermix.run import guard
from papermix.run.catalog import CONF, options, sets
from papermix.run.check import check, loads, resolved
from papermix.run.names import register_resolvers


def compose(overrides: list[str], *, with_hydra: bool = False) -> DictConfig:
    """Compose ``conf/train.yaml`` with overrides, inside a Hydra application or outside of one."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    register_resolvers()
    guard.install()
    inside = GlobalHydra.instance().is_initialized()
    with nullcontext() if inside else initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra_compose("train", overrides=overrides, return_hydra_config=with_hydra)


def _key(override: str) -> str:
    return override.lstrip("+~").split("=", 1)[0]


def _freeze_one(cfg: DictConfig, folder: Path, before: Sequence[str] = ()) -> dict[str, Any]:
    if not OmegaConf.is_dict(cfg.get("paths")):
        raise UserError("this config has no paths: do not delete them.")
    with open_dict(cfg):
        cfg.paths.run = str(folder)
    check(cfg)
    plain = resolved(cfg)
    for key, source in loads(plain):
        # a run that goes on needs what it started from no more, or says itself that it does
        if source not in before and not Path(source).exists() and not (folder / "checkpoints").is_dir():
            raise UserError(f"{key}={source}: there is no such checkpoint, run folder or earlier stage{nearest(source, before)}.")
    return plain


def freeze(cfg: DictConfig, overrides: list[str], run_dir: Path) -> dict[str, dict[str, Any]]:
    """Resolved config of each stage of an experiment, in order; checked. One stage ``main`` when there are none.

    Args:
        cfg: the composed config of the whole command line.
        overrides: the user's own overrides, on which a stage's are put.
        run_dir: the run's folder; a stage has a folder of its own name in it, a run without stages is itself its stage.
    """
    if not cfg.stages:
        return {"main": _freeze_one(cfg, run_dir)}
    if not OmegaConf.is_dict(cfg.stages):
        raise UserError("stages must map each name to a list of overrides, like {pretrain: [], probe: [\"method=linear_probe\"]}.")
    preset = next((name for o in overrides if _key(o) == "debug" and (name := o.partition("=")[2]) in options("debug")), None)
    frozen: dict[str, dict[str, Any]] = {}
    for name, own in cfg.stages.items():
        if not isinstance(name, str) or not name.replace("_", "").isalnum() or name == "main":
            raise UserError(f"stages.{name}: a stage's name is made of letters, digits and underscores (and is not 'main').")
        if not OmegaConf.is_list(own):
            raise UserError(f"stages.{name} must be a list of overrides, like [method=linear_probe, trainer.max_epochs=10].")
        # what a debug preset says of the length holds in every stage
        own = [str(o) for o in own if not (preset and sets("debug", preset, _key(str(o))))]
        replaced = {_key(o) for o in own}
        # what was typed for another option of a group that the stage chooses anew does not concern this stage
        left = replaced | {"stages", "hydra"}
        kept = [o for o in overrides if not {_key(o), _key(o).partition(".")[0]} & left]
        try:
            stage = compose([*kept, *own], with_hydra=True)
        except Exception as e:
            from papermix.run.explain import explain

            raise UserError(f"stage {name}: {explain(e, [*kept, *own])}") from e
        with open_dict(stage):
            # a recipe's own list comes with the recipe, also where the command line has changed it
            if stage.stages and stage.stages not in (cfg.stages, compose(kept).stages):
                raise UserError(f"stage {name} sets stages itself: write all stages one after another.")
            stage.stages, stage.stage = None, name
        for key, source in loads(OmegaConf.to_container(stage)):
            if source in cfg.stages and source not in frozen:
                raise UserError(f"stage {name} reads stage {source!r} ({key}), which does not come before it: change their order.")
            if source in frozen and "checkpoints" not in (frozen[source].get("callbacks") or {}):
                raise UserError(f"stage {name} reads stage {source!r} ({key}), which saves nothing: add checkpoints to its callbacks.")
        try:
            frozen[name] = _freeze_one(stage, run_dir / name, list(frozen))
        except UserError as e:
            raise UserError(f"stage {name}: {e}") from e
    return frozen

