"""Multigrid networks: layers that map a pyramid of feature maps to a pyramid of feature maps."""
