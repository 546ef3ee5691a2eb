"""Contrastive learning of an encoder from views of unlabelled images: SimCLR, MoCo, and either with false negatives cancelled."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.linear_probe import classifier_of
from lightning_modules.method import Method
from lightning_modules.processes import gather, shares
from papermix.errors import UserError, nearest
from papermix.losses.contrastive import CANCEL, Cancel, Keys, contrastive, total, view_keys
from papermix.losses.false_negatives import AGGREGATES, Aggregate, find, quality, support_scores
from papermix.losses.queue import KeyQueue
from papermix.models.momentum import momentum_copy, momentum_restart, momentum_update
from papermix.models.projector import Projector
from papermix.views.views import Views, draw

FRAMEWORKS = ("simclr", "moco")


class Contrastive(Method):
    """Views of an image attract each other, those of other images repel, unless they are found to be of its kind.

    ``simclr``: the keys are all views of the batch (of all processes), and all of them are anchors. ``moco``: the keys come from
    a slowly following copy of encoder and projector, and stay in a queue over many batches; those of the present batch stand in it
    before the loss is computed (Huynh et al. 2022; in MoCo they come in after it).

    The encoder is the model without its classifier. The classifier is an online linear evaluation: trained by an SGD of its own
    on features from which no gradient flows back, it gives ``val/accuracy``; labels serve it, and the measurement of what was found,
    but not the encoder (unless ``oracle`` asks for it). ``train/fn_precision`` and ``train/fn_recall`` say how many of the found
    false negatives are of the anchor's class, and how many of those there are were found; ``train/fn_base_rate`` is the precision
    of guessing.

    Args:
        framework: ``simclr`` or ``moco``.
        views: views of an image that the loss compares, at least 2.
        support: further views by which false negatives are found.
        support_loss: support views are anchors and keys, too (as in the authors' code); false: they only serve the search, and
            are encoded without gradient.
        cancel: what happens to false negatives: ``none``, ``eliminate`` or ``attract``.
        aggregate: score of a key by its cosines to an image's views: ``max`` or ``mean``.
        topk: at most so many false negatives for an image, the best; None: any number.
        threshold: of the score; -1: none.
        start_epoch: epoch, from 0, from which on they are cancelled.
        oracle: cancel what has the same label, to see what perfect search would give. The encoder then learns from labels.
        temperature: tau of the loss.
        queue: keys in the queue of ``moco``.
        momentum: share of itself that the slow copy keeps at each step.
        symmetric: every view of ``moco`` is anchor and key; false: the first is the anchor, the others are keys (He et al.).
        projector: ``layers``, ``hidden`` (None: as many units as features), ``dim`` and ``norm``, see :class:`Projector`.
        augment: what views are made of, see :class:`Views`.
        mean, std: with which the data is normalised.
        probe_lr: learning rate of the online evaluation, with momentum 0.9, moved by the schedule.
        seed: of the views.

    Raises:
        UserError: values out of range, keys that are not known, a model without classifier.
    """

    def __init__(
        self,
        *args: Any,
        framework: str = "simclr",
        views: int = 2,
        support: int = 0,
        support_loss: bool = True,
        cancel: Cancel = "none",
        aggregate: Aggregate = "max",
        topk: int | None = 10,
        threshold: float = 0.7,
        start_epoch: int = 0,
        oracle: bool = False,
        temperature: float = 0.1,
        queue: int = 65536,
        momentum: float = 0.999,
        symmetric: bool = True,
        projector: Mapping[str, Any] | None = None,
        augment: Mapping[str, Any] | None = None,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        probe_lr: float = 0.1,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        known = {"framework": (framework, FRAMEWORKS), "cancel": (cancel, CANCEL), "aggregate": (aggregate, AGGREGATES)}
        for name, (value, names) in known.items():
            if value not in names:
                raise UserError(f"method.{name}={value} must be {', '.join(names)}{nearest(str(value), names)}.")
        counts = {"views": (views, 2), "support": (support, 0), "topk": (topk or 0, 0), "start_epoch": (start_epoch, 0)}
        for name, (count, least) in counts.items():
            if count < least:
                raise UserError(f"method.{name}={count} must be at least {least}.")
        if not temperature > 0:
            raise UserError(f"method.temperature={temperature} must be above 0.")
        if not 0 <= momentum <= 1:
            raise UserError(f"method.momentum={momentum} must be from 0 to 1.")
        if not probe_lr >= 0:
            raise UserError(f"method.probe_lr={probe_lr} must be at least 0.")
        self.moco, self.symmetric = framework == "moco", symmetric or framework == "simclr"
        self.cancel, self.aggregate, self.topk, self.threshold = cancel, aggregate, topk, threshold
        self.start_epoch, self.oracle, self.temperature, self.momentum = start_epoch, oracle, temperature, momentum
        self.probe_lr, self.seed = probe_lr, seed
        # views that the loss compares, and those that are encoded at all
        self.compared = views + support * support_loss
        self.made = self.compared if cancel == "none" or oracle else views + support
        classifier_of(self.model, "contrastive")
        size = {"layers": 2, "hidden": None, "dim": 128, "norm": True}
        self.projector = Projector(_features(self.model), **_options("projector", projector, size))
        self.views = Views(mean, std, **_options("augment", augment, dict.fromkeys(_AUGMENT), fill=False))
        if self.moco:
            self.slow = nn.ModuleDict({"model": momentum_copy(self.model), "projector": momentum_copy(self.projector)})
            self.queue = KeyQueue(queue, self.projector.dim)
        self._stepped = 0

    # ---- training -----------------------------------------------------------------------------------------------------------

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Contrastive loss of a batch, and the loss of the online evaluation."""
        images = batch[self.task.input]
        world = self.trainer.world_size
        sizes = shares(len(images), world, even=not getattr(getattr(self.trainer, "datamodule", None), "skip_bad", False))
        start = sum(sizes[: self.trainer.global_rank])
        place = torch.arange(start, start + len(images), device=images.device)
        draws = draw(
            sum(sizes), self.made, self.seed, "views", self.current_epoch, batch_idx, rows=slice(start, start + len(images))
        )
        views = self.views(images, draws)
        anchors = self.compared if self.symmetric else 1
        features = self._encode(self.model, views[:anchors])
        embedding = self._project(self.projector, features, anchors)
        label = batch.get("clean_label", batch["label"])
        keys, support, key_label = self._keys(embedding, views, label, sizes)
        with torch.autocast(images.device.type, enabled=False):
            found, numbers = self._search(support, keys, place, label, key_label)
            losses = contrastive(embedding, place, keys, self.temperature, found, self.cancel)
        # shares of different size (where damaged images are left out) count by their size
        loss = total(losses) * (len(images) * world / sum(sizes))
        # the evaluation's own: the first view's features, cut off
        probe = self.task.loss(self.model.get_classifier()(features[: len(images)].detach()), batch)
        self.record(loss=loss, probe_loss=probe, **numbers)
        return loss + probe

    def _encode(self, model: Any, views: Tensor) -> Tensor:
        """Features [V * b, F] of views [V, b, C, H, W], of one pass over all of them."""
        return model.forward_head(model.forward_features(views.flatten(0, 1)), pre_logits=True).flatten(1)

    def _project(self, projector: Any, features: Tensor, views: int) -> Tensor:
        """Unit vectors [V, b, d], in single precision: in half of it scores tie."""
        return nn.functional.normalize(projector(features).float(), dim=1).unflatten(0, (views, -1))

    def _keys(self, embedding: Tensor, views: Tensor, label: Tensor, sizes: list[int]) -> tuple[Keys, Tensor, Tensor]:
        """The keys of all processes, the unit vectors by which this one's images search among them, and the keys' labels."""

        def everybody(vectors: Tensor) -> Tensor:
            return gather(vectors.transpose(0, 1).contiguous(), sizes).transpose(0, 1)

        labels = gather(label, sizes)
        if self.moco:
            with torch.no_grad():
                first = 0 if self.symmetric else 1
                slow = self._project(self.slow["projector"], self._encode(self.slow["model"], views[first:]), len(views) - first)
                keys = self.queue.push(everybody(slow[: self.compared - first]), labels, first)
            return keys, slow, self.queue.label
        support = embedding.detach()
        if len(views) > self.compared:
            with torch.no_grad():
                rest = self._project(self.projector, self._encode(self.model, views[self.compared :]), len(views) - self.compared)
            support = torch.cat([support, rest])
        return view_keys(everybody(embedding)), support, labels.repeat(self.compared)

    def _search(
        self, support: Tensor, keys: Keys, place: Tensor, label: Tensor, key_label: Tensor
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """False negatives bool [b, K] of this process's images (None before the search begins), and how good they are."""
        if self.cancel == "none" or self.current_epoch < self.start_epoch:
            return None, {}
        candidates, same = keys.candidates(place), label[:, None] == key_label
        found = same & candidates if self.oracle else self.search(support, keys.embedding.detach(), candidates)
        return found, {f"fn_{name}": value for name, value in quality(found, same, candidates).items()}

    def search(self, support: Tensor, keys: Tensor, candidates: Tensor) -> Tensor:
        """What counts as a false negative among ``keys`` [K, d] for images seen through ``support`` [V, b, d], bool [b, K]."""
        return find(support_scores(support, keys, self.aggregate), candidates, self.topk, self.threshold)

    def embed(self, images: Tensor, views: int, *key: Any) -> Tensor:
        """Unit vectors [V, B, d] of random views of images [B, C, H, W], drawn by ``key``, by the model as it is (for callbacks)."""
        made = self.views(images, draw(len(images), views, self.seed, *key))
        return self._project(self.projector, self._encode(self.model, made), views)

    # ---- the slow copy ------------------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """The copy starts as what the encoder is by now: loaded weights, masks."""
        self._stepped = self.global_step
        if self.moco and self.global_step == 0:
            momentum_restart(self.slow["model"], self.model)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Follow, if the optimizer made a step."""
        if self.moco and self.global_step != self._stepped:
            self._stepped = self.global_step
            momentum_update(self.slow["model"], self.model, self.momentum)
            momentum_update(self.slow["projector"], self.projector, self.momentum)
        super().on_train_batch_end(outputs, batch, batch_idx)

    # ---- numbers and the optimizer ------------------------------------------------------------------------------------------

    def publish(self, numbers: dict[str, float]) -> None:
        """With the numbers of found false negatives, their precision, recall and what guessing would give."""
        counts = {name: numbers.pop(f"train/fn_{name}", None) for name in ("found", "true", "all", "candidates")}
        found, true, present, candidates = (counts[name] for name in ("found", "true", "all", "candidates"))
        if found is not None and true is not None and present is not None and candidates is not None:
            numbers |= {
                "train/fn_found": found,
                "train/fn_precision": true / found if found else float("nan"),
                "train/fn_recall": true / present if present else float("nan"),
                "train/fn_base_rate": present / candidates if candidates else float("nan"),
            }
        super().publish({name: value for name, value in numbers.items() if value == value})

    def make_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer over encoder and projector; the classifier has an SGD of its own."""
        for parameter in classifier_of(self.model, "contrastive").parameters():
            if not getattr(parameter, "is_mask", False):
                parameter.sgd = {"lr": self.probe_lr, "momentum": 0.9, "nesterov": False}  # type: ignore[attr-defined]
        return self.optimizer_factory(self)

    def no_weight_decay(self) -> set[str]:
        """What of the model the optimizer's groups are asked to leave without weight decay."""
        return {f"model.{name}" for name in getattr(self.model, "no_weight_decay", set)()}


_AUGMENT = (
    "size", "crop", "flip", "jitter", "brightness", "contrast", "saturation", "hue", "gray", "blur", "solarize", "randaugment",
)  # fmt: skip


def _options(name: str, given: Mapping[str, Any] | None, known: dict[str, Any], fill: bool = True) -> dict[str, Any]:
    """``given`` on the values of ``known`` (or alone), when it has no other keys."""
    for key in given or {}:
        if key not in known:
            raise UserError(f"method.{name} has no '{key}'{nearest(key, known)}: it knows {', '.join(known)}.")
    return {**(known if fill else {}), **(given or {})}


def _features(model: Any) -> int:
    """Length of what the classifier reads."""
    return int(getattr(model, "head_hidden_size", None) or model.num_features)
