"""What all datamodules have in common: facts checked once, data loaded once per process, one loader per split."""

import pytorch_lightning as pl
import torch

from datamodules.loaders import Loader, check_batch, warn_of
from papermix.errors import UserError


class DataModule(pl.LightningDataModule):
    """Base of all datamodules. Subclasses give ``load()`` and ``loader(split)``, and ``prepare_data()`` to download.

    The number of processes, this one's rank and its device come from the trainer; without one it is a single process on the CPU.

    Args:
        batch_size: examples (or streams) per optimizer step over ALL processes; each takes an equal share.
        fake: random data of the true shapes, without touching a file.
        limit: at most so many examples of each split (null: all).
        seed: of the order and of the augmentation.

    Raises:
        UserError: a batch size that the processes cannot share; a limit below 1.
    """

    class_names: tuple[str, ...] | None = None

    def __init__(self, batch_size: int, *, fake: bool = False, limit: int | None = None, seed: int = 0):
        super().__init__()
        check_batch(batch_size, 1)
        if limit is not None and limit < 1:
            raise UserError(f"dataset.limit={limit} must be at least 1, or null for all the data")
        self.batch_size, self.fake, self.limit, self.seed = batch_size, fake, limit, seed
        # path -> what is wrong with it: what was left out because of dataset.skip_bad
        self.damaged: dict[str, str] = {}
        self._loaded = False

    def load(self) -> None:
        """Read the data of all splits into this object."""
        raise NotImplementedError

    def loader(self, split: str) -> Loader | None:
        """Return the loader of "train", "val" or "test", or None when there is no such split."""
        raise NotImplementedError

    @property
    def rank(self) -> int:
        """This process, from 0."""
        return self.trainer.global_rank if self.trainer else 0

    @property
    def world(self) -> int:
        """Number of processes."""
        return self.trainer.world_size if self.trainer else 1

    @property
    def device(self) -> torch.device:
        """Where batches are wanted."""
        return self.trainer.strategy.root_device if self.trainer else torch.device("cpu")

    @property
    def frozen(self) -> bool:
        """Whether every epoch repeats the order and the augmentation of epoch 0: when a few batches are to be overfitted."""
        return bool(getattr(self.trainer, "overfit_batches", 0))

    def setup(self, stage: str | None = None) -> None:
        check_batch(self.batch_size, self.world)
        if not self._loaded:
            self.load()
            self._loaded = True
            if self.damaged:
                warn_of(self.damaged)

    def train_dataloader(self) -> Loader:
        loader = self.loader("train")
        if loader is None:
            raise UserError("the train split is empty: check dataset.limit and the data folder")
        return loader

    # Lightning takes an empty list as "there is no such loop"
    def val_dataloader(self) -> Loader | list[Loader]:
        loader = self.loader("val")
        return [] if loader is None else loader

    def test_dataloader(self) -> Loader | list[Loader]:
        loader = self.loader("test")
        return [] if loader is None else loader
