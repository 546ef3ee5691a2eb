"""Pictures and curves: the right files at the right time, readable as images, drawn from the right numbers."""

from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from callbacks import curves, pictures
from callbacks.curves import Curves
from callbacks.pictures import Pictures, pixels
from papermix.errors import UserError
from papermix.run.loggers import Guarded, csv
from tests.callbacks.world import Small, fit, trainer


class Album:
    """A logger that takes pictures."""

    def __init__(self) -> None:
        self.pictures: list[tuple[str, str, int]] = []

    def log_picture(self, name: str, path: Path, step: int) -> None:
        """Keep what is passed on."""
        self.pictures.append((name, path.name, step))


def test_pictures_every_second_validation_and_at_the_end(tmp_path: Path) -> None:
    album = Album()
    logger = Guarded("album", str(tmp_path), lambda: album)
    fit(Small(), trainer(tmp_path, [Pictures(count=10, every=2)], [logger]))
    names = ["step_000006.png", "step_000018.png", "final.png"]
    assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == sorted(names)
    assert album.pictures == [("val/predictions", name, step) for name, step in zip(names, (6, 18, 18))]
    image = imread(tmp_path / "pictures/final.png")
    assert image.ndim == 3
    assert image.std() > 0.05


def test_wrong_predictions_are_framed_red(tmp_path: Path) -> None:
    images = torch.full((4, 6, 6, 3), 0.5)

    def reds(predicted: list[int]) -> int:
        pictures.draw(images, torch.zeros(4, dtype=torch.long), torch.tensor(predicted), ("zero", "one"), tmp_path / "a.png")
        image = torch.tensor(imread(tmp_path / "a.png"))
        return int(((image[..., 0] > 0.6) & (image[..., 1] < 0.3)).sum())

    none, one, two = reds([0, 0, 0, 0]), reds([0, 1, 0, 0]), reds([0, 1, 1, 0])
    assert none == 0
    assert two == pytest.approx(2 * one, rel=0.2)
    assert one > 500


def test_pixels_undo_the_normalisation() -> None:
    from datamodules.augment import Normalize

    raw = torch.randint(0, 256, (5, 3, 4, 4))
    plain = Normalize([0.4, 0.5, 0.6], [0.2, 0.3, 0.25])
    torch.testing.assert_close(pixels(plain.normalize(raw), plain), (raw / 255).permute(0, 2, 3, 1))
    grey = pixels(torch.randn(2, 1, 4, 4))
    assert grey.shape == (2, 4, 4, 3)
    assert (grey.amin(), grey.amax()) == (0, 1)


def test_curves_are_drawn_at_the_end(tmp_path: Path) -> None:
    album = Album()
    fit(Small(), trainer(tmp_path, [Curves()], [csv(str(tmp_path)), Guarded("album", str(tmp_path), lambda: album)]))
    assert [name for name, *_ in album.pictures] == ["curves"]
    assert imread(tmp_path / "curves.png").std() > 0.05


def test_curves_group_by_quantity(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(
        "step,epoch,name,value\n1,0,train/loss,2.0\n2,0,train/loss,1.0\n2,0,val/loss,nan\n2,0,val/accuracy,0.5\n"
        "2,0,lr/a,0.1\n2,0,lr/b,0.2\n2,0,sparsity/density,0.3\n"
    )
    series = curves.read(tmp_path / "metrics.csv")
    assert series["train/loss"] == ([1, 2], [2.0, 1.0])
    assert list(curves.panels(series).items()) == [
        ("loss", ["train/loss", "val/loss"]),
        ("accuracy", ["val/accuracy"]),
        ("lr", ["lr/a", "lr/b"]),
        ("sparsity/density", ["sparsity/density"]),
    ]
    assert curves.draw(series, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").exists()
    assert not curves.draw({}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    import ast

    heavy = {"matplotlib", "wandb", "mlflow", "tensorboard", "sklearn", "timm", "torchvision"}
    root = Path(__file__).parents[2]
    for path in [*(root / "callbacks").glob("*.py"), root / "papermix/run/loggers.py", root / "papermix/run/checkpoint_io.py"]:
        for node in ast.parse(path.read_text()).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [str(getattr(node, "module", ""))]
            assert not heavy & {name.split(".")[0] for name in names}, (path.name, names)


def test_bad_settings() -> None:
    with pytest.raises(UserError, match="count=0"):
        Pictures(count=0)
    with pytest.raises(UserError, match="every=0"):
        Pictures(every=0)
