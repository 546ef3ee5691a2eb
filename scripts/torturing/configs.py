"""Wrong command lines by the thousand: typos, values of another type, mixes that cannot be; each is to be refused with the right hint."""

import ast
import random
import re
import statistics
import string
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from papermix.run import catalog
from papermix.run.check import key_paths, targets
from papermix.run.compose import compose, freeze
from papermix.run.explain import explain, is_expected
from papermix.run.ranges import RULES
from papermix.run.result import print_table
from papermix.run.signatures import literals, signature

# command lines that are right, to be spoilt
BASES: tuple[tuple[str, ...], ...] = (
    (),
    ("dataset=cifar10", "model=resnet20", "callbacks=[default,ema,throughput]"),
    ("dataset=imagenet", "model=timm", "optimizer=adamw", "scheduler=one_cycle"),
    ("dataset=pydocs_char", "model=lstm_lm", "optimizer=avagrad", "sparsity=magnitude"),
    ("model=nested_mlp", "method=orthogonalized", "logger=[csv,wandb]"),
    ("dataset=shapes_panoptic", "model=fpn", "method=pixel_consensus", "callbacks=[default,dense_pictures]"),
    ("method=contrastive", "model=small_cnn", "sparsity=l0", "optimizer=rmsprop"),
    ("dataset=digits_recall", "model=multigrid_memory", "scheduler=multistep"),
    ("experiment=mixing/digits",),
    ("sparsity=continuous", "callbacks=[default,early_stopping,gradient_norm]", "hardware=ddp_cpu"),
)
KINDS = ("key", "option", "group", "value", "type", "mix", "syntax")
_SHARES = (35, 20, 10, 12, 13, 6, 4)


@dataclass
class Wrong:
    """A wrong command line.

    Attributes:
        kind: one of :data:`KINDS`.
        overrides: the command line; its last one is wrong.
        right: the spellings of which the hint must give one; empty where there is nothing to spell.
    """

    kind: str
    overrides: list[str]
    right: tuple[str, ...] = ()


@dataclass
class Answer:
    """What was said about a wrong command line: the sentence ('' when it was accepted), CPU seconds, whether the hint was right."""

    wrong: Wrong
    sentence: str
    seconds: float
    hinted: bool


def misspelt(word: str, draw: random.Random) -> str:
    """``word`` with one typing error, or two in words of six letters and more: letters swapped, dropped, doubled, replaced."""
    for _ in range(draw.choice((1, 2)) if len(word) >= 6 else 1):
        letters = [i for i, c in enumerate(word) if c.isalnum()]
        i = draw.choice(letters)
        how = draw.choice(("swap", "drop", "double", "replace"))
        if how == "swap":
            i = min(i, len(word) - 2)
            word = word[:i] + word[i + 1] + word[i] + word[i + 2 :]
        elif how == "drop" and len(letters) > 1:
            word = word[:i] + word[i + 1 :]
        elif how == "double":
            word = word[: i + 1] + word[i:]
        else:
            word = word[:i] + draw.choice(string.ascii_lowercase) + word[i + 1 :]
    return word


