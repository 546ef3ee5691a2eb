"""Real serving on a clock that stands still: deadlines, stops, filters, energy by files, settings; and one real interference."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from papermix.alert.baselines import Static
from papermix.alert.controller import Alert, Goal
from papermix.alert.interference import Interference
from papermix.alert.power import Rapl, StatedPower, cap_slowdown
from papermix.alert.profile import Profile
from papermix.alert.stream import Machine, Setting, longest_decision, serve
from papermix.errors import UserError
from papermix.models.nested.width_nested import NestedMLP
from tests.alert.world import Slow, Still, zone

ACCURACY = {"plain": [0.9], "nested": [0.5, 0.6, 0.7]}


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Settings change torch's threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def machine(clock: Still, rapl: Rapl | None = None, settings: list[Setting] | None = None) -> Machine:
    """A plain network of 100 ms and a nested one of 10, 20 and 40 ms on one thread; half on two."""
    networks = {"plain": Slow(clock, [0.1]), "nested": Slow(clock, [0.01, 0.01, 0.02])}
    return Machine(networks, settings or [Setting("one", 1), Setting("two", 2)], StatedPower(5, 10), rapl, clock)


def requests(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs that are their own class; the last of each is labelled wrongly."""
    x = torch.tensor([0, 1, 2, 3])
    return [(x, torch.tensor([0, 1, 2, 0]))] * count


def test_a_profile_measures_every_exit_at_every_setting() -> None:
    clock = Still()
    found = machine(clock).profile([torch.tensor([0])], ACCURACY, 0.25, repeats=3, warmup=2)
    rows = {(c.network, c.setting): c for c in found.configurations}
    assert rows["nested", "one"].latency == pytest.approx((0.01, 0.02, 0.04))
    assert rows["nested", "two"].latency == pytest.approx((0.005, 0.01, 0.02))
    assert rows["plain", "two"].latency == pytest.approx((0.05,))
    assert rows["plain", "one"].power == 15 and rows["plain", "two"].power == 25
    assert found.default == "two" and found.idle == 5 / 25 and found.longest == pytest.approx(0.05)


def test_a_stream_keeps_deadlines_by_stopping_between_exits() -> None:
    clock = Still()
    there = machine(clock)
    profile = there.profile([torch.tensor([0])], ACCURACY, 0.25)
    nested = profile.where(network="nested", setting="one")[0]
    seen: list[int] = []
    began = clock.now()
    log = serve(Static(nested), there, profile, requests(3), lambda n: Goal(0.025, energy=0.4), seen.append)
    # the last exit would end 15 ms too late: it is not begun
    assert log.answer == [1, 1, 1] and log.latency == pytest.approx([0.02] * 3)
    assert log.score == [0.75] * 3 and seen == [0, 1, 2]
    assert clock.now() - began == pytest.approx(3 * 0.025)
    assert log.energy == pytest.approx([15 * 0.02 + 5 * 0.005] * 3) and log.summary()["over_budget"] == 0
    clock.factor = 1.3  # the second exit would just miss its time, too: known from the first
    log = serve(Static(nested), there, profile, requests(1), lambda n: Goal(0.025, energy=0.4), seen.append)
    assert log.answer == [0] and log.latency == pytest.approx([0.013])
    clock.factor = 1.0
    slept = clock.slept
    log = serve(Static(nested), there, profile, requests(2), lambda n: Goal(0.1), seen.append)
    assert clock.slept - slept == pytest.approx(2 * 0.06) and log.energy == pytest.approx([15 * 0.04 + 5 * 0.06] * 2)
    log = serve(Static(nested), there, profile, requests(1), lambda n: Goal(0.004), seen.append)
    assert log.answer == [-1] and log.score == [0.25] and log.latency == pytest.approx([0.01])


