"""Where text comes from: a corpus is a function that returns the training, validation and test text."""

import re
from collections import defaultdict
from functools import cache
from hashlib import sha256
from pathlib import Path

from papermix.errors import UserError

SPLITS = ("train", "val", "test")
PTB_SOURCE = "http://www.fit.vutbr.cz/~imikolov/rnnlm/simple-examples.tgz"


def clusters(texts: dict[str, str], words: int = 12) -> list[list[str]]:
    """Group the names of ``texts`` that repeat each other: two that share ``words`` consecutive words (case, spacing and
    punctuation ignored) are in one group, and so are those linked through others (union-find over shingles).

    Returns the groups in order of first appearance, each in the order of ``texts``. A text with fewer words is one shingle.
    """
    parent = {name: name for name in texts}

    def find(name: str) -> str:
        while parent[name] != name:
            parent[name] = name = parent[parent[name]]
        return name

    owner: dict[tuple[str, ...], str] = {}
    for name, text in texts.items():
        tokens = re.findall(r"\w+", text.lower())
        for start in range(max(1, len(tokens) - words + 1)):
            first = owner.setdefault(tuple(tokens[start : start + words]), name)
            parent[find(name)] = find(first)

    groups = defaultdict(list)
    for name in texts:
        groups[find(name)].append(name)
    return list(groups.values())


def split_clusters(texts: dict[str, str], held_out: float = 0.05, seed: int = 0) -> dict[str, list[str]]:
    """Divide ``texts`` into train, val and test so that no group of :func:`clusters` is on two sides.

    Groups are visited in an order drawn from ``seed`` and their first name; each goes to test, else to val, where it still
    fits into ``held_out`` (a share of all characters), else to train. Names keep the order of ``texts``.
    """
    budget = {side: held_out * sum(map(len, texts.values())) for side in ("test", "val")}
    side_of = {}
    for group in sorted(clusters(texts), key=lambda names: sha256(f"{seed}:{names[0]}".encode()).digest()):
        size = sum(len(texts[name]) for name in group)
        side = next((s for s in budget if size <= budget[s]), "train")
        if side in budget:
            budget[side] -= size
        side_of.update(dict.fromkeys(group, side))
    return {side: [name for name in texts if side_of[name] == side] for side in SPLITS}


@cache
def pydocs(unit: str = "char", split_seed: int = 0) -> dict[str, str]:
    """The language reference that every CPython carries (`pydoc_data.topics`, what ``help()`` shows), split by topic.

    About 465,000 characters in Python 3.11, 5 % more in each later one; val and test take at most 5 % each. Topics that repeat
    each other's text stay on one side (:func:`split_clusters`). Topics are separated by an empty line.
    ``unit`` "word" returns it as the Penn Treebank is written: lower case, words and punctuation marks separated by spaces.
    """
    from pydoc_data.topics import topics

    sides = split_clusters(topics, seed=split_seed)
    texts = {side: "\n".join(topics[name].strip("\n") + "\n" for name in names) for side, names in sides.items()}
    return texts if unit == "char" else {side: spaced_words(text) for side, text in texts.items()}


def spaced_words(text: str) -> str:
    """Lower-case ``text`` and put spaces between words and punctuation marks, line by line.

    A run of one mark stays together (``>>>``, ``**``, ``...``); rulers are cut to four marks.
    """
    tokens = re.compile(r"\w+|([^\w\s])\1*")
    lines = ([m[0] if m[1] is None else m[0][:4] for m in tokens.finditer(line)] for line in text.lower().splitlines())
    return "".join(" ".join(line) + "\n" for line in lines)


def ptb(root: str, unit: str) -> dict[str, str]:
    """The Penn Treebank as prepared by Mikolov et al. (2010, 2012): one sentence a line.

    ``unit`` "word" reads ``ptb.{train,valid,test}.txt`` (929,589 / 73,760 / 82,430 words, ends of lines included), "char" reads
    ``ptb.char.{train,valid,test}.txt`` and turns its notation (characters separated by spaces, ``_`` between words) into text.
    Raises UserError for a missing file.
    """
    prefix = "ptb.char" if unit == "char" else "ptb"
    paths = {side: Path(root) / f"{prefix}.{name}.txt" for side, name in zip(SPLITS, ("train", "valid", "test"))}
    missing = [path.name for path in paths.values() if not path.is_file()]
    if missing:
        raise UserError(
            f"Penn Treebank: {', '.join(missing)} not found in the folder '{root}': copy {'it' if len(missing) == 1 else 'them'} "
            f"there from the folder data/ of {PTB_SOURCE}, or name another folder with dataset.root=FOLDER."
        )
    texts = {}
    for side, path in paths.items():
        lines = path.read_text(encoding="utf-8").splitlines()
        if unit == "char":
            lines = ["".join(line.split()).replace("_", " ") for line in lines]
        texts[side] = "".join(line + "\n" for line in lines)
    return texts
