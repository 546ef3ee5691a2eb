"""What methods and tasks need when several processes share a batch."""

import torch
from torch import Tensor


def mean_over_processes(counts: Tensor) -> Tensor:
    """The mean of ``counts`` over all processes, itself when there is one.

    A loss that is a sum over a process's share divided by this has, once gradients are averaged, the gradient of the joint batch's
    mean, however unevenly what is counted (objects, pixels that are not void) falls to the shares.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        counts = counts.clone()
        torch.distributed.all_reduce(counts)
        counts = counts / torch.distributed.get_world_size()
    return counts
