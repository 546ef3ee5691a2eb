"""What ``scripts/export.py`` is made of: a run's network as evaluation had it, its files, programs without Python classes."""
