"""The machinery behind train.py: compose, check, stages, run folders, resume, ranks, sweeps, results."""

import os

# Read by OpenMP when torch is loaded. Its threads spin between two operations as long as they are told; on a machine whose cores are
# busy that made small steps a hundred times slower, while a short spin costs nothing on an idle one.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# Whatever a library loads with torch.load, it loads tensors and plain containers only: a pickle could run code.
os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
