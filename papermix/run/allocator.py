"""Memory of a process: glibc's allocator told to keep what is freed, and what one run gives back before the next one starts."""

import atexit
import ctypes
import gc
import sys
from collections.abc import Callable

# parameters of mallopt(3)
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def _mallopt() -> Callable[[int, int], int] | None:
    try:
        return ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return None


def keep_freed_memory() -> bool:
    """Keep freed memory in this process instead of giving it back to the kernel, which zeroes every page anew when it is asked for.

    On the CPU, an LSTM spends a seventh of its step in these page faults. The process then stays as large as it has ever been. Returns
    whether this C library knows how.
    """
    mallopt = _mallopt()
    if mallopt is None:
        return False
    # older versions refuse more than 32 MiB
    mapped = mallopt(_MMAP_THRESHOLD, 1 << 30) or mallopt(_MMAP_THRESHOLD, 32 << 20)
    return bool(mapped and mallopt(_TRIM_THRESHOLD, (1 << 31) - 1))


def give_back_freed_memory() -> bool:
    """The allocator as it is in any program that has freed a large tensor: both thresholds where glibc moves them to by itself."""
    mallopt = _mallopt()
    return bool(mallopt is not None and mallopt(_MMAP_THRESHOLD, 32 << 20) and mallopt(_TRIM_THRESHOLD, 64 << 20))


def return_freed_memory() -> bool:
    """Give all freed memory of a megabyte and more back at once: where weights are shared out, what a block needed must not stay.

    Returns whether this C library knows how.
    """
    mallopt = _mallopt()
    return bool(mallopt is not None and mallopt(_MMAP_THRESHOLD, 1 << 20) and mallopt(_TRIM_THRESHOLD, 1 << 20))


def release_memory() -> None:
    """Give back what a run has used before the next one starts in this process."""
    gc.collect()
    # what the libraries made while they were imported stays anyway; going through it after each run would take 0.2 s
    if not gc.get_freeze_count():
        gc.freeze()
        atexit.register(gc.unfreeze)  # bindings complain of what is left at the end
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
