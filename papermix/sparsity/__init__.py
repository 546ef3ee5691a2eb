"""Sparsity: parametrizations on the weights of any module, and the schedules that move them; plain PyTorch."""
