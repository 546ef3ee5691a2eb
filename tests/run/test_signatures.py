"""Signatures read from source must be those that Python itself sees."""

import ast
import inspect
import subprocess
import sys

import pytest

from papermix.run.signatures import accepts, locate, names_in, signature


@pytest.mark.parametrize("target", ["torch.optim.SGD", "torch.optim.AdamW", "torch.nn.Linear", "pytorch_lightning.callbacks.EarlyStopping"])
def test_same_as_inspect(target: str) -> None:
    import importlib

    module, _, name = target.rpartition(".")
    real = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    ours = signature(target)
    assert ours is not None
    named = {n for n, p in real.items() if p.kind is not inspect.Parameter.VAR_KEYWORD}
    assert set(ours.annotations) == named
    assert ours.required == {n for n in named if real[n].default is inspect.Parameter.empty}


def test_reads_without_importing() -> None:
    code = (
        "import sys; from papermix.run.signatures import signature; s = signature('pytorch_lightning.Trainer');"
        "assert 'max_epochs' in s.annotations; assert 'torch' not in sys.modules and 'pytorch_lightning' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_follows_bases_and_reexports() -> None:
    found = locate("lightning_modules.finetune.Finetune")
    assert found is not None and found[0] == "lightning_modules.finetune"
    takes = signature("lightning_modules.finetune.Finetune")
    assert takes is not None and not takes.open
    assert {"model", "task", "optimizer", "scheduler", "layer_decay"} <= set(takes.annotations)
    assert {"model", "task", "optimizer"} <= takes.required and "scheduler" not in takes.required


def test_what_a_class_gives_its_base_is_not_asked_for() -> None:
    takes = signature("datamodules.dense.coco.CocoCaptions")
    assert takes is not None and {"vocab_size", "batch_size"} <= set(takes.annotations)
    assert "num_classes" not in takes.required and "num_classes" not in takes.annotations


def test_unknown_is_none() -> None:
    assert signature("no_such_package.thing") is None
    assert locate("papermix.errors.Missing") is None
    assert "UserError" in names_in("papermix.errors")


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        ("int", [1], [1.5, "a", None, True]),
        ("float", [1, 1.5], ["1.5", None, False]),
        ("bool", [True], [1, "true"]),
        ("str | None", ["x", None], [3]),
        ("Literal['a', 'b']", ["a"], ["c", 1]),
        ("Optional[int]", [None, 2], ["2"]),
        ("Union[float, str]", [1.0, "x"], [None, [1]]),
        ("list[int]", [[1]], [1]),
        ("Sequence[float] | None", [[0.5], None], [0.5]),
        ("dict[str, int]", [{}], [[]]),
    ],
)
def test_accepts(hint: str, good: list, bad: list) -> None:
    node = ast.parse(hint, mode="eval").body
    for value in good:
        assert accepts(node, value) is None, value
    for value in bad:
        assert accepts(node, value), value


def test_hints_we_do_not_know_accept_all() -> None:
    assert accepts(ast.parse("SomeType", mode="eval").body, object()) is None
    assert accepts(None, 3) is None
