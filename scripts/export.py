"""Turn a finished run into files that mean something without it: plain tensors, a program that loads them, ONNX.

    python scripts/export.py outputs/RUN                        model.safetensors, load.py, README.md in outputs/RUN/export
    python scripts/export.py outputs/RUN --format onnx,pt2      also model.onnx, and model.pt2 (torch.export, needs torch alone)
    python scripts/export.py outputs/RUN --shrink               take channels out that a structured sparsity has emptied
    python scripts/export.py outputs/RUN --stage probe --weights best --out FOLDER

Sparsity is baked in. Outputs of every file are compared with those of the trained network, on random input and on a
validation batch, and the difference is printed; a file that computes something else is an error.
"""

import argparse
import os
import runpy
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from papermix.errors import UserError, nearest  # noqa: E402

if TYPE_CHECKING:
    from scripts.exporting.compare import Comparison
    from scripts.exporting.restore import Restored

FORMATS = ("safetensors", "onnx", "pt2")
# largest differences from the trained network, as parts of its largest output where that is above 1: plain tensors, a smaller
# network, another program's arithmetic
SAME, SMALLER, OTHER = 1e-6, 1e-5, 1e-4


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run")
    what = f"comma-separated: {', '.join(FORMATS)}; safetensors is always written"
    parser.add_argument("--format", default="safetensors", metavar="NAMES", help=what)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where to (default: RUN/export)")
    parser.add_argument("--stage", metavar="NAME", help="of a run of several stages (default: the last)")
    parser.add_argument("--weights", choices=("last", "best"), help="which checkpoint (default: the one that the run tested)")
    parser.add_argument("--shrink", action="store_true", help="take out the channels that are empty")
    return parser.parse_args(arguments)


def chosen(text: str) -> list[str]:
    """The formats asked for besides safetensors. Raises UserError for an unknown one."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in FORMATS:
            raise UserError(f"--format knows no {name!r}{nearest(name, FORMATS)}; there are {', '.join(FORMATS)}.")
    return [name for name in FORMATS if name in names and name != "safetensors"]


def main(arguments: list[str] | None = None) -> Path:
    """Export; returns the folder."""
    args = parse(arguments)
    formats = chosen(args.format)
    from scripts.exporting.programs import check_packages
    from scripts.exporting.restore import find, restore

    check_packages(formats)
    place = find(args.run, args.stage)
    return export(restore(place, args.weights), args.out or place / "export", formats, args.shrink)


def export(run: "Restored", out: Path, formats: list[str], shrink: bool = False) -> Path:
    """Write the files of a restored run into the folder ``out``; the network in ``run`` is baked, and made smaller.

    Raises:
        UserError: nothing to shrink; something that differs from the trained network (nothing is written then); a format that
            cannot express the network (all else is written).
    """
    from papermix.run.result import shown
    from scripts.exporting import describe
    from scripts.exporting.compare import Comparison, evaluate
    from scripts.exporting.shrinking import costs, shrunk

    comparison = Comparison(run.model, {"random input": run.random, "a validation batch": run.batch})
    notes = [*run.notes, *comparison.judged(run.judged)]
    describe.bake(run.model)
    comparison.of("the network of plain tensors", lambda x: evaluate(run.model, x), SAME)
    measured = costs(run.model, run.batch)
    if shrink:
        measured = shrunk(run.model, run.batch)
        comparison.of("the smaller network", lambda x: evaluate(run.model, x), SMALLER)
    try:
        out.mkdir(parents=True, exist_ok=True)
        # a file appears when all are right
        with tempfile.TemporaryDirectory(dir=out) as scratch:
            refused = write(run, Path(scratch), formats, measured, comparison, notes)
            files = sorted(Path(scratch).iterdir())
            for file in files:
                os.replace(file, out / file.name)
    except OSError as error:
        raise UserError(f"cannot write into {out} ({error.strerror or error}): choose another folder with --out.") from error
    for line in [*comparison.lines, *describe.costs(measured)]:
        print(line)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"written to {shown(out)}: {', '.join(file.name for file in files)}")
    if refused:
        raise refused[0]
    return out


def write(
    run: "Restored", folder: Path, formats: list[str], measured: dict[str, Any], comparison: "Comparison", notes: list[str]
) -> list[UserError]:
    """Write and check all files; returns the refusals of formats that cannot express the network."""
    import torch
    from safetensors.torch import save_file

    from papermix.run.folder import write_atomic, write_json
    from scripts.exporting import describe, programs
    from scripts.exporting.compare import evaluate

    bound = SMALLER if "before" in measured else SAME
    # safetensors takes no memory that is shared: tied weights stand there under each of their names
    tensors = {
        name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in run.model.state_dict().items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    outputs = evaluate(run.model, run.random)
    check = {name: value.contiguous() for name, value in {"input": run.random, **outputs}.items()}
    save_file(check, folder / "check.safetensors")
    built, parametrized = describe.fresh(run)
    sizes = describe.changed_sizes(built, run.model)
    config = describe.description(run, outputs, sizes or {}, measured)
    write_json(folder / "config.json", config)
    if sizes is None:
        notes.append("training changed the layers of the network, so there is no load.py; use --format pt2")
    else:
        write_atomic(folder / "load.py", describe.loader(run, config, parametrized))
        load = runpy.run_path(str(folder / "load.py"))["load"]
        comparison.of("what load.py loads", lambda x: evaluate(load(), x), bound)
    refused: list[UserError] = []
    for name in formats:
        try:
            program = programs.WRITERS[name](run.model, run.random[:2], folder / f"model.{name}")
        except UserError as error:
            refused.append(error)
            continue
        if program is None:
            notes.append(f"model.{name} was not tried, as onnxruntime is not installed: pip install onnxruntime")
        else:
            comparison.of(f"model.{name}", program, OTHER)
    files = sorted(file.name for file in folder.iterdir())
    write_atomic(folder / "README.md", describe.readme(run, config, files, [*comparison.lines, *describe.costs(measured)]))
    return refused


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