def test_what_is_learnt_is_the_true_time() -> None:
    clock = Still()
    there = machine(clock)
    profile = there.profile([torch.tensor([0])], ACCURACY, 0.25)
    plain = profile.where(network="plain", setting="one")[0]
    alert = Alert(profile, only=[plain])
    clock.factor = 2.0
    log = serve(alert, there, profile, requests(6), lambda n: Goal(0.12), lambda n: None)
    assert log.slowdown == pytest.approx([2.0] * 6) and alert.mean == pytest.approx(2.0, abs=1e-3) and log.summary()["late"] == 1
    assert log.mean[0] == 1.0 and log.mean[5] == pytest.approx(2.0, abs=1e-2)
    # 5 of 15 watts between inputs: but there was no time between inputs
    assert alert.idle.ratio == pytest.approx(1 / 3, abs=0.02)


def test_the_scheduler_goes_to_quicker_configurations_when_the_machine_is_loaded() -> None:
    clock = Still()
    there = machine(clock)
    profile = there.profile([torch.tensor([0])], ACCURACY, 0.25)

    def begin(n: int) -> None:
        clock.factor = 1.0 if n < 20 else 3.0

    log = serve(Alert(profile), there, profile, requests(40), lambda n: Goal(0.06), begin)
    networks = [profile.configurations[i].network for i in log.chosen]
    assert networks[1:20] == ["plain"] * 19 or set(networks[:20]) == {"nested"}
    assert networks[25:] == ["nested"] * 15 and log.summary()["late"] < 0.1


def test_the_first_exits_alone_are_computed_when_no_more_are_wanted() -> None:
    clock = Still()
    there = machine(clock)
    torch.set_num_threads(1)
    assert [a.exit for a in there.infer("nested", torch.tensor([1]), (1, 2))] == [1, 2] and clock.now() == pytest.approx(0.02)
    assert [a.exit for a in there.infer("nested", torch.tensor([1]), (3,))] == [3]
    assert [a.exit for a in there.infer("nested", torch.tensor([1]), (1, 2, 3), until=0.0)] == [1]


def test_incremental_answers_are_those_of_the_whole_network() -> None:
    torch.manual_seed(0)
    model = NestedMLP(img_size=4, exits=3, width=4, num_classes=5).eval()
    there = Machine({"n": model}, [Setting("s", 1)], StatedPower())
    x = torch.randn(6, 1, 4, 4)
    with torch.no_grad():
        whole = model.forward_exits(x)
    found = there.infer("n", x, (1, 2, 3))
    assert all(torch.allclose(a.output, b, atol=1e-6) for a, b in zip(found, whole))
    assert torch.equal(there.infer("n", x, (1,))[0].output, found[0].output)


def test_the_longest_decision_is_taken() -> None:
    clock = Still()

    class Slower:
        def __init__(self) -> None:
            self.calls = 0

        def choose(self, goal: Goal) -> int:
            self.calls += 1
            clock.time += 0.001 * (self.calls % 3)
            return 0

    assert longest_decision(Slower(), Goal(1.0), clock, 6) == pytest.approx(0.002)


# ---- power ---------------------------------------------------------------------------------------------------------------------


def test_rapl_is_read_and_wraps(tmp_path: Path) -> None:
    one, two = zone(tmp_path, "intel-rapl:0", 900), zone(tmp_path, "intel-rapl:1", 100, "package-1")
    zone(tmp_path, "intel-rapl:0:0", 5, "core")  # a part of a package must not count twice
    (tmp_path / "intel-rapl:7").mkdir()
    rapl = Rapl.find(tmp_path)
    assert rapl is not None and rapl.zones == [one, two]
    (one / "energy_uj").write_text("100\n")  # began anew at 1000
    (two / "energy_uj").write_text("150\n")
    assert rapl.joules() == pytest.approx(250e-6) and rapl.joules() == 0
    with rapl.kept():
        rapl.cap(30.0)
        assert int((one / "constraint_0_power_limit_uw").read_text()) == 15_000_000
    assert int((one / "constraint_0_power_limit_uw").read_text()) == 65_000_000


