"""Pictures of dense tasks: the right files at the right time, the right colours at the right places."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from torchmetrics import MeanMetric

from callbacks.dense_pictures import GAP, LINE, MOST, DensePictures, Seen, at_truth, legend, measurements, row, score, shown_size
from papermix.errors import UserError
from papermix.run.loggers import Guarded
from papermix.segmentation import draw
from papermix.segmentation.segments import VOID, Category, Segments
from tests.callbacks.dense_world import CATEGORIES, Data, Seer, batch_of
from tests.callbacks.test_pictures import Album
from tests.callbacks.world import trainer


def run(folder: Path, callback: DensePictures, module: Seer | None = None, resume: str | None = None, **keys) -> Seer:
    module = module or Seer()
    trainer(folder, [callback], **keys).fit(module, datamodule=Data(), ckpt_path=resume)
    return module


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "pictures").iterdir())


def look(module: Seer, numbers: list[int]) -> list[Seen]:
    batch = batch_of(numbers)
    runner = SimpleNamespace(datamodule=Data())
    return DensePictures().look(runner, module, batch, module.predict(batch, "val"))  # type: ignore[arg-type]


def test_a_picture_after_every_validation_and_at_the_end(tmp_path: Path) -> None:
    album = Album()
    logger = Guarded("album", str(tmp_path), lambda: album)
    callback = DensePictures(count=3)
    trainer(tmp_path, [callback], [logger], max_epochs=2).fit(Seer(), datamodule=Data())
    assert names(tmp_path) == ["final.png", "step_000003.png", "step_000006.png"]
    shown = [("step_000003.png", 3), ("step_000006.png", 6), ("final.png", 6)]
    assert album.pictures == [("val/predictions", name, step) for name, step in shown]
    assert [one.name for one in callback._seen] == ["100", "107", "114"], "from two batches"
    assert imread(tmp_path / "pictures/final.png").std() > 0.05


def test_a_continued_run_keeps_the_turn(tmp_path: Path) -> None:
    callback = DensePictures(count=1, every=2)
    run(tmp_path / "whole", DensePictures(count=1, every=2), max_epochs=4)
    first = trainer(tmp_path / "cut", [callback], max_epochs=1)
    first.fit(Seer(), datamodule=Data())
    first.save_checkpoint(tmp_path / "a.ckpt")
    run(tmp_path / "cut", DensePictures(count=1, every=2), Seer(), str(tmp_path / "a.ckpt"), max_epochs=4)
    assert names(tmp_path / "cut") == names(tmp_path / "whole") == ["final.png", "step_000003.png", "step_000009.png"]


def test_the_network_runs_again_only_where_the_step_is_silent(tmp_path: Path) -> None:
    silent = run(tmp_path / "a", DensePictures(count=3), Seer(), max_epochs=1)
    assert silent.asked == 5 + 3
    telling = run(tmp_path / "b", DensePictures(count=3), Seer(tell=True), max_epochs=1)
    assert telling.asked == 5
    assert (tmp_path / "a/pictures/final.png").read_bytes() == (tmp_path / "b/pictures/final.png").read_bytes()


def test_only_the_first_process_looks_and_draws(tmp_path: Path) -> None:
    callback = DensePictures()
    state = SimpleNamespace(fn="fit")
    place = {"is_global_zero": False, "default_root_dir": str(tmp_path), "global_step": 1}
    other = SimpleNamespace(sanity_checking=False, state=state, **place)
    callback.on_validation_batch_end(other, None, None, batch_of([0]), 0)  # type: ignore[arg-type]
    callback.on_validation_end(other, None)  # type: ignore[arg-type]
    assert not callback._seen
    assert not list(tmp_path.iterdir())
    assert callback.state_dict() == {"validations": 1}, "all count alike"


def test_truth_and_prediction_are_at_the_size_of_the_truth(tmp_path: Path) -> None:
    first, second = look(Seer(), [0, 1])
    assert isinstance(first.truth, Segments) and isinstance(second.predicted, Segments)
    assert first.truth.map.shape == (12, 16)
    assert second.predicted.map.shape == (16, 10)
    torch.testing.assert_close(second.image, torch.rand(3, 16, 10, generator=torch.Generator().manual_seed(1)))
    semantic = look(Seer("semantic"), [1])[0]
    assert isinstance(semantic.truth, torch.Tensor) and isinstance(semantic.predicted, torch.Tensor)
    known = semantic.truth != VOID
    assert (semantic.truth == 1).sum() == 8
    assert torch.equal(semantic.predicted[known], semantic.truth.where(semantic.truth != 1, 0)[known])
    # a published truth of three times the size of the image that the network saw
    batch = batch_of([3])
    for name in ("semantic", "panoptic"):
        batch[name] = batch[name].repeat_interleave(3, -1).repeat_interleave(3, -2)[..., :45, :47]
    output, batch["truth_size"] = Seer("semantic").predict(batch_of([3]), "val"), torch.tensor([[45, 47]])
    large = DensePictures().look(SimpleNamespace(datamodule=Data()), Seer("semantic"), batch, output)[0]  # type: ignore[arg-type]
    assert large.truth.shape == large.predicted.shape == (45, 47)  # type: ignore[union-attr]
    assert large.image.shape == (3, 16, 16)


def test_the_score_is_that_of_the_image_alone() -> None:
    # of 176 and 150 pixels with a class 28 are cats, 8 are dogs, taken for cats
    expected = [(28 / 36 + 0 + 1) / 3] * 2
    assert [one.score for one in look(Seer("semantic"), [0, 1])] == [f"mean IoU {value:.3g}" for value in expected]
    # cats and grass are found, the crowd cannot be missed, and the cat on it is forgiven nothing
    assert [one.score for one in look(Seer(), [0])] == [f"PQ {(1 / (1 + 0.25) + 1) / 2:.3g}"]
    assert [one.score for one in look(Seer("depth"), [1])] == ["MAE 0.25"]


def test_the_score_waits_for_no_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def gather(*_: object, **__: object) -> None:
        raise AssertionError("the first process draws alone")

    monkeypatch.setattr("torchmetrics.metric.jit_distributed_available", lambda: True)
    monkeypatch.setattr("torchmetrics.metric.gather_all_tensors", gather)
    for kind in ("semantic", "depth"):
        assert look(Seer(kind), [0])[0].score
    assert look(Seer(), [0])[0].score
    other = MeanMetric()
    other.update(1.0)
    with pytest.raises(AssertionError, match="alone"):
        other.compute()


def test_the_score_of_an_image_of_void_is_none() -> None:
    batch = batch_of([0])
    output = Seer("semantic").predict(batch, "val")
    batch["semantic"] = torch.full_like(batch["semantic"], VOID)
    one, said = at_truth(batch, output, 0, "semantic")
    assert score(Seer("semantic").task, said, one) == "mean IoU –"


def test_panels_of_segments(tmp_path: Path) -> None:
    panels = row(look(Seer(), [3])[0], CATEGORIES)
    factor = 400 // 16
    assert [p.picture.shape for p in panels] == [(400, 400, 3)] * 5
    assert [p.title for p in panels] == [
        "image 121",
        "true segments",
        "prediction: PQ 0.9",
        "errors: 3.33 % of the pixels",
        "prediction over the image",
    ]
    truth, predicted, errors, over = (p.picture for p in panels[1:])

    def at(picture: np.ndarray, y: float, x: float) -> list[int]:
        return picture[int((y + 0.5) * factor), int((x + 0.5) * factor)].tolist()

    assert at(truth, 0, 3) == list(draw.GREY)
    assert at(truth, 10, 3) == at(predicted, 10, 3) == list(CATEGORIES[2].color)
    assert at(truth, 5, 5) == list(CATEGORIES[0].color), "the larger cat"
    assert at(truth, 5, 2) not in ([200, 60, 40], [30, 60, 220]), "the other in another shade"
    between = truth[5 * factor, 4 * factor - 1 : 4 * factor + 1]
    assert all(pixel.tolist() in (list(draw.LIGHT), list(draw.DARK)) for pixel in between)
    crowd = truth[14 * factor + 5 : -5, 12 * factor + 5 : -5].reshape(-1, 3)
    assert {tuple(c) for c in crowd.tolist()} == {tuple(draw.LIGHT), CATEGORIES[1].color}
    assert at(errors, 15, 15) == list(draw.RED)
    assert at(errors, 0, 3) == list(draw.GREY)
    assert at(errors, 5, 5) != list(draw.RED)
    image = panels[0].picture
    assert at(over, 0, 3) == at(image, 0, 3), "void shows the image"
    assert at(over, 10, 3) == pytest.approx([0.6 * c + 0.4 * i for c, i in zip((30, 60, 220), at(image, 10, 3))], abs=1)


def test_panels_of_what_a_method_shows(tmp_path: Path) -> None:
    """Behind the others: numbers as a heat map, regions in colours of their own, frames around both, at the picture's size."""

    class Shower(Seer):
        def views(self, output: dict, batch: dict, place: int) -> list[draw.View]:
            assert len(output["segments"]) == len(batch["image"]) > place
            heat = torch.arange(12.0).view(3, 4) * (place + 1)
            regions = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 2, 2]])
            return [draw.View("heat", heat, torch.tensor([[1, 1, 1, 2]])), draw.View("regions", regions, torch.zeros(0, 4).long())]

    seen = look(Shower(), [0, 1])
    panels = row(seen[1], CATEGORIES)
    assert [p.title for p in panels[-2:]] == ["heat", "regions"] and len(panels) == 7
    heat, regions = (p.picture for p in panels[-2:])
    assert panels[-2].bar == ("viridis", 0.0, 22.0) and panels[-1].bar is None
    assert heat.shape == regions.shape == (400, 250, 3), "of the truth's form"
    high, wide = 400 // 3, 250 / 4
    np.testing.assert_array_equal(heat[-1, -1], draw.heat(torch.tensor([[22.0]]), 0, 22)[0, 0])
    for away, color in ((1, draw.LIGHT), (2, draw.DARK)):
        line = (heat == color).all(-1)
        y, x = np.nonzero(line)
        assert (y.min(), y.max(), x.min(), x.max()) == (high - away, 2 * 400 // 3 + away - 1, int(wide) - away, int(3 * wide) + away - 1)
        assert line.sum() == 2 * (y.max() - y.min() + 1) + 2 * (x.max() - x.min() - 1), "one line around two positions"
    colors = {tuple(c) for c in regions[-1].tolist()}
    assert len(colors) == 1 and colors != {tuple(regions[0, -1].tolist())}
    pale = regions[0, 0]
    assert pale[0] == pale[1] == pale[2] >= 178, "the image where there is no region"
    DensePictures().draw(seen, SimpleNamespace(datamodule=Data()), tmp_path / "a.png")  # type: ignore[arg-type]
    assert imread(tmp_path / "a.png").shape[1] > 7 * 200


def test_panels_of_classes_in_the_file(tmp_path: Path) -> None:
    seen = look(Seer("semantic"), [0, 3])
    DensePictures().draw(seen, SimpleNamespace(datamodule=Data()), tmp_path / "a.png")  # type: ignore[arg-type]
    picture = (imread(tmp_path / "a.png")[..., :3] * 255).round().astype(int)
    for number, top in ((0, GAP + LINE), (1, GAP + 2 * LINE + GAP + 300)):
        panels = row(seen[number], CATEGORIES)
        assert len(panels) == 4
        for column, panel in enumerate(panels):
            left = GAP + column * (400 + GAP)
            high, wide = panel.picture.shape[:2]
            np.testing.assert_array_equal(picture[top : top + high, left : left + wide], panel.picture)
    # grass is the largest class: the first of the legend
    assert picture[GAP + 2 * (LINE + GAP) + 300 + 400 + 9, GAP + 5].tolist() == [30, 60, 220]


def test_the_legend_names_what_occurs_by_area() -> None:
    entries = legend(look(Seer(), [0]), CATEGORIES)
    assert [name for name, _ in entries] == ["grass", "cat", "dog", "crowd", "void", "wrong"]
    swatches = dict(entries)
    assert swatches["cat"][6, 10].tolist() == [200, 60, 40]
    assert swatches["wrong"][6, 10].tolist() == list(draw.RED)
    many = tuple(Category(n, f"class {n}", False, (n, 0, 0)) for n in range(133))
    truth = torch.arange(133).repeat_interleave(torch.arange(133) + 1)[None]
    said = [name for name, _ in legend([Seen("1", torch.rand(3, 4, 4), truth, truth, "")], many)]
    assert said == [f"class {n}" for n in range(132, 132 - MOST, -1)] + [f"and {133 - MOST} more", "wrong"]


def test_panels_of_measurements() -> None:
    truth = torch.linspace(2, 4, 400).expand(1, 20, 400).clone()
    truth[:, :5, :40] = float("nan")
    predicted = truth.nan_to_num(9.0) + 0.5
    panels = measurements(truth, predicted, (20, 400), "MAE 0.5")
    assert [p.title for p in panels] == ["truth", "prediction: MAE 0.5", "absolute error"]
    assert panels[0].bar is None and panels[1].bar is not None and panels[2].bar is not None
    assert panels[1].bar[1:] == pytest.approx((2.02, 3.98), abs=0.02)
    assert panels[2].bar[1:] == pytest.approx((0, 0.5))
    assert panels[0].picture[2, 2].tolist() == panels[2].picture[2, 2].tolist() == list(draw.GREY)
    # the same number has the same colour in both
    assert panels[0].picture[10, 300].tolist() == pytest.approx(panels[1].picture[10, 200].tolist(), abs=3)
    whole = row(Seen("5", torch.rand(3, 20, 400), truth, predicted, "MAE 0.5"), ())
    assert len(whole) == 4
    assert [name for name, _ in legend([Seen("5", torch.rand(3, 20, 400), truth, predicted, "")], ())] == ["no truth"]


def test_a_regression_is_drawn_with_colour_bars(tmp_path: Path) -> None:
    run(tmp_path, DensePictures(count=2), Seer("depth"), max_epochs=1)
    picture = imread(tmp_path / "pictures/final.png")
    # the bar of the prediction: yellow above, dark below
    left = GAP + 2 * (400 + GAP) + 400 + 4
    assert picture[GAP + LINE + 2, left + 3, 0] > 0.9
    assert picture[GAP + LINE + 297, left + 3, :2].max() < 0.3


def test_sizes_of_drawn_images() -> None:
    assert shown_size(64, 64) == (384, 384)
    assert shown_size(480, 640) == (300, 400)
    assert shown_size(1024, 2048) == (200, 400)
    assert shown_size(401, 1) == (400, 1)


def test_bad_settings() -> None:
    with pytest.raises(UserError, match=r"callbacks\.dense_pictures\.count=0"):
        DensePictures(count=0)
    with pytest.raises(UserError, match=r"callbacks\.dense_pictures\.every=0"):
        DensePictures(every=0)
