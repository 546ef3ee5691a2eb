"""Any exception as one sentence: what is wrong, where, and what to do."""

import errno
import re
import traceback
from pathlib import Path

from papermix.errors import UserError, nearest

_NO_PLACE = (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR)


def is_expected(error: BaseException) -> bool:
    """Whether the sentence says it all (bad input), so that no trace needs to be kept."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, *_NO_PLACE):
        return True
    return any(isinstance(e, UserError | KeyboardInterrupt) for e in _chain(error)) or type(error).__module__.split(".")[0] in ("hydra", "omegaconf", "antlr4")


def _chain(error: BaseException) -> list[BaseException]:
    """The exception and those it was raised from."""
    chain = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and len(chain) < 8:
        chain.append(inner)
    return chain


def explain(error: BaseException, overrides: list[str] | None = None) -> str:
    """One sentence for an exception; ``overrides`` are the command line's, for nearest spellings."""
    for cause in _chain(error):
        if isinstance(cause, UserError):
            return str(cause)
    if isinstance(error, KeyboardInterrupt):
        return "stopped by the keyboard; the same command continues."
    module = type(error).__module__.split(".")[0]
    if module in ("hydra", "omegaconf", "antlr4"):
        return _composition(error, overrides or [])
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        if error.errno == errno.ENOSPC:
            return f"the disk is full{where}: free some space, then run the same command again; it continues from the last checkpoint."
        if error.errno in _NO_PLACE:
            return f"cannot write or read{where}, {error.strerror}: choose another folder with hydra.run.dir=DIR or paths.outputs=DIR."
    text = " ".join(str(error).split())
    if type(error).__name__ == "OutOfMemoryError":
        return f"the device has too little memory: lower dataset.batch_size (and raise trainer.accumulate_grad_batches), or use hardware.precision=bf16-mixed ({text[:120]})."
    if type(error).__name__ == "MisconfigurationException" and ("CUDA" in text or "accelerator" in text.lower() or "gpu" in text.lower()):
        return f"this machine has no such accelerator ({text[:160]}): use hardware=cpu or hardware=auto."
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}: {text[:300] or 'no message'}"


def _composition(error: BaseException, overrides: list[str]) -> str:
    """A failure of Hydra or OmegaConf to compose the command line."""
    chain = _chain(error)
    text = "\n".join(str(e) for e in chain)

    if found := re.search(r"Could not (?:find|load) '([^']+)'", text):
        group, _, option = found[1].rpartition("/")
        from papermix.run.catalog import options

        have = list(options(group))
        shown = f"; there are {', '.join(have[:20])}{', ...' if len(have) > 20 else ''}" if have else ""
        return f"{group or 'the config'} has no option {option!r}{nearest(option, have)}{shown}."
    if found := re.search(r"Could not override '([^']+)'\.? *\n?No match in the defaults list", text):
        return _unknown_key(found[1].split("@")[0])
    if found := re.search(r"Could not (?:override|append|delete) '([^']+)'", text) or re.search(r"Key '([^']+)' is not in struct", text):
        return _unknown_key(found[1])
    if found := re.search(r"Interpolation key '([^']+)' not found(?:.*?full_key: (\S+))?", text, re.S):
        return f"{found[2] or 'a key'} refers to ${{{found[1]}}}, which this config does not have{_hint(found[1])}."
    if found := re.search(r"Could not append to config\. An item is already at '([^']+)'", text):
        return f"{found[1]} exists already: drop the '+' in front of it."
    if "Ambiguous value" in text or "requires --multirun" in text:
        shown = next((o for o in overrides if "," in o), "an argument")
        return f"{shown} looks like a sweep: add -m to run each value, or write key=[a,b] for a list."
    if "mismatched input" in text or "token recognition" in text or "no viable alternative" in text or "missing EQUAL" in text or "extraneous input" in text:
        bare = [o for o in overrides if "=" not in o and not o.startswith(("-", "~"))]
        if bare:
            return f"{bare[0]!r} is no override: write key=value{_hint(bare[0])}."
        bad = re.search(r"See .*|parsing override '([^']*)'", text)
        return f"{bad[1] if bad and bad[1] else 'an override'!s} cannot be read: quote it, as in 'key=\"a value, with signs\"'."
    first = next((line.strip() for e in reversed(chain) for line in str(e).splitlines() if line.strip()), type(error).__name__)
    return f"the command line cannot be composed: {first}"


def _hint(key: str) -> str:
    from papermix.run.check import key_paths
    from papermix.run.compose import compose

    try:
        return nearest(key, key_paths(compose([])))
    except Exception:
        return ""


def _unknown_key(key: str) -> str:
    from papermix.run.catalog import CONF
    from papermix.run.check import key_paths
    from papermix.run.compose import compose

    groups = [p.name for p in CONF.iterdir() if p.is_dir()]
    candidates = list(groups)
    try:
        candidates += key_paths(compose([]))
    except Exception:  # the default config itself may be what is broken: then only the groups are known
        return f"there is no key {key!r}{nearest(key, groups)}."
    # a wrong last part is looked for among its siblings first
    parent, _, leaf = key.rpartition(".")
    siblings = [c.rpartition(".")[2] for c in candidates if c.rpartition(".")[0] == parent]
    close = nearest(leaf, siblings)
    if parent and close:
        return f"there is no key {key!r}{close}."
    return f"there is no key {key!r}{nearest(key, candidates)}; a new one is added with '+{key}=...'."