def test_no_rapl_is_no_rapl(tmp_path: Path) -> None:
    assert Rapl.find(tmp_path) is None and Rapl.find(tmp_path / "none") is None
    (tmp_path / "intel-rapl:0").mkdir()
    (tmp_path / "intel-rapl:0" / "name").write_text("package-0\n")
    assert Rapl.find(tmp_path) is None  # a counter that cannot be read
    with pytest.raises(UserError, match="RAPL cannot be read"):
        machine(Still(), settings=[Setting("capped", 1, 20.0)])
    lone = Rapl([zone(tmp_path, "x", 0)])
    (tmp_path / "x" / "constraint_0_power_limit_uw").unlink()
    (tmp_path / "x" / "constraint_0_power_limit_uw").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        lone.cap(10)


def test_measured_energy_goes_into_profile_and_stream(tmp_path: Path) -> None:
    """20 watts while computing, 4 between."""
    place = zone(tmp_path, "intel-rapl:0", 0)
    (place / "max_energy_range_uj").write_text(str(10**12))

    class Metered(Still):
        def add(self, joules: float) -> None:
            used = float((place / "energy_uj").read_text()) + 1e6 * joules
            (place / "energy_uj").write_text(str(round(used)))

        def compute(self, seconds: float) -> None:
            before = self.time
            super().compute(seconds)
            self.add(20 * (self.time - before))

        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            self.add(4 * seconds)

    clock = Metered()
    there = machine(clock, Rapl.find(tmp_path), [Setting("capped", 1, 30.0)])
    with there.caps_kept():
        profile = there.profile([torch.tensor([0])], ACCURACY, 0.25)
        assert int((place / "constraint_0_power_limit_uw").read_text()) == 30_000_000
        assert profile.configurations[0].power == pytest.approx(20, rel=1e-4) and profile.idle == pytest.approx(0.2, rel=1e-3)
        alert = Alert(profile, only=profile.where(network="nested"))
        log = serve(alert, there, profile, requests(5), lambda n: Goal(0.1), lambda n: None)
    assert log.energy == pytest.approx([20 * 0.04 + 4 * 0.06] * 5, rel=1e-4) and alert.idle.ratio == pytest.approx(0.2, rel=1e-3)
    assert int((place / "constraint_0_power_limit_uw").read_text()) == 65_000_000


def test_the_stated_models() -> None:
    assert StatedPower(5, 10).busy(2) == 25
    assert (
        cap_slowdown(40, 40) == 1
        and cap_slowdown(5, 40) == pytest.approx(2)
        and cap_slowdown(15, 40, 10) == pytest.approx(6 ** (1 / 3))
    )
    assert cap_slowdown(50, 40) == 1
    with pytest.raises(UserError, match="above the 10"):
        cap_slowdown(10, 40, 10)
    with pytest.raises(UserError, match="watts cannot be"):
        StatedPower(-1, 10)


# ---- interference --------------------------------------------------------------------------------------------------------------


def used(pid: int) -> int:
    """Processor time of a process in ticks."""
    return sum(int(n) for n in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])


def test_another_program_works_when_told_and_ends_with_us() -> None:
    import time

    def waited_for(pid: int, ticks: int) -> bool:
        begin = used(pid)
        for _ in range(600):
            if used(pid) - begin >= ticks:
                return True
            time.sleep(0.05)
        return False

    with Interference(2) as load:
        first, second = (w.pid for w in load._workers)
        idle = used(second)
        load.work(1)
        assert waited_for(first, 2) and used(second) == idle
        load.work(2)
        assert waited_for(second, 2)
        load.work(0)
        assert load.running == 0
    assert all(w.returncode == 0 for w in load._workers) and not Path(f"/proc/{first}").exists()
    with pytest.raises(UserError, match="did you mean 'memory'"):
        Interference(1, "memry")


def test_a_profile_of_the_machine_is_one_that_can_be_kept(tmp_path: Path) -> None:
    found = machine(Still()).profile([torch.tensor([0])], ACCURACY, 0.25)
    found.save(tmp_path / "p.json")
    assert Profile.load(tmp_path / "p.json") == found
