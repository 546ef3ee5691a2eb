"""LSTM with a linear answer at each step: the baseline whose memory is one vector."""

from collections.abc import Sequence

from torch import Tensor, nn

from papermix.models.image_model import check_positive
from papermix.models.memory.interface import MemoryModel, State, joined, length


class LSTMMemory(MemoryModel):
    """Frame and query as one vector -> LSTM layers -> linear (Hochreiter & Schmidhuber 1997; Gers et al. 2000).

    The query goes in with its frame, as there is no other way for it to choose what is read. The state is (h, c), each
    [B, layers, width].

    Args:
        in_shape, query_shape, out_shape: see :class:`MemoryModel`.
        width: hidden units of a layer.
        layers: LSTM layers.
        forget_bias: initial bias of the forget gates (Jozefowicz et al. 2015); all other weights are U(-1, 1) / sqrt(width).
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        query_shape: Sequence[int] | None,
        out_shape: Sequence[int],
        width: int = 256,
        layers: int = 1,
        forget_bias: float = 1.0,
    ):
        super().__init__(in_shape, query_shape, out_shape)
        check_positive(width=width, layers=layers)
        self.lstm = nn.LSTM(length(in_shape, query_shape), width, layers, batch_first=True)
        self.head = nn.Linear(width, length(out_shape))
        self.cells = layers * width
        for name, parameter in self.lstm.named_parameters():
            if "bias" in name:
                # gates stand in the order input, forget, cell, output; the two biases are summed
                parameter.detach().chunk(4)[1].fill_(forget_bias if "bias_ih" in name else 0.0)

    def remember(self, frames: Tensor, state: State | None, query: Tensor | None, asked: Tensor | None) -> tuple[Tensor, State]:
        # nn.LSTM has its layers in front
        before = None if state is None else tuple(s.transpose(0, 1).contiguous() for s in state)
        x, after = self.lstm(joined(frames, query), before)
        return self.head(x).unflatten(2, self.out_shape), tuple(s.transpose(0, 1) for s in after)
