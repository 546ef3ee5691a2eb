"""Training procedures: what is computed from a batch, and how gradients are formed."""
