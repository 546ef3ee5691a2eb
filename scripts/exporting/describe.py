"""The files of an export that say what the network is: ``config.json``, ``load.py``, ``README.md``."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from papermix.run.build import build, strip
from papermix.run.result import metric_text, quantity
from papermix.sparsity.compact import STRUCTURE, settle
from papermix.sparsity.mask import Parametrization, finalize
from scripts.exporting import plain
from scripts.exporting.restore import Restored

TIMM = "papermix.models.timm_model.timm_model"

LOAD = '''"""{title}.

    python load.py               load the network and repeat the outputs recorded when it was exported
    from load import load        the network, in a program of your own

Needs {needs}.
"""

{imports}

FOLDER = Path(__file__).resolve().parent
# input, normalisation, class names
CONFIG = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))


def build() -> nn.Module:
    """The network with random weights."""
    model = {expression}
{heads}    return model


{functions}

def load() -> nn.Module:
    """The trained network, in evaluation mode, on the CPU."""
    model = build()
    tensors = load_file(FOLDER / "model.safetensors")
{adapt}    model.load_state_dict(tensors)
    return model.eval()


{prepare}def main() -> None:
    """Compare outputs with those recorded at export."""
    check = load_file(FOLDER / "check.safetensors")
    with torch.no_grad():
        found = outputs(load()(check["input"]))
    difference = max(float((value - check[name]).abs().max()) for name, value in found.items())
    print("input", *check["input"].shape, "output", *(f"{{name}} {{list(value.shape)}}" for name, value in found.items()))
    print(f"largest difference from the recorded outputs: {{difference:.1e}}")


if __name__ == "__main__":
    main()
'''

NORMALISE = '''def normalise(image: Tensor) -> Tensor:
    """Images [B, C, H, W] with values from 0 to 1 as the network takes them."""
    mean, std = (torch.tensor(CONFIG["papermix"]["input"][key]).view(-1, 1, 1) for key in ("mean", "std"))
    return (image - mean) / std


'''

ENCODE = '''def encode(text: str) -> Tensor:
    """A text as the network takes it, int64 [1, tokens]; what is not in the vocabulary is <unk>."""
    symbols = {symbol: number for number, symbol in enumerate(CONFIG["papermix"]["symbols"])}
    words = SPLIT
    return torch.tensor([[symbols[word] if word in symbols else symbols["<unk>"] for word in words]])


'''


def timm_arguments(node: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of ``timm.create_model`` for a config node of :func:`papermix.models.timm_model.timm_model`."""
    import timm

    known = timm.models.get_pretrained_cfg(node["name"]) if ":" not in node["name"] else None
    size = {"img_size": node["image_size"]} if node.get("image_size") and known is not None and known.fixed_input_size else {}
    return {"num_classes": node["num_classes"], "in_chans": node["in_chans"], **size, **(node.get("args") or {})}


def is_timm(node: Mapping[str, Any]) -> bool:
    """Whether timm alone, without papermix, can build the model of a config node."""
    if node["_target_"] != TIMM or ":" in node["name"]:
        return False
    from papermix.models.registry import MODELS

    return node["name"] not in MODELS


def expression(node: Any, imports: set[str]) -> str:
    """A config node as a Python expression; what it needs is added to ``imports``."""
    if isinstance(node, dict) and "_target_" in node:
        path, _, name = node["_target_"].rpartition(".")
        imports.add(f"from {path} import {name}")
        arguments = [f"{k}={expression(v, imports)}" for k, v in node.items() if k not in ("_target_", "_partial_")]
        if node.get("_partial_"):
            imports.add("from functools import partial")
            return f"partial({', '.join([name, *arguments])})"
        line = f"{name}({', '.join(arguments)})"
        return line if len(line) < 100 else f"{name}(" + "".join(f"\n        {a}," for a in arguments) + "\n    )"
    if isinstance(node, dict):
        return "{" + ", ".join(f"{k!r}: {expression(v, imports)}" for k, v in node.items()) + "}"
    if isinstance(node, list):
        return "[" + ", ".join(expression(v, imports) for v in node) + "]"
    return repr(node)


def bake(model: nn.Module) -> None:
    """Turn all sparsity, then all other parametrizations, into plain tensors, in place."""
    if hasattr(model, STRUCTURE):
        settle(model)
    if any(isinstance(module, Parametrization) for module in model.modules()):
        finalize(model)
    plain.make_plain(model)


def fresh(run: Restored) -> tuple[nn.Module, bool]:
    """The network of the run's config as ``load.py`` builds it, and whether it had parametrizations, which are taken off."""
    node = run.config["model"]
    model: Any = build(node | {"pretrained": False} if "pretrained" in node else node)
    if run.heads:
        model.reset_heads(run.heads)
    parametrized = any(parametrize.is_parametrized(module) for module in model.modules())
    plain.make_plain(model)
    return model, parametrized


