"""Measures: parameters, FLOPs, density, and metrics that no library has."""