class Fuzzer:
    """Draws wrong command lines from the configs that are there.

    Args:
        seed: of all that is drawn.
    """

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.configs = {base: compose(list(base), with_hydra=True) for base in BASES}
        self.plain = {base: freeze(compose(list(base), with_hydra=True), list(base), Path("runs/x"))["main"] for base in BASES}
        self.keys = {base: [k for k in key_paths(cfg) if _typed_by_people(k)] for base, cfg in self.configs.items()}

    def one(self) -> Wrong:
        """The next wrong command line."""
        kind = self.draw.choices(KINDS, _SHARES)[0]
        while (made := getattr(self, f"_{kind}")(self.draw.choice(BASES))) is None:
            pass
        return made

    def _key(self, base: tuple[str, ...]) -> Wrong | None:
        key = self.draw.choice(self.keys[base])
        parts = key.split(".")
        place = self.draw.choice([len(parts) - 1, len(parts) - 1, self.draw.randrange(len(parts))])
        if parts[place].isdigit() or place == 0:  # wrong first parts are the kind "group"
            return None
        wrong = misspelt(parts[place], self.draw)
        typed = ".".join([*parts[:place], wrong, *parts[place + 1 :]])
        if ".".join([*parts[:place], wrong]) in self.keys[base] or not _writable(wrong) or catalog.holders(typed):
            return None
        right = {key, ".".join(parts[: place + 1]), parts[place]}
        return Wrong("key", [*base, f"{typed}={self._now(base, key)}"], tuple(right))

    def _group(self, base: tuple[str, ...]) -> Wrong | None:
        roots = sorted({k.split(".")[0] for k in self.keys[base]} | set(catalog.groups()) - {"claim", "paper"})
        root = self.draw.choice(roots)
        wrong = misspelt(root, self.draw)
        if wrong in roots or wrong in catalog.root_keys() or not _writable(wrong):
            return None
        inside = [k for k in self.keys[base] if k.startswith(f"{root}.")]
        if inside and self.draw.random() < 0.5:
            key = self.draw.choice(inside)
            typed = wrong + key[len(root) :]
            return Wrong("group", [*base, f"{typed}={self._now(base, key)}"], (key, root))
        names = list(catalog.options(root)) if root in catalog.groups() else []
        value = self.draw.choice(names) if names else self._now(base, root)
        return Wrong("group", [*base, f"{wrong}={value}"], (root,))

    def _option(self, base: tuple[str, ...]) -> Wrong | None:
        group = self.draw.choice([g for g in catalog.groups() if g not in ("claim", "paper", "paths", "trainer")])
        name = self.draw.choice(list(catalog.options(group)))
        family, slash, last = name.rpartition("/")
        wrong = family + slash + misspelt(last, self.draw)
        if wrong in catalog.options(group) or not _writable(wrong):
            return None
        value = f"[default,{wrong}]" if group == "callbacks" else f"[csv,{wrong}]" if group == "logger" else wrong
        kept = [o for o in base if not o.startswith((f"{group}=", "experiment="))]
        return Wrong("option", [*kept, f"{group}={value}"], (name, last))

    def _value(self, base: tuple[str, ...]) -> Wrong | None:
        enums = self._enums(base)
        key = self.draw.choice(sorted(enums))
        name = self.draw.choice([n for n in enums[key] if n not in ("null", "true", "false", "")])
        wrong = misspelt(name, self.draw)
        if wrong in enums[key] or not _writable(wrong) or re.fullmatch(r"[\d.]*|null|true|false", wrong):
            return None
        return Wrong("value", [*base, f"{key}={wrong}"], (name,))

    def _enums(self, base: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
        """Keys that take one of some names, with these names."""
        known = {k: r.names for k, r in RULES.items() if r.names and OmegaConf.select(self.configs[base], k, default=...) is not ...}
        for path, node in targets(self.plain[base]):
            takes = signature(node["_target_"])
            for name, hint in (takes.annotations if takes else {}).items():
                if name in node and (names := literals(hint)):
                    known[f"{path}.{name}"] = names
        return {key: names for key, names in known.items() if set(names) - {"null", "true", "false", ""}}

    def _now(self, base: tuple[str, ...], key: str) -> str:
        """The value that a key has, as one would type it."""
        value = OmegaConf.select(self.configs[base], key)
        return str(value).lower() if isinstance(value, bool | int | float) else "1"

    def _type(self, base: tuple[str, ...]) -> Wrong | None:
        leaves = [(k, OmegaConf.select(self.configs[base], k)) for k in self.keys[base] if not k.startswith(("paths", "stage", "task"))]
        key, value = self.draw.choice([(k, v) for k, v in leaves if isinstance(v, bool | int | float)])
        others = ["many", "{a: 1}", "maybe"]
        # where a list of devices is wrong depends on the machine
        others += [] if key == "hardware.devices" else ["[1,2]"]
        others += [] if isinstance(value, float) or ".augment." in key or self._takes_fractions(base, key) else ["0.123"]
        return Wrong("type", [*base, f"{key}={self.draw.choice(others)}"], ())

    def _takes_fractions(self, base: tuple[str, ...], key: str) -> bool:
        """Whether the type hint of a key has float: its value may well be written as a whole number."""
        path, _, name = key.rpartition(".")
        node: Any = self.plain[base]
        for part in path.split(".") if path else ():
            node = node.get(part, {})
        takes = signature(node["_target_"]) if "_target_" in node else None
        hint = takes.annotations.get(name) if takes else None
        return hint is not None and "float" in ast.unparse(hint)

    def _mix(self, base: tuple[str, ...]) -> Wrong | None:
        chosen = {g: self.draw.choice(list(catalog.options(g))) for g in ("dataset", "model", "method", "sparsity")}
        options = [catalog.options(g)[n] for g, n in chosen.items()]
        gives = frozenset().union(*(o.gives for o in options))
        needs = frozenset().union(*(o.needs for o in options))
        if needs <= gives:
            return None
        return Wrong("mix", [f"{g}={n}" for g, n in chosen.items()], ())

    def _syntax(self, base: tuple[str, ...]) -> Wrong | None:
        key = self.draw.choice(self.keys[base])
        forms = ("{k}", "{k} =1", "{k}=[1,2", "--{k}=1", "{k}='a", "{k}={{a: 1", "{k}=1,2", "=1")
        return Wrong("syntax", [*base, self.draw.choice(forms).format(k=key)], ())


def _typed_by_people(key: str) -> bool:
    """Whether somebody would write a key on a command line: no capability words, nothing inside lists."""
    return not any(part.startswith("_") or part.isdigit() for part in key.split(".")) and not key.startswith(("hydra", "stages"))


def _writable(word: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9_][\w./-]*", word) is not None


@contextmanager
def warm() -> Iterator[None]:
    """One process for all command lines: Hydra set up once, files of conf/ parsed once."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from papermix.run.names import register_resolvers
    from papermix.run.sweep import _FrozenFiles

    register_resolvers()
    with initialize_config_dir(str(catalog.CONF), version_base="1.3"):
        loader: Any = GlobalHydra.instance().hydra.config_loader  # type: ignore[union-attr]
        loader.repository = _FrozenFiles(loader.repository)
        yield


def ask(wrong: Wrong) -> Answer:
    """What is said about a wrong command line. Raises AssertionError when that is not one expected sentence."""
    started = time.process_time()
    try:
        freeze(compose(wrong.overrides, with_hydra=True), wrong.overrides, Path("runs/x"))
        sentence = ""
    except Exception as error:
        sentence = explain(error, wrong.overrides)
        assert is_expected(error), f"{wrong.overrides[-1]}: {sentence}"
        assert "\n" not in sentence
    seconds = time.process_time() - started
    said = re.findall(r"did you mean '([^']*)'", sentence)
    return Answer(wrong, sentence, seconds, not wrong.right or any(s in wrong.right for s in said))


def answers(count: int, seed: int) -> list[Answer]:
    """The answers to ``count`` wrong command lines."""
    with warm():
        fuzzer = Fuzzer(seed)
        return [ask(fuzzer.one()) for _ in range(count)]


def report(count: int, seed: int) -> int:
    """Print what was said about ``count`` wrong command lines.

    Returns 1 when one was accepted or took a second of CPU time, or when under 95 % of the hints were right.
    """
    every = answers(count, seed)
    lines = []
    for kind in KINDS:
        own = [a for a in every if a.wrong.kind == kind]
        if own:
            spelt = [a for a in own if a.wrong.right]
            right = f"{100 * sum(a.hinted for a in spelt) / len(spelt):.1f} %" if spelt else "-"
            times = [1000 * a.seconds for a in own]
            lines.append((kind, str(len(own)), str(sum(bool(a.sentence) for a in own)), right, f"{statistics.median(times):.0f}", f"{max(times):.0f}"))
    print_table(("fault", "command lines", "refused", "right hint", "median CPU ms", "slowest CPU ms"), lines)
    typos = [a for a in every if a.wrong.right]
    hinted = sum(a.hinted for a in typos)
    slow = [a for a in every if a.seconds >= 1]
    accepted = [a for a in every if not a.sentence]
    for answer in [*accepted, *slow, *(a for a in typos if not a.hinted)]:
        print(f"{answer.wrong.kind}: {' '.join(answer.wrong.overrides)}\n    {answer.sentence or 'ACCEPTED'}\n    wanted {answer.wrong.right}")
    share = f"{100 * hinted / len(typos):.1f} % of {len(typos)} hints right" if typos else "no hint was wanted"
    print(f"{len(every) - len(accepted)} of {len(every)} refused, {len(every) - len(slow)} in under a second; {share}")
    return int(bool(accepted) or bool(slow) or hinted < 0.95 * len(typos))
