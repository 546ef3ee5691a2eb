"""Optimizers, parameter groups and learning-rate schedules; plain PyTorch."""

from papermix.optimizers.by_name import by_name
from papermix.optimizers.groups import param_groups

__all__ = ["by_name", "param_groups"]