def changed_sizes(built: nn.Module, model: nn.Module) -> dict[str, dict[str, Any]] | None:
    """Layer -> attribute -> value where ``model`` has other whole numbers than ``built``; None if it has other layers."""
    ours, theirs = dict(model.named_modules()), dict(built.named_modules())
    if [(n, type(m)) for n, m in ours.items()] != [(n, type(m)) for n, m in theirs.items()]:
        return None
    if model.state_dict().keys() != built.state_dict().keys():
        return None
    sizes: dict[str, dict[str, Any]] = {}
    for name, module in ours.items():
        for key, value in vars(module).items():
            whole = value if isinstance(value, tuple) else (value,)
            if key.startswith("_") or not all(type(v) is int for v in whole):
                continue
            if getattr(theirs[name], key, None) != value:
                sizes.setdefault(name, {})[key] = value
    return sizes


def description(
    run: Restored, outputs: Mapping[str, Tensor], sizes: dict[str, dict[str, Any]], measured: dict[str, Any]
) -> dict[str, Any]:
    """``config.json``; of a network of timm's such that ``timm.create_model("local-dir:FOLDER", pretrained=True)`` reads it.

    Args:
        outputs: the network's outputs by name, for an input of ``run``'s.
        sizes: see :func:`changed_sizes`.
        measured: more about the network.
    """
    dataset, node = run.config["dataset"], strip(run.config["model"])
    names = list(getattr(run.data, "class_names", None) or []) if bool(dataset.get("fake")) == run.data.fake else []
    vocabulary = getattr(run.data, "vocabulary", None)
    shape = ["batch", *run.batch.shape[1:]] if run.batch.is_floating_point() else ["batch", "time"]
    entry: dict[str, Any] = {"name": run.input, "shape": shape, "dtype": str(run.batch.dtype)[6:]}
    if dataset.get("mean") and run.batch.ndim == 4:
        entry |= {"mean": dataset["mean"], "std": dataset["std"]}
    shapes: dict[str, list[Any]] = {name: list(value.shape) for name, value in outputs.items()}
    for name, sizes_of in shapes.items():
        sizes_of[1 if name.startswith("state") else 0] = "batch"
        if entry["shape"] == ["batch", "time"] and len(sizes_of) > 1 and not name.startswith("state"):
            sizes_of[1] = "time"
    own = {"input": entry, "outputs": shapes, "model": node, "heads": run.heads, "sizes": sizes, "class_names": names, **measured}
    if vocabulary is not None and bool(dataset.get("fake")) == run.data.fake and run.input == "tokens":
        own |= {"unit": vocabulary.unit, "symbols": vocabulary.symbols}
    own["run"] = {
        "checkpoint": run.checkpoint.name,
        **{key: run.result.get(key) for key in ("metrics", "paper", "seed", "command", "git", "versions")},
    }
    if not is_timm(node) or sizes:
        return {"papermix": own}
    arguments = timm_arguments(node)
    mean, std = (list(dataset.get(key) or [0.0 if key == "mean" else 1.0]) for key in ("mean", "std"))
    pretrained = {
        "input_size": list(run.batch.shape[1:]),
        "fixed_input_size": "img_size" in arguments,
        "mean": mean,
        "std": std,
        "crop_pct": 1.0,
        "first_conv": None,
        "classifier": None,
    }
    top = {"architecture": node["name"].partition(".")[0], "num_classes": node["num_classes"], "model_args": arguments}
    return {**top, **({"label_names": names} if names else {}), "pretrained_cfg": pretrained, "papermix": own}


def loader(run: Restored, config: dict[str, Any], parametrized: bool) -> str:
    """The text of ``load.py``; ``parametrized``: see :func:`fresh`."""
    node = strip(run.config["model"])
    imports = {
        "import json",
        "import torch",
        "from pathlib import Path",
        "from typing import Any",
        "from torch import Tensor, nn",
    }
    imports.add("from safetensors.torch import load_file")
    if is_timm(node):
        imports.add("import timm")
        arguments = "".join(f", {k}={v!r}" for k, v in timm_arguments(node).items())
        text, needs = f"timm.create_model({node['name']!r}{arguments})", "torch, timm and safetensors"
    else:
        if "pretrained" in node:
            node["pretrained"] = False
        text = expression(node, imports)
        needs = "torch, safetensors and papermix (its folder in PYTHONPATH, or pip install)"
    functions: list[Any] = [plain.outputs]
    adapt = ""
    if parametrized:
        functions.append(plain.make_plain)
        imports.add("from torch.nn.utils import parametrize")
        adapt += "    make_plain(model)\n"
    if config["papermix"]["sizes"]:
        functions.append(plain.fit_sizes)
        adapt += '    fit_sizes(model, CONFIG["papermix"]["sizes"], tensors)\n'
    prepare = ""
    if "mean" in config["papermix"]["input"]:
        prepare = NORMALISE
    elif "symbols" in config["papermix"]:
        split = "list(text)" if config["papermix"]["unit"] == "char" else 'text.replace("\\n", " <eos> ").split()'
        prepare = ENCODE.replace("SPLIT", split)
    heads = f"    model.reset_heads({run.heads!r})\n" if run.heads else ""
    sources = "\n\n".join(inspect.getsource(f).replace("  # type: ignore[arg-type]", "") for f in functions)
    return LOAD.format(
        title=_title(run), needs=needs, imports=_sorted(imports), expression=text, heads=heads,
        functions=sources, adapt=adapt, prepare=prepare,
    )  # fmt: skip


