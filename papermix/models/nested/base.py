"""What networks with several exits have in common: parts that build on each other, a head for each, computation step by step."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from papermix.models.image_model import ImageModel, Pool, he_init


class State(NamedTuple):
    """How far a computation has come.

    Attributes:
        done: exits computed so far.
        feature: what the last of them gave to its head, ``[B, C, h, w]`` or ``[B, C]`` (the image before the first).
        memory: what later exits read; the image is its first entry.
    """

    done: int
    feature: Tensor
    memory: tuple[Tensor, ...]


class ExitModel(ImageModel):
    """Parts ``exit1``, ``exit2``, ..., each with a head; part k computes what exit k adds to the exits before it.

    Nothing that belongs to an exit acts on an earlier one. All interfaces of :class:`ImageModel` speak of the last exit.

        state = model.start(x)
        while time_remains and state.done < model.num_exits:
            output, state = model.step(state)

    Args:
        parts: one module for each exit, ``State -> State``.
        features: (channels, stride against the image) of the feature that each part gives to its head.
        num_classes, in_chans, global_pool, drop_rate: see :class:`ImageModel`; all heads are alike.

    Attributes:
        num_exits: number of exits.
    """

    def __init__(
        self,
        parts: Sequence[nn.Module],
        features: Sequence[tuple[int, int]],
        num_classes: int,
        in_chans: int,
        global_pool: Pool,
        drop_rate: float,
    ):
        named = {f"exit{k}": part for k, part in enumerate(parts, 1)}
        self.num_exits = len(named)
        super().__init__(named, [(n, c, s) for n, (c, s) in zip(named, features)], num_classes, in_chans, global_pool, drop_rate)

    def start(self, x: Tensor) -> State:
        """The state before the first exit, for images ``[B, in_chans, H, W]``."""
        return State(0, x, (x,))

    def step(self, state: State) -> tuple[Tensor, State]:
        """Compute the next exit: its logits ``[B, num_classes]``, and the state behind it. The state given stays good."""
        state = self.get_submodule(self.part_names[state.done])(state)
        return self.heads()[state.done - 1](self.forward_head(state.feature, pre_logits=True)), state

    def forward_exits(self, x: Tensor) -> list[Tensor]:
        """Logits ``[B, num_classes]`` of all exits, from the cheapest to the last."""
        outputs, state = [], self.start(x)
        for _ in self.part_names:
            output, state = self.step(state)
            outputs.append(output)
        return outputs

    def forward_features(self, x: Tensor) -> Tensor:
        """Image ``[B, in_chans, H, W]`` -> the last exit's feature."""
        return super().forward_features(self.start(x)).feature  # type: ignore[arg-type, attr-defined]

    def forward_intermediates(self, x: Tensor, *args: Any, **kwargs: Any) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Features of the exits; arguments as :meth:`ImageModel.forward_intermediates`."""
        found = super().forward_intermediates(self.start(x), *args, **kwargs)  # type: ignore[arg-type]
        if isinstance(found, list):
            return [state.feature for state in found]  # type: ignore[attr-defined]
        return found[0].feature, [state.feature for state in found[1]]  # type: ignore[attr-defined]

    def heads(self) -> list[nn.Module]:
        """The classifiers of all exits, in order."""
        return [*self.early_heads, self.head]

    def exit_parts(self, exit: int) -> list[nn.Module]:
        """The modules that exit number ``exit`` (from 1) adds: its part and its head. No module belongs to two exits."""
        return [self.get_submodule(f"exit{exit}"), self.heads()[exit - 1]]

    def reset_classifier(self, num_classes: int, global_pool: Pool | None = None) -> None:
        """Put fresh classifiers of ``num_classes`` outputs (0: none) at all exits."""
        super().reset_classifier(num_classes, global_pool)
        like = next(self.parameters())
        widths: list[Any] = [info["num_chs"] for info in self.feature_info[:-1]]
        self.early_heads = nn.ModuleList(nn.Linear(w, num_classes).to(like) if num_classes else nn.Identity() for w in widths)
        self.early_heads.apply(he_init)
