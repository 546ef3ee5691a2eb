"""Benchmarks by name: each module has ``run(options) -> Report`` and a first docstring line that says what it measures."""

NAMES = ("overhead", "data", "text", "startup", "metrics", "recipes", "optimizers", "sparsity", "osgd", "growing", "growing_runs", "sweep", "sharded")