def _title(run: Restored) -> str:
    """What the network is called: the run's folder."""
    return run.place.name if run.config["stage"] is None else f"{run.place.parent.name}, stage {run.place.name}"


def _sorted(imports: set[str]) -> str:
    """Import lines in three blocks: Python's own, those of others, papermix."""

    def kind(line: str) -> int:
        module = line.split()[1]
        own = module.split(".")[0] in ("papermix", "lightning_modules", "callbacks", "datamodules")
        return 2 if own else 0 if module.split(".")[0] in ("json", "pathlib", "typing", "functools") else 1

    blocks = [sorted((i for i in imports if kind(i) == k), key=lambda i: (i.startswith("from"), i)) for k in range(3)]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def readme(run: Restored, config: dict[str, Any], files: list[str], lines: list[str]) -> str:
    """The text of ``README.md``; ``files``: what else is there, ``lines``: what was measured."""
    own = config["papermix"]
    given, names, run_of = own["input"], own["class_names"], own["run"]
    text = [f"# {_title(run)}", "", f"A network trained by papermix, from its checkpoint `{run_of['checkpoint']}`."]
    if run_of["command"]:
        text += ["", f"    {run_of['command']}"]
    metrics = {k: v for k, v in (run_of["metrics"] or {}).items() if k.startswith("test/")}
    if metrics:
        text += ["", "| " + " | ".join(metrics) + " |", "|---" * len(metrics) + "|"]
        text += ["| " + " | ".join(metric_text(k, v) for k, v in metrics.items()) + " |"]
    text += ["", f"- input `{given['name']}`: {given['dtype']} {_by(given['shape'])}"]
    if "mean" in given:
        text += [
            f"- normalisation: pixels from 0 to 1, less the mean {given['mean']}, over the standard deviation {given['std']}"
        ]
    if "symbols" in own:
        text += [f"- tokens: numbers of {len(own['symbols'])} symbols (by {own['unit']}), `papermix.symbols` in `config.json`"]
    text += [f"- `{name}`: {_by(shape)}" for name, shape in own["outputs"].items()]
    if names:
        text += [f"- classes: {', '.join(names[:12])}" + (f", ... {len(names)} in `config.json`" if len(names) > 12 else "")]
    text += ["", "Compared with the trained network (largest difference of any output):", "", *(f"- {line}" for line in lines)]
    if "load.py" in files:
        needs = "timm" if is_timm(own["model"]) else "papermix"
        text += ["", f"## With torch and {needs}", "", *_code("from load import load  # in this folder", "model = load()")]
        text += ["", "`python load.py` repeats the outputs recorded in `check.safetensors`."]
    if "architecture" in config:
        text += ["", "## With timm alone", ""]
        text += _code('model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()')
    states = [name for name in own["outputs"] if name.startswith("state")]
    if "model.pt2" in files:
        text += ["", "## With torch alone", "", "`model.pt2` holds the computation, too; it returns a tuple.", ""]
        arguments = "x, [" + ", ".join(states) + "]" if states else "x"
        text += _code('model = torch.export.load("model.pt2").module()', f"outputs = model({arguments})")
    if "model.onnx" in files:
        text += ["", "## With an ONNX runtime", ""]
        fed = ", ".join(['"input": x', *(f'"{name}_before": {name}' for name in states)])
        text += _code('session = onnxruntime.InferenceSession("model.onnx")', f"outputs = session.run(None, {{{fed}}})")
    if states and ("model.pt2" in files or "model.onnx" in files):
        text += ["", f"{', '.join(f'`{name}`' for name in states)}: zeros at the start of a text, then what came out before."]
    return "\n".join(text) + "\n"


def _by(shape: list[Any]) -> str:
    return " x ".join(str(size) for size in shape)


def _code(*lines: str) -> list[str]:
    return ["```python", *lines, "```"]


def costs(measured: dict[str, Any]) -> list[str]:
    """Size, cost and, of a smaller network, what it was before and how much faster it is, in words."""
    now = f"{quantity(measured['parameters'])} parameters, {quantity(measured['flops'])} FLOPs per example"
    if "before" not in measured:
        return [f"{now}, density {100 * measured['density']:.3g} %"]
    before = measured["before"]
    return [
        f"{now}; before {quantity(before['parameters'])} and {quantity(before['flops'])}",
        f"{measured['speedup']:.2f} times as fast, {measured['speedup_rows']} examples at a time on a CPU "
        "(median of interleaved timings)",
    ]
