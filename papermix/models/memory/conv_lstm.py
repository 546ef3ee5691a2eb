"""Convolutional LSTM layers at one scale: the baseline without a pyramid."""

from collections.abc import Sequence

from papermix.models.image_model import check_positive
from papermix.models.multigrid.memory import MultigridMemory, Norm


class ConvLSTMMemory(MultigridMemory):
    """Convolutional LSTM layers (Shi et al. 2015), read as :class:`MultigridMemory` is read, which this is with one level.

    Args:
        in_shape, query_shape, out_shape, peepholes, forget_bias, residual, norm: see :class:`MultigridMemory`.
        size: cells along a side, to which frames and queries are resized (nearest neighbour; vectors are cut into channels);
            None: those of the answer if that is a map, or those of the frame, or 3.
        channels: channels of each memory layer.
        decoder_channels: channels of each layer between memory and answer.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        query_shape: Sequence[int] | None,
        out_shape: Sequence[int],
        size: int | None = None,
        channels: Sequence[int] = (16, 16, 16),
        decoder_channels: Sequence[int] = (16,),
        peepholes: bool = False,
        forget_bias: float = 1.0,
        residual: bool = True,
        norm: Norm = "none",
    ):
        if size is None:
            size = next((max(shape[1:]) for shape in (out_shape, in_shape) if len(shape) == 3), 3)
        check_positive(size=size)
        levels, decoder_levels = [1] * len(channels), [1] * len(decoder_channels)
        super().__init__(
            in_shape, query_shape, out_shape, levels, channels, decoder_levels, decoder_channels, size, peepholes, forget_bias,
            residual, norm,
        )  # fmt: skip
