"""What mixes with what, from the capabilities that options state: the same rule as the mix check, without composing anything."""

from collections.abc import Iterable

from papermix.run.catalog import MIXED, Option, options


def allowed(chosen: Iterable[Option]) -> bool:
    """Whether these options go together: every need is given by one of them, and none clashes with what is given."""
    chosen = list(chosen)
    gives: frozenset[str] = frozenset().union(*(o.gives for o in chosen))
    return all(o.needs <= gives and not o.clashes & gives for o in chosen)


def alike(group: str) -> list[list[Option]]:
    """Options of a group, those with the same capabilities together, in the order of their names."""
    kinds: dict[tuple[frozenset[str], ...], list[Option]] = {}
    for option in options(group).values():
        kinds.setdefault((option.gives, option.needs, option.clashes), []).append(option)
    return list(kinds.values())


def matrix() -> list[tuple[list[Option], list[Option], list[str]]]:
    """(datasets, models, methods that go with each of these pairs), for all kinds of datasets and models."""
    return [
        (datasets, models, [m.name for m in options("method").values() if allowed((datasets[0], models[0], m))])
        for datasets in alike("dataset")
        for models in alike("model")
    ]


def words() -> list[tuple[str, list[str], list[str], list[str]]]:
    """(capability, options that give it, that need it, that clash with it), options as ``group=name``."""
    every = [o for group in MIXED for o in options(group).values()]

    def having(word: str, kind: str) -> list[str]:
        return [f"{o.group}={o.name}" for o in every if word in getattr(o, kind)]

    names = sorted({w for o in every for w in (*o.gives, *o.needs, *o.clashes)})
    return [(w, having(w, "gives"), having(w, "needs"), having(w, "clashes")) for w in names]
