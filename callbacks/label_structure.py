"""Label structure (Mostajabi et al. 2018): an auxiliary branch through a frozen decoder of labels, with any dense method."""

import hashlib
from collections.abc import Callable
from itertools import islice
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from callbacks.base import Callback, log_numbers
from papermix.errors import UserError
from papermix.metrics.segmentation import MeanIoU
from papermix.segmentation.label_structure import LabelAutoencoder, LabelStructure, Loss, Mode

# the name under which an optimizer's parameter groups see the branch
NAME = "label_structure"
# batches of training labels that the autoencoder must be able to say again
LOOKED_AT = 8


class LabelStructureDriver(Callback):
    """Gives a segmentation network, while it is trained, a second way to explain its labels; see
    :mod:`papermix.segmentation.label_structure`.

    Works with every method that asks its task for the loss of the head ``semantic``. The branch reads what the network's heads
    read, and its loss is added to the task's. It stands beside the network, never in it: the method's ``state_dict``, what a
    sparsity prunes, an average of weights, what is validated, tested, counted and exported are the plain network's at all times.
    Its own weights are in this callback's part of the checkpoint, those of the frozen autoencoder only as a checksum: to go on,
    a run needs that file; to test or export, it does not.

    Logs ``train/label_structure_loss``, unweighted; at the start, in the result too, ``label_structure/autoencoder_iou``: how
    well the autoencoder says training labels again.

    Args:
        autoencoder: checkpoint of a run of method=label_autoencoder.
        decoder: ``frozen``, ``tuned``, ``random``, ``scratch`` or ``joint``; see :class:`LabelStructure`.
        loss: ``cross_entropy``, ``squared`` or ``code``.
        layer: the decoder's hidden layer that the branch predicts; 0: the code.
        weight: of the branch's loss beside the task's; 0: the network trains as if it were alone.
        warmup: part of the training over which the weight rises from 0.
        hypercolumn: the branch also reads all maps of the network's backbone.
        width: channels of the branch's own layer.
        norm: of the branch: ``batch``, ``group`` or ``none``.
        least_iou: refuse to start with a trained autoencoder that says training labels again with a lower mean IoU (not of fake
            data, and not where the training batches are limited to a number).

    Raises:
        UserError: values out of range; no autoencoder, a bad one, or one of other data; a model or data that it cannot act on.
    """

    def __init__(
        self,
        autoencoder: str | None = None,
        decoder: Mode = "frozen",
        loss: Loss = "cross_entropy",
        layer: int = 0,
        weight: float = 1.0,
        warmup: float = 0.0,
        hypercolumn: bool = False,
        width: int = 64,
        norm: str = "batch",
        least_iou: float = 0.9,
    ) -> None:
        if not weight >= 0:
            raise UserError(f"callbacks.label_structure.weight={weight} must be at least 0.")
        for key, value in (("warmup", warmup), ("least_iou", least_iou)):
            if not 0 <= value <= 1:
                raise UserError(f"callbacks.label_structure.{key}={value} must be from 0 to 1.")
        # the machinery loads these runs' networks
        self.runs = [autoencoder] if autoencoder else []
        self.networks: dict[str, nn.Module] = {}
        self.autoencoder, self.weight, self.warmup = autoencoder, weight, warmup
        self.hypercolumn, self.least_iou = hypercolumn, least_iou
        self.trained = decoder in ("frozen", "tuned")
        self.options: dict[str, Any] = {"width": width, "layer": layer, "loss": loss, "decoder": decoder, "norm": norm}
        self.structure: LabelStructure | None = None
        self.digest = ""
        self.total_steps = 1
        self._known: LabelAutoencoder | None = None
        self._maps: dict[str, Any] = {}
        self._handles: list[Any] = []
        self._task: Any = None
        self._step = 0
        self._latest: Tensor | None = None

    # ---- beside the network ---------------------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Before the optimizer is made: read the autoencoder, build the branch, and let the optimizer train it, too."""
        if stage != "fit" or self.structure is not None:
            return
        channels = self._channels(pl_module)
        known = self._autoencoder(pl_module)
        # the network's own random numbers are as without a branch
        with torch.random.fork_rng(devices=[]):
            self.structure = LabelStructure(known, channels, **self.options)
        like = next(pl_module.model.parameters())
        self.structure.to(trainer.strategy.root_device, like.dtype)
        self._known = known.to(trainer.strategy.root_device, like.dtype).eval()
        pl_module.optimizer_factory = together(pl_module.optimizer_factory, self.structure)

    def _channels(self, pl_module: Any) -> list[int]:
        """Channels of the maps that the branch reads."""
        model, task = pl_module.model, pl_module.task
        if "semantic" not in getattr(task, "heads", {}) or not hasattr(task, "terms"):
            raise UserError("callbacks=label_structure needs data with a class for every pixel, such as dataset=shapes_semantic.")
        name = type(model).__name__
        heads = getattr(model, "head", None)
        if not isinstance(heads, nn.ModuleDict) or not len(heads) or not hasattr(model, "num_features"):
            raise UserError(f"callbacks=label_structure cannot find the features of {name}: use model=unet, fpn or deeplabv3.")
        backbone = getattr(model, "backbone", None)
        if self.hypercolumn and not hasattr(backbone, "channels"):
            raise UserError(f"callbacks.label_structure.hypercolumn=true needs a backbone with maps, which {name} lacks.")
        return [model.num_features, *(getattr(backbone, "channels", ()) if self.hypercolumn else ())]

    def _autoencoder(self, pl_module: Any) -> LabelAutoencoder:
        """The autoencoder that was loaded."""
        known = self.networks.pop(self.autoencoder or "", None)
        if known is None:
            raise UserError(
                "callbacks.label_structure.autoencoder names no autoencoder of labels: give a stage or run folder of "
                "method=label_autoencoder."
            )
        if not isinstance(known, LabelAutoencoder):
            kind = type(known).__name__
            raise UserError(
                f"callbacks.label_structure.autoencoder={self.autoencoder} is a {kind}: train one with method=label_autoencoder."
            )
        classes = pl_module.task.num_classes
        if known.num_classes != classes:
            raise UserError(
                f"callbacks.label_structure.autoencoder={self.autoencoder} knows {known.num_classes} classes, but these data "
                f"have {classes}: train one on their labels."
            )
        self.digest = digest(known.state_dict())
        return known

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """See the features go by, and add to the task's loss."""
        model = pl_module.model
        self._handles = [next(iter(model.head.values())).register_forward_pre_hook(self._seer(model, "features"))]
        if self.hypercolumn:
            self._handles.append(model.backbone.register_forward_hook(self._seer(model, "backbone")))
        self._task = pl_module.task
        self._task.terms.append(self._term)

    def _seer(self, model: nn.Module, name: str) -> Callable[..., None]:
        """A hook that keeps the last thing that a part takes or gives while the network is trained."""

        def see(part: nn.Module, *passed: Any) -> None:
            if model.training:
                # a head's arguments, or the backbone's maps
                self._maps[name] = list(passed[-1])

        return see

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Learn the length of training; refuse an autoencoder that cannot say these labels again."""
        total = trainer.estimated_stepping_batches
        self.total_steps = max(1, int(total)) if total != float("inf") else 1
        if self.warmup and total == float("inf"):
            raise UserError("callbacks.label_structure.warmup must know how long training is: set trainer.max_epochs.")
        known, self._known = self._known, None
        if trainer.global_step or not self.trained or known is None:
            return
        quality = MeanIoU(known.num_classes).to(pl_module.device)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            for batch in islice(trainer.datamodule.train_dataloader(), LOOKED_AT):  # type: ignore[attr-defined]
                labels = batch["semantic"].to(pl_module.device)
                quality.update(known(labels)["semantic"].argmax(1), labels)
        found = float(quality.compute()["mean_iou"])
        pl_module.publish({"label_structure/autoencoder_iou": found})
        # random labels, or a few batches of them, are learned by nobody
        fake = getattr(trainer.datamodule, "fake", False)  # type: ignore[attr-defined]
        tried_out = fake or isinstance(trainer.limit_train_batches, int)
        if found < self.least_iou and not tried_out:
            raise UserError(
                f"the autoencoder {self.autoencoder} says training labels again with a mean IoU of {found:.3f} only: train it "
                f"longer, widen model.code, or lower callbacks.label_structure.least_iou={self.least_iou}."
            )

    # ---- in training ----------------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """The place in training, on which the weight depends."""
        self._step, self._latest = trainer.global_step, None

    def present_weight(self) -> float:
        """The weight at this step."""
        rise = self.warmup * self.total_steps
        return self.weight * min(1.0, self._step / rise) if rise else self.weight

    def _term(self, output: Any, batch: dict[str, Tensor]) -> Tensor:
        """What is added to the task's loss of a batch, once for each pass through the network."""
        labels = batch["semantic"]
        if not self._maps:
            return labels.new_zeros((), dtype=torch.float32)
        maps = [m for name in ("features", "backbone") for m in self._maps.pop(name, ())]
        assert self.structure is not None
        first, *others = (self._task.mean(loss, known.sum()) for loss, known in self.structure(maps, labels))
        self._latest = first.detach()
        return self.present_weight() * first + sum(others)

    def on_after_backward(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """The branch's gradients are averaged over processes; Lightning does so with those of the method alone."""
        if trainer.world_size > 1 and self.structure is not None:
            gradients = [p.grad for p in self.structure.parameters() if p.grad is not None]
            flat = torch.cat([g.flatten() for g in gradients])
            torch.distributed.all_reduce(flat)
            flat /= trainer.world_size
            for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients])):
                gradient.copy_(mean.view_as(gradient))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log; refuse a method that never asked for the loss that the branch's is added to."""
        if self._latest is None:
            name = type(pl_module).__name__
            raise UserError(f"{name} does not ask its task for a loss, to which callbacks=label_structure could add one.")
        step, every = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        if trainer.loggers and every and step != self._step and step % every == 0:
            log_numbers(trainer, {"train/label_structure_loss": float(self._latest)}, step)

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Nothing of the branch stays at the network or the task."""
        for handle in self._handles:
            handle.remove()
        if self._task is not None:
            self._task.terms.remove(self._term)
        self._handles, self._task = [], None
        self._maps.clear()

    # ---- state ----------------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The branch, and a checksum of the autoencoder."""
        return {"autoencoder": self.digest, "branch": self.structure.state_dict() if self.structure else {}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`, in training."""
        if self.structure is None:
            return
        if state_dict["autoencoder"] != self.digest:
            raise UserError(f"{self.autoencoder} is not the autoencoder with which this run began: bring that one back.")
        self.structure.load_state_dict(state_dict["branch"])


def together(make: Callable[..., torch.optim.Optimizer], structure: nn.Module) -> Callable[..., torch.optim.Optimizer]:
    """``make(module)``, where the module has ``structure`` among its own for as long as its parameters are grouped."""

    def factory(module: nn.Module, **options: Any) -> torch.optim.Optimizer:
        module.add_module(NAME, structure)
        try:
            return make(module, **options)
        finally:
            delattr(module, NAME)

    return factory


def digest(state: dict[str, Tensor]) -> str:
    """A checksum of tensors by name."""
    found = hashlib.sha256()
    for name in sorted(state):
        found.update(name.encode())
        found.update(state[name].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
