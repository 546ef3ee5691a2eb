"""Losses of the papers as pure functions, and the small modules that they need."""
