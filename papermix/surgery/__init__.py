"""Changing a network's shape: which channels belong together, and keeping only some of them; plain PyTorch."""
