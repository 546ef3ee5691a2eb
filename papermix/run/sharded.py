"""Lightning's strategy for sharded training (FSDP2), with checkpoints that any other hardware option reads."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.strategies import ModelParallelStrategy
from pytorch_lightning.strategies.strategy import Strategy
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from papermix.errors import UserError
from papermix.sharding import gathered, is_sharded, like, reshard, same_attributes, shard, units


class Sharded(ModelParallelStrategy):
    """Every process keeps its share of the method's parameters, gradients and optimizer state; batches are shared as under DDP.

    The method is sharded when it is set up: after sparsities were attached, weights loaded and a checkpoint read, before the
    optimizer is made. A checkpoint is one file of whole tensors, the same as without sharding, so a run can go on with any number
    of processes, sharded or not.

    Args:
        blocks: patterns of the names of the network's parts that are put together one at a time; None: its repeated blocks.
    """

    def __init__(self, blocks: Sequence[str] | None = None) -> None:
        super().__init__(save_distributed_checkpoint=False)
        self.blocks = blocks

    # a checkpoint is read before anything is sharded, the optimizer's part after it was made, as without sharding
    restore_checkpoint_after_setup = False
    lightning_restore_optimizer = True

    def setup_environment(self) -> None:
        """One dimension of processes, all of which share the data."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def setup(self, trainer: Trainer) -> None:
        """Shard the method (once), then make the optimizer."""
        method = self.lightning_module
        assert method is not None and self.accelerator is not None
        self.accelerator.setup(trainer)
        if not any(is_sharded(p) for p in method.parameters()):
            self.model = self.precision_plugin.convert_module(method)
            if self._layer_sync is not None:
                self.model = self._layer_sync.apply(method)
            names = units(method) if self.blocks is None else [f"model.{name}" for name in units(method.model, self.blocks)]  # type: ignore[arg-type]
            with same_attributes(method):
                shard(method, names, self.device_mesh["data_parallel"])
                self.model_to_device()  # its shares are there already, but Lightning must know
        self.barrier()
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()

    # ---- steps, inside of which the method's own parameters are whole ------------------------------------------------------------

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """A training step by way of the method's ``forward``, where gradients learn that they are to be shared."""
        with self.precision_plugin.train_step_context():
            return self._forward_redirection(self.model, self.lightning_module, "training_step", *args, **kwargs)  # type: ignore[arg-type]

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """See :meth:`training_step`."""
        with self.precision_plugin.val_step_context():
            return self._forward_redirection(self.model, self.lightning_module, "validation_step", *args, **kwargs)  # type: ignore[arg-type]

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """See :meth:`training_step`."""
        with self.precision_plugin.test_step_context():
            return self._forward_redirection(self.model, self.lightning_module, "test_step", *args, **kwargs)  # type: ignore[arg-type]

    def on_validation_start(self) -> None:
        """Evaluate with the same buffers everywhere: those of the first process, as under DDP."""
        self._share_buffers()

    def on_test_start(self) -> None:
        """See :meth:`on_validation_start`."""
        self._share_buffers()

    def on_validation_end(self) -> None:
        """Nothing stays whole without a backward pass to end it."""
        reshard(self.lightning_module)  # type: ignore[arg-type]

    def on_test_end(self) -> None:
        """See :meth:`on_validation_end`."""
        reshard(self.lightning_module)  # type: ignore[arg-type]

    @torch.no_grad()
    def _share_buffers(self) -> None:
        assert self.lightning_module is not None
        for buffer in self.lightning_module.buffers():
            if buffer.dtype != torch.bool:  # masks are the same everywhere
                torch.distributed.broadcast(buffer, 0)

    # ---- checkpoints of whole tensors --------------------------------------------------------------------------------------------

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The method's state, in shares."""
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """An optimizer's state, in shares."""
        return (optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer).state_dict()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Put all tensors together, those of callbacks too; the first process writes them."""
        checkpoint = gathered(checkpoint, keep=self.is_global_zero)
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options=storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Every process reads the file."""
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take over whole tensors, whether or not the method is sharded yet."""
        method = self.lightning_module
        assert method is not None
        own = method.state_dict()
        state = {name: like(value, own[name]) if name in own else value for name, value in checkpoint["state_dict"].items()}
        method.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take over whole tensors."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(in_shares(optimizer, state))


def in_shares(optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's stored state with what has a parameter's shape sharded as the parameter is.

    Raises:
        UserError: the state is that of another model.
    """
    if "parts" in state:  # papermix.optimizers.WithMasks
        return {"parts": [in_shares(part, own) for part, own in zip(optimizer.parts, state["parts"], strict=True)]}
    parameters = list(chain.from_iterable(group["params"] for group in optimizer.param_groups))
    numbers = list(chain.from_iterable(group["params"] for group in state["param_groups"]))
    if len(parameters) != len(numbers):
        raise UserError("The optimizer's state in the checkpoint is that of another model: use its own config.")
    found: dict[Any, Any] = {}
    for number, parameter in zip(numbers, parameters):
        if number in state["state"]:
            found[number] = {
                key: like(value, parameter) if isinstance(value, Tensor) and value.shape == parameter.shape else value
                for key, value in state["state"][number].items()
            }
    return {**state, "state": found}
