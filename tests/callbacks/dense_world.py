"""Dense data of a few images and methods that know the truth, for the tests of what is drawn and written of them."""

from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datamodules.augment import Normalize
from datamodules.loaders import Loader
from lightning_modules.dense_tasks import DenseRegression, PanopticSegmentation, SemanticSegmentation
from papermix.segmentation.segments import VOID, Category, Segments, semantic_of, truth_of

# numbers of the publisher with gaps, as COCO has them
CATEGORIES = (
    Category(1, "cat", True, (200, 60, 40)),
    Category(7, "dog", True, (40, 160, 40)),
    Category(92, "grass", False, (30, 60, 220)),
)
SIZES = ((12, 16), (16, 10), (14, 14), (16, 16), (9, 16))  # of the truth
BATCH = 2


def example(number: int) -> dict[str, Tensor]:
    """Grass with two cats that touch, a dog that is a crowd, and void at the top; ids count from 100 in steps of 7."""
    height, width = SIZES[number]
    map = torch.ones(height, width, dtype=torch.int64)
    map[3:7, 1:4], map[3:7, 4:8], map[-2:, -4:], map[0] = 2, 3, 4, 0
    category, crowd = torch.tensor([2, 0, 0, 1]), torch.tensor([False, False, False, True])
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(number))
    return {"image": image, "image_id": torch.tensor(100 + 7 * number), "panoptic": map, "category": category, "crowd": crowd}


def batch_of(numbers: list[int]) -> dict[str, Tensor]:
    """Images padded to 16x16, and their truths."""
    parts = [example(n) for n in numbers]

    def padded(tensor: Tensor, fill: float) -> Tensor:
        return F.pad(tensor, (0, 16 - tensor.shape[-1], 0, 16 - tensor.shape[-2]), value=fill)

    sizes = torch.tensor([p["panoptic"].shape for p in parts])
    semantic = [semantic_of(p["panoptic"], p["category"]) for p in parts]
    return {
        "image": torch.stack([padded(PLAIN.normalize(p["image"] * 255), 0) for p in parts]),
        "size": sizes,
        "truth_size": sizes,
        "image_id": torch.stack([p["image_id"] for p in parts]),
        "index": torch.tensor(numbers),
        "semantic": torch.stack([padded(s, VOID) for s in semantic]),
        "panoptic": torch.stack([padded(p["panoptic"], 0) for p in parts]),
        "category": torch.stack([p["category"] for p in parts]),
        "crowd": torch.stack([p["crowd"] for p in parts]),
        "depth": torch.stack([padded(p["image"][:1], float("nan")) for p in parts]),
    }


PLAIN = Normalize([0.4, 0.5, 0.6], [0.2, 0.3, 0.25])


class Scenes(Loader):
    """The images in batches of two, the last one alone."""

    def __len__(self) -> int:
        return -(-len(SIZES) // BATCH)

    def batches(self, epoch: int, first: int):
        for number in range(first, len(self)):
            yield batch_of(list(range(len(SIZES)))[number * BATCH : (number + 1) * BATCH])


class Data(pl.LightningDataModule):
    """Five images for everything."""

    categories = CATEGORIES
    plain = PLAIN

    def __init__(self, kind: str = "panoptic") -> None:
        super().__init__()
        self.kind = kind

    def train_dataloader(self) -> Scenes:
        return Scenes()

    val_dataloader = test_dataloader = train_dataloader


class Seer(pl.LightningModule):
    """Says the truth, but that all dogs are cats, or that all is deeper by 0.25; counts the images that it is asked about.

    Args:
        kind: ``semantic``, ``panoptic`` or ``depth``.
        tell: give the output of validation and test steps.
    """

    def __init__(self, kind: str = "panoptic", tell: bool = False) -> None:
        super().__init__()
        tasks = [SemanticSegmentation(3), PanopticSegmentation(3, [0, 1]), DenseRegression("depth")]
        self.model, self.task = nn.Linear(1, 1), next(task for task in tasks if task.target == kind)
        self.kind, self.tell, self.asked = kind, tell, 0

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.model(batch["image"].mean().view(1, 1)).sum()

    def predict(self, batch: dict[str, Tensor], split: str) -> dict[str, Any]:
        self.asked += len(batch["image"])
        if self.kind == "depth":
            return {"depth": batch["depth"].nan_to_num() + 0.25}
        cats = batch["semantic"].masked_fill(batch["semantic"] == 1, 0)
        output: dict[str, Any] = {"semantic": F.one_hot(cats.where(cats != VOID, 2), 3).movedim(-1, 1).float()}
        if self.kind == "panoptic":
            truths = [truth_of(batch, place) for place in range(len(cats))]
            output["segments"] = [Segments.of(t.map, t.category.where(t.category != 1, 0)) for t in truths]
        return output

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
        output = self.predict(batch, "val")
        return output if self.tell else None

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)
