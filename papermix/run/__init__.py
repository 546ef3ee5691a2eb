"""The machinery behind train.py: compose, check, stages, run folders, resume, ranks, sweeps, results."""
