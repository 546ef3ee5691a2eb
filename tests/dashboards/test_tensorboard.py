"""TensorBoard: everything is in the event files, read back by TensorBoard's own reader; a continued run leaves no second copy."""

from pathlib import Path

import pytest

from tests import machine
from tests.dashboards.world import COMMAND, At, outcome, series
from tests.machine import Killed, states_equal

OWN = [*COMMAND, "logger=[csv,tensorboard]", "tags=[night]", "experiment=avagrad/digits"]


def events(place: Path):
    """All that TensorBoard finds in a run folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(place / "tensorboard"), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    return found.Reload()


def scalars(place: Path) -> dict[str, list[tuple[int, float]]]:
    """name -> [(step, value), ...]."""
    found = events(place)
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def text(place: Path, tag: str) -> str:
    """What stands in a text panel."""
    (event,) = events(place).Tensors(f"{tag}/text_summary")
    return event.tensor_proto.string_val[0].decode()


def test_everything_is_there(tmp_path: Path) -> None:
    place = tmp_path / "run"
    machine.run(OWN, place)
    found = scalars(place)
    for name, points in series(place).items():
        assert [step for step, _ in found[name]] == [step for step, _ in points]
        assert [value for _, value in found[name]] == pytest.approx([value for _, value in points])
    assert found["result/parameters"][0][1] > 100
    # the first validation and the last
    assert [e.step for e in events(place).Images("val/predictions")] == [6, 24]
    about = text(place, "run/about")
    for fact in ("| paper | avagrad |", "| method | supervised |", "| dataset | digits |", "| tags | night |", "| git commit | "):
        assert fact in about
    assert "trainer:\n" in text(place, "run/config") and "max_epochs: 4" in text(place, "run/config")
    assert "| test accuracy | " in text(place, "run/result")


def test_hyperparameters_are_those_of_the_config(tmp_path: Path) -> None:
    from tensorboard.plugins.hparams import metadata

    place = tmp_path / "run"
    machine.run([*OWN, "callbacks=[checkpoints]"], place)
    content = events(place).summary_metadata[metadata.SESSION_START_INFO_TAG].plugin_data.content
    start = metadata.parse_session_start_info_plugin_data(content)
    assert start.hparams["optimizer.lr"].number_value == pytest.approx(0.1)
    assert start.hparams["dataset"].string_value == "digits"


@pytest.mark.parametrize("stop", [2, 10])
def test_a_continued_run_leaves_the_record_of_one_never_stopped(stop: int, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    often = [*OWN, "callbacks.checkpoints.every_n_steps=3"]

    def kill() -> None:
        raise Killed

    with pytest.raises(Killed):
        machine.run(often, cut, At(stop, kill))
    first, second = outcome(often, cut), outcome(often, whole)
    assert states_equal(first, second)
    a, b = scalars(cut), scalars(whole)
    for name in ("result/wall_seconds", "result/peak_memory_bytes"):
        del a[name], b[name]
    assert a == b
    assert [e.step for e in events(cut).Images("val/predictions")] == [e.step for e in events(whole).Images("val/predictions")]
    assert text(cut, "run/config").replace(str(cut), str(whole)) == text(whole, "run/config")
