"""Optimizers, parameter groups and learning-rate schedules; plain PyTorch."""

from papermix.optimizers.avagrad import AvaGrad, AvaGradW, DelayedAdam
from papermix.optimizers.by_name import by_name
from papermix.optimizers.groups import param_groups
from papermix.optimizers.masks import WithMasks, with_masks

__all__ = ["AvaGrad", "AvaGradW", "DelayedAdam", "WithMasks", "by_name", "param_groups", "with_masks"]
