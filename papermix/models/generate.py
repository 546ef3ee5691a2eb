"""Sampling from a language model."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def generate(
    model: nn.Module, prompt: Tensor, length: int, temperature: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """Continue ``prompt`` by ``length`` sampled tokens; returns them without the prompt, int64 [length], on the CPU.

    Works with models that carry a state (``stateful = True``) and with those that see the last ``max_length`` tokens of what was
    written so far. The model runs in evaluation mode and is left as it was found.

    Args:
        model: ``model(tokens [1, T])`` -> logits [1, T, V], or ``model(tokens, state)`` -> (logits, state).
        prompt: token numbers, int64 [P], at least one.
        temperature: divides the logits before the softmax; 0 takes the likeliest token.
        generator: CPU generator of the draws; None: torch's global one.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    device = next(model.parameters()).device
    stateful, context = getattr(model, "stateful", False), getattr(model, "max_length", None)
    written, state = prompt.tolist(), None
    try:
        for i in range(length):
            seen = written[-1:] if stateful and i else written[-context:] if context else written
            tokens = torch.tensor([seen], device=device)
            if stateful:
                logits, state = model(tokens, state)
            else:
                logits = model(tokens)
            last = logits[0, -1].float().cpu()
            if temperature == 0:
                token = int(last.argmax())
            else:
                token = int(torch.multinomial((last / temperature).softmax(0), 1, generator=generator))
            written.append(token)
    finally:
        for module, training in modes:
            module.training = training
    return torch.tensor(written[len(prompt) :], dtype=torch.int64)
