"""papermix.run.allocator: freed memory stays, and goes again."""

import subprocess
import sys

COUNT = """
import resource
from papermix.run import allocator

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * (64 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

done = allocator.{name}()
print(int(done), faults(), faults())
"""


def measured(name: str) -> list[int]:
    """Whether it was done, and the page faults of the first and of the second 64 MiB."""
    done = subprocess.run([sys.executable, "-c", COUNT.format(name=name)], capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


def test_kept_memory_is_not_faulted_in_again():
    done, first, second = measured("keep_freed_memory")
    assert not done or second <= first / 2


def test_usual_memory_is_faulted_in_every_time():
    done, first, second = measured("give_back_freed_memory")
    assert not done or second > first / 2


def test_other_libraries_are_left_alone(monkeypatch):
    from papermix.run import allocator

    monkeypatch.setattr(allocator, "_mallopt", lambda: None)
    assert not allocator.keep_freed_memory()
    assert not allocator.give_back_freed_memory()


def test_an_old_library_gets_what_it_accepts(monkeypatch):
    from papermix.run import allocator

    asked: list[tuple[int, int]] = []

    def mallopt(key: int, value: int) -> int:
        asked.append((key, value))
        return int(key == -1 or value <= 32 << 20)

    monkeypatch.setattr(allocator, "_mallopt", lambda: mallopt)
    assert allocator.keep_freed_memory()
    assert asked == [(-3, 1 << 30), (-3, 32 << 20), (-1, (1 << 31) - 1)]
