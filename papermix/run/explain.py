"""Any exception as one sentence: what is wrong, where, and what to do."""

import errno
import re
import traceback
from functools import cache
from pathlib import Path

from papermix.errors import UserError, nearest

_NO_PLACE = (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR)
_NO_PATH = (errno.ENOENT, errno.EISDIR, errno.ENAMETOOLONG)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_COMPOSERS = ("hydra", "omegaconf", "antlr4")

# what libraries say about settings that only show to be wrong when the data is there, and what a user can do about it
_SAID = (
    (
        r"`val_check_interval` \((\d+)\) must be less than or equal to the number of the training batches \((\d+)\)",
        "trainer.val_check_interval={0} is more than the {1} training batches of an epoch: lower it, "
        "or count over epochs with trainer.check_val_every_n_epoch=null.",
    ),
    (
        r"You requested to check (\S+) of the `\w+` but .*`limit_(\w+)_batches=(\S+?)`",
        "trainer.limit_{1}_batches={0} is less than one batch: use {2} or more.",
    ),
    (
        r"You requested gpu: (.+?) But your machine only has: (.*?)\]?$",
        "hardware.devices asks for {0}, but this machine has only {1}]: ask for fewer, or use hardware=cpu.",
    ),
    (
        r"(?:CUDA out of memory|can't allocate memory|Unable to allocate)\W*(.{0,90})",
        "the memory is too small ({0}): lower dataset.batch_size (and raise trainer.accumulate_grad_batches), "
        "choose a smaller model, or use hardware.precision=bf16-mixed.",
    ),
    (
        r"Error\(s\) in loading state_dict for \w+: (.{0,100})|(loaded state dict contains a parameter group .{0,60})",
        "the run's checkpoint does not fit ({0}...): the code has changed since it began; "
        "choose another folder with hydra.run.dir=DIR, or delete the old one to start anew.",
    ),
    (
        r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\) (?:is killed by signal: ([\w ]+?)\.|exited unexpectedly)",
        "a process that reads data ({0}) was killed (out of memory?): use fewer with dataset.workers=N, or give them more; "
        "the same command continues from the last checkpoint.",
    ),
    (r"No module named '([^'.]+)", "this needs the package {0}, which is not installed: pip install {0}"),
)


def is_expected(error: BaseException) -> bool:
    """Whether the sentence says it all (bad input), so that no trace needs to be kept."""
    return _of_composer(error) or _known(error, []) is not None


def keep_trace(error: BaseException, path: Path) -> None:
    """Write the stack trace of an unexpected error to a file, and note in the error where it is."""
    if is_expected(error):
        return
    try:
        path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except OSError:
        return
    error.add_note(f"the stack trace is in {path}")


def _chain(error: BaseException) -> list[BaseException]:
    """The exception and those it was raised from."""
    chain = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and len(chain) < 8:
        chain.append(inner)
    return chain


def explain(error: BaseException, overrides: list[str] | None = None) -> str:
    """One sentence for an exception; ``overrides`` are the command line's, for nearest spellings."""
    known = _known(error, overrides or [])
    if known is not None:
        return known
    if type(error).__name__ == "InstantiationException" and error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}: {text[:300] or 'no message'}"


def _known(error: BaseException, overrides: list[str]) -> str | None:
    """The sentence for an exception that a user can cause, None for any other."""
    chain = _chain(error)
    for cause in chain:
        if isinstance(cause, UserError):
            return str(cause)
    if any(isinstance(cause, KeyboardInterrupt) for cause in chain):
        return "stopped by the keyboard; the same command continues."
    if _of_composer(error):
        return _composition(error, overrides)
    for cause in chain:
        if isinstance(cause, OSError) and cause.errno is not None:
            where = f" ({cause.filename})" if cause.filename else ""
            if cause.errno in _FULL:
                cure = "free some space and run the same command again; it continues from the last checkpoint."
                return f"the disk is full{where}: {cure}"
            if cause.errno in _NO_PLACE:
                cure = "choose another folder with hydra.run.dir=DIR or paths.outputs=DIR."
                return f"cannot write or read{where}, {cause.strerror}: {cure}"
            if cause.errno in _NO_PATH and cause.filename:
                return f"cannot use {cause.filename} ({cause.strerror}): check that path (hydra.run.dir, paths.*, dataset.*)."
        text = " ".join(str(cause).split())
        for pattern, sentence in _SAID:
            if found := re.search(pattern, text):
                return sentence.format(*(g for g in found.groups() if g is not None))
    return None


def _of_composer(error: BaseException) -> bool:
    """Whether Hydra or OmegaConf failed to compose the command line."""
    # the exception of that name is raised around whatever went wrong while an object was built
    if type(error).__name__ == "InstantiationException":
        return False
    return type(error).__module__.split(".")[0] in _COMPOSERS or _BARE in str(error)


_BARE = "Config group override must be a string or a list"


