"""Every pair of a dataset, a model, a method and a sparsity: what the mix check allows takes a training step; what it forbids
says why."""

import itertools
import warnings
from collections.abc import Iterator
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


def _pairs() -> Iterator[tuple[str, str, str, str]]:
    yield from itertools.product(DATASETS, MODELS, METHODS, SPARSITIES)


def _allowed(dataset: str, model: str, method: str, sparsity: str) -> bool:
    chosen = [options("dataset")[dataset], options("model")[model], options("method")[method], options("sparsity")[sparsity]]
    gives = frozenset().union(*(o.gives for o in chosen))
    return all(o.needs <= gives for o in chosen)


def _mixed(dataset: str, model: str, method: str, sparsity: str) -> DictConfig:
    cfg = _composed("dataset", dataset).copy()
    with open_dict(cfg):
        for group, name in (("model", model), ("method", method), ("sparsity", sparsity)):
            cfg[group] = _composed(group, name)[group]
        cfg.callbacks = {}
    return cfg


def test_forbidden_mixes_say_what_is_missing() -> None:
    forbidden = [pair for pair in _pairs() if not _allowed(*pair)]
    assert forbidden
    for pair in forbidden:
        with pytest.raises(UserError, match=r"needs '\w+', which nothing in this mix gives; (choose one that gives it: \w+=|no option)"):
            check_mix(_mixed(*pair))


@cache
def _covering() -> dict[str, list[tuple[str, str, str, str]]]:
    """By dataset: allowed mixes, so few that each pair of options that any allowed mix has is in one of them."""
    chosen: dict[str, list[tuple[str, str, str, str]]] = {name: [] for name in DATASETS}
    seen: set[tuple[tuple[int, str], ...]] = set()
    for mix in _pairs():
        pairs = set(itertools.combinations(enumerate(mix), 2))
        if not pairs <= seen and _allowed(*mix):
            seen |= pairs
            chosen[mix[0]].append(mix)
    return chosen


@pytest.mark.parametrize("dataset", list(DATASETS))
def test_allowed_mixes_take_a_step(dataset: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    allowed = _covering()[dataset]
    assert allowed
    for pair in allowed:
        cfg = _mixed(*pair)
        check_mix(cfg)
        config = resolved(cfg)
        method = build_method(config)
        datamodule = build(without_parts(config, "dataset"))
        before = {k: v.clone() for k, v in method.state_dict().items()}
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = pl.Trainer(accelerator="cpu", max_steps=1, limit_val_batches=0, callbacks=build_callbacks(config), **quiet)
        trainer.fit(method, datamodule=datamodule)
        after = method.state_dict()
        assert trainer.global_step == 1, pair
        assert any(k in after and not torch.equal(v, after[k]) for k, v in before.items()), f"{pair}: no weight moved"
        assert all(torch.isfinite(v).all() for v in after.values()), pair
