"""Soft parameter sharing: layers whose kernels are learned mixtures of a few templates (Savarese & Maire, ICLR 2019)."""

from papermix.models.sharing.bank import Shared, SharedConv2d, SharedLinear, TemplateBank
from papermix.models.sharing.fold import Folding, Loop, fold, materialise
from papermix.models.sharing.share import above, banks, recurrence, share, similarities, similarity

__all__ = [
    "Folding",
    "Loop",
    "Shared",
    "SharedConv2d",
    "SharedLinear",
    "TemplateBank",
    "above",
    "banks",
    "fold",
    "materialise",
    "recurrence",
    "share",
    "similarities",
    "similarity",
]