def _composition(error: BaseException, overrides: list[str]) -> str:
    """A failure of Hydra or OmegaConf to compose the command line."""
    chain = _chain(error)
    text = "\n".join(str(e) for e in chain)

    if (bad := next((e.override for e in chain if hasattr(e, "override")), None)) is not None:
        key, equals, _ = bad.partition("=")
        if not equals:
            return f"{bad!r} is no override: write key=value{_hint(bad, overrides)}."
        if key != key.strip() or " " in key:
            return f"{bad!r} cannot be read: write key=value, without spaces in the key or around '='."
        if key.startswith("-"):
            return f"{bad!r} cannot be read: write {bad.lstrip('-')} without dashes."
        return f"{bad!r} cannot be read: close its brackets and quotes, or quote the value, as in 'key=\"a value, with signs\"'."
    if found := re.search(r"Could not (?:find|load) '([^']+)'", text):
        return _unknown_option(found[1], re.findall(r"^\t(\S+)$", text, re.M))
    if _BARE in text or "appears more than once in the final defaults list" in text or "Multiple values for" in text:
        return _bare_option(overrides)
    if found := re.search(r"Could not override '([^']+)'\.? *\n?No match in the defaults list", text):
        return _unknown_key(found[1].split("@")[0], overrides)
    if found := re.search(r"Could not delete from config\. '([^']+)'|Could not delete '([^'=]+)", text):
        return _unknown_key(found[1] or found[2], overrides)
    if found := re.search(r"Could not (?:override|append) '([^']+)'", text) or re.search(r"Key '([^']+)' is not in struct", text):
        return _unknown_key(found[1].split("@")[0], overrides)
    if found := re.search(r"Interpolation key '([^']+)' not found(?:.*?full_key: (\S+))?", text, re.S):
        return f"{found[2] or 'a key'} refers to ${{{found[1]}}}, which this config does not have{_hint(found[1], overrides)}."
    if found := re.search(r"Could not append to config\. An item is already at '([^']+)'", text):
        return f"{found[1]} exists already: drop the '+' in front of it."
    if found := re.search(r"Ambiguous value for argument '(.+)'$", text, re.M):
        return f"{found[1]} looks like a sweep: add -m to run each value, or write key=[a,b] for a list."
    if found := re.search(r"Error merging override (.+)", text):
        reason = str(chain[-1]).splitlines()[0] if "$" not in str(chain[-1]) else str(chain[-2]).splitlines()[0]
        return f"{found[1]} does not fit there: {reason}."
    first = next((line.strip() for e in reversed(chain) for line in str(e).splitlines() if line.strip()), type(error).__name__)
    return f"the command line cannot be composed: {first}"


def _unknown_option(name: str, listed: list[str]) -> str:
    """No file ``group/option``; ``listed`` is what Hydra says that there is, for groups of its own."""
    from papermix.run.catalog import options

    if name == "hydra/launcher/joblib":  # its package brings the option
        return "hydra/launcher=joblib needs what is not installed (hydra-joblib-launcher): pip install 'papermix[joblib]'."
    group, _, option = name.rpartition("/")
    have = listed if group.startswith("hydra") else list(options(group))
    if not have and not group.startswith("hydra"):
        group, _, option = name.partition("/")
        have = list(options(group))
    shown = f"; there are {', '.join(have[:20])}{', ...' if len(have) > 20 else ''}" if have else ""
    return f"{group or 'the config'} has no option {option!r}{nearest(option, have)}{shown}."


def _bare_option(overrides: list[str]) -> str:
    """A group that was given something else than the name of an option, or with a '+'."""
    from papermix.run.catalog import groups, options

    for override in overrides:
        key, _, value = override.partition("=")
        if key.lstrip("+") in groups():
            if key.startswith("+"):
                return f"{override}: {key.lstrip('+')} is chosen already, drop the '+' in front of it."
            if re.fullmatch(r"(?i)null|true|false|[\d.]+", value):
                have = ", ".join(options(key)) or "none"
                cure = ", or leave it out" if value.lower() == "null" else ""
                return f"{override} is not possible: {key} takes the name of an option{cure}; there are {have}."
    return "a config group is given no name of an option: write group=NAME."


@cache
def _candidates(overrides: tuple[str, ...]) -> list[str]:
    """All keys of the config with the options that the overrides choose; of the default one when that cannot be composed."""
    from papermix.run.catalog import groups
    from papermix.run.check import key_paths
    from papermix.run.compose import compose

    chosen = [o for o in overrides if o.partition("=")[0] in groups()]
    hydra = any(o.startswith("hydra.") for o in overrides)
    for choice in dict.fromkeys((tuple(chosen), ())):
        try:
            return key_paths(compose(list(choice), with_hydra=hydra))
        except Exception:  # one of the options may be what is wrong, or the default config itself
            continue
    return []


def _hint(key: str, overrides: list[str]) -> str:
    return nearest(key, _candidates(tuple(overrides)))


def _unknown_key(key: str, overrides: list[str]) -> str:
    from papermix.run.catalog import groups, holders

    if key in groups():
        return f"{key} is chosen by a recipe, not on the command line: use experiment=NAME."
    candidates = _candidates(tuple(overrides))
    parent, _, leaf = key.rpartition(".")
    if have := holders(key):
        return f"there is no key {key!r} in this mix: it belongs to {', '.join(have[:8])}{', ...' if len(have) > 8 else ''}."
    new = f"; a new one is added with '+{key}=...'"
    if parent and parent not in groups() and parent not in candidates:
        return f"there is no key {key!r}{nearest(key, candidates)}."
    # a wrong last part is looked for among its siblings first, then in the same place of other groups
    siblings = [c.rpartition(".")[2] for c in candidates if c.rpartition(".")[0] == parent]
    if parent:
        elsewhere = [c for c in candidates if c.rpartition(".")[2] == leaf]
        close = nearest(leaf, siblings) or (f" (did you mean '{elsewhere[0]}'?)" if elsewhere else "")
        shown = ", ".join(s for s in siblings if not s.startswith("_")) or "none"
        return f"there is no key {key!r}{close}; {parent} has {shown}{new if not close else ''}."
    inside = [c for c in candidates if c.count(".") == 1 and c.rpartition(".")[2] == leaf]
    close = f" (did you mean '{inside[0]}'?)" if inside else nearest(key, [*groups(), *candidates])
    return f"there is no key {key!r}{close or new}."
