"""Every pair of a dataset, a model, a method and a sparsity: what the mix check allows takes a training step; what it forbids
says why."""

import itertools
import warnings
from functools import cache

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, open_dict

from papermix.errors import UserError
from papermix.run.catalog import options
from papermix.run.check import check_mix, resolved
from papermix.run.compose import compose
from papermix.run.stage import build, build_callbacks, build_method, without_parts
from tests.settings import DATASETS, METHODS, MODELS, SPARSITIES, smallest


@cache
def _composed(group: str, name: str) -> DictConfig:
    """A config with this option, composed once; others take its node from it."""
    table = {"dataset": DATASETS, "model": MODELS, "method": METHODS, "sparsity": SPARSITIES}[group]
    overrides = smallest() if group in ("method", "sparsity") else smallest(**{group: name})
    return compose([*overrides, f"{group}={name}", *table[name]])


@cache
def _words(group: str, name: str) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    option = options(group)[name]
    return option.gives, option.needs, option.clashes


def _allowed(*mix: str) -> bool:
    chosen = [_words(group, name) for group, name in zip(("dataset", "model", "method", "sparsity"), mix, strict=True)]
    gives = frozenset().union(*(given for given, _, _ in chosen))
    return all(needed <= gives and not clashing & gives for _, needed, clashing in chosen)


def _mixed(dataset: str, model: str, method: str, sparsity: str) -> DictConfig:
    cfg = _composed("dataset", dataset).copy()
    with open_dict(cfg):
        for group, name in (("model", model), ("method", method), ("sparsity", sparsity)):
            cfg[group] = _composed(group, name)[group]
        cfg.callbacks = {}
    return cfg


@cache
def _covering(allowed: bool) -> dict[str, list[tuple[str, str, str, str]]]:
    """By dataset: allowed (forbidden) mixes, so few that each pair of options that any such mix has is in one of them."""
    chosen: dict[str, list[tuple[str, str, str, str]]] = {name: [] for name in DATASETS}
    seen: set[tuple[tuple[int, str], ...]] = set()
    for mix in itertools.product(DATASETS, MODELS, METHODS, SPARSITIES):
        pairs = set(itertools.combinations(enumerate(mix), 2))
        if not pairs <= seen and _allowed(*mix) is allowed:
            seen |= pairs
            chosen[mix[0]].append(mix)
    return chosen


@pytest.mark.parametrize("dataset", list(DATASETS))
def test_forbidden_mixes_say_what_is_missing(dataset: str) -> None:
    forbidden = _covering(allowed=False)[dataset]
    assert forbidden
    for mix in forbidden:
        why = r"needs '\w+', which nothing in this mix gives; (choose one that gives it: \w+=|no option)|\w+=\S+ does not go with \w+=\S+: .+\."
        with pytest.raises(UserError, match=why):
            check_mix(_mixed(*mix))


@pytest.mark.parametrize("dataset", list(DATASETS))
def test_allowed_mixes_take_a_step(dataset: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    allowed = _covering(allowed=True)[dataset]
    assert allowed
    for mix in allowed:
        cfg = _mixed(*mix)
        check_mix(cfg)
        config = resolved(cfg)
        method = build_method(config)
        datamodule = build(without_parts(config, "dataset"))
        before = {k: v.clone() for k, v in method.state_dict().items()}
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = pl.Trainer(accelerator="cpu", max_steps=1, limit_val_batches=0, callbacks=build_callbacks(config), **quiet)
        trainer.fit(method, datamodule=datamodule)
        after = method.state_dict()
        assert trainer.global_step == 1, mix
        assert any(k in after and not torch.equal(v, after[k]) for k, v in before.items()), f"{mix}: no weight moved"
        assert all(torch.isfinite(v).all() for v in after.values()), mix
