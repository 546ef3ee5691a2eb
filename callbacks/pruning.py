"""Stop a trial of a search that is clearly worse than the others."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.trainer.states import TrainerFn

from callbacks.base import Callback
from papermix.errors import UserError, nearest


class Pruned(Exception):
    """A search has stopped this trial: no failure, but no result to compare either.

    Attributes:
        validations: how many validations it lived; ``metric``, ``value``: what it had reached.
    """

    def __init__(self, validations: int, metric: str, value: float) -> None:
        super().__init__(f"pruned after {validations} validations with {metric}={value:.6g}, which is worse than other trials.")
        self.validations, self.metric, self.value = validations, metric, value


class Pruning(Callback):
    """Reports the validation metric of a trial to its study after each validation, and raises :class:`Pruned` when it is hopeless.

    Steps are validations, counted from 1, so that trials with other batch sizes stay comparable; the count continues with the run. A
    study that has closed the trial already (the same point drawn again) is left alone.

    Args:
        storage: where the study is kept: a journal file or a database URL.
        study: its name.
        number: the trial's number in it.
        metric: the validation metric to report; None: the task's (``pl_module.task.monitor``).
        pruner: name of Optuna's pruner class; ``pruner_options``: its arguments.
    """

    def __init__(
        self,
        storage: str,
        study: str,
        number: int,
        metric: str | None = None,
        pruner: str = "MedianPruner",
        pruner_options: dict[str, Any] | None = None,
    ) -> None:
        self.storage, self.study, self.number, self.metric = storage, study, number, metric
        self.pruner, self.pruner_options = pruner, pruner_options or {}
        self.validations = 0
        self._opened: Any = None

    def state_dict(self) -> dict[str, Any]:
        """Validations so far."""
        return {"validations": self.validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.validations = state_dict["validations"]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report, and stop if told to."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        self.validations += 1
        task: Any = pl_module.task
        metric = self.metric or str(task.monitor)
        if metric not in trainer.callback_metrics:
            names = sorted(trainer.callback_metrics)
            raise UserError(
                f"hydra.sweeper.metric={metric!r} is not measured at validation{nearest(metric, names)}, "
                f"as hydra.sweeper.pruner needs it; there are {', '.join(names) or 'no metrics at all'}."
            )
        value = float(trainer.callback_metrics[metric])
        hopeless = self._report(value) if trainer.is_global_zero else False
        if trainer.world_size > 1:
            hopeless = trainer.strategy.broadcast(hopeless)
        if hopeless:
            raise Pruned(self.validations, metric, value)

    def _report(self, value: float) -> bool:
        """Tell the study; returns whether it gives the trial up."""
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        if self._opened is None:
            optuna.logging.set_verbosity(optuna.logging.ERROR)
            storage = self.storage if "://" in self.storage else JournalStorage(JournalFileBackend(self.storage))
            pruner = getattr(optuna.pruners, self.pruner)(**self.pruner_options)
            self._opened = optuna.load_study(study_name=self.study, storage=storage, pruner=pruner)
        study, storage = self._opened, self._opened._storage
        trial_id = storage.get_trial_id_from_study_id_trial_number(study._study_id, self.number)
        trial = storage.get_trial(trial_id)
        if trial.state.is_finished():
            return False
        storage.set_trial_intermediate_value(trial_id, self.validations, value)
        return study.pruner.prune(study, storage.get_trial(trial_id))
