"""From logits to the next token, as pure functions. Letters: B batch, V vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Sharpen (< 1) or flatten (> 1) a distribution.

    Args:
        logits: (B, V) float.
        temperature: Above 0; greedy decoding needs no temperature.
    """
    return logits if temperature == 1.0 else logits / temperature


def top_k_filter(logits: Tensor, k: int) -> Tensor:
    """Keep the ``k`` likeliest tokens (and those tied with the last of them), the rest -inf.

    Args:
        logits: (B, V) float.
        k: At least 1; the whole vocabulary if larger.
    """
    if k >= logits.shape[-1]:
        return logits
    threshold = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < threshold, -torch.inf)


def top_p_filter(logits: Tensor, p: float) -> Tensor:
    """Keep the smallest set of likeliest tokens with total probability at least ``p``.

    Nucleus sampling (Holtzman et al. 2020, arXiv:1904.09751). One token always stays.

    Args:
        logits: (B, V) float.
        p: In (0, 1].
    """
    if p >= 1.0:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(dim=-1)
    # A token is out if those before it already reach p; so the first one never is.
    reached = probabilities.cumsum(dim=-1) - probabilities >= p
    return logits.masked_fill(torch.empty_like(reached).scatter_(-1, order, reached), -torch.inf)


def apply_repetition_penalty(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make tokens that occurred less likely (CTRL, Keskar et al. 2019, arXiv:1909.05858).

    Args:
        logits: (B, V) float, or log-probabilities.
        seen: (B, V) bool, the tokens of prompt and continuation so far.
        penalty: Divides positive logits and multiplies negative ones; 1 changes nothing.
    """
    if penalty == 1.0:
        return logits
    penalised = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(seen, penalised, logits)


def sample(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw one token per row from ``softmax(logits)``.

    Dividing probabilities by exponential noise and taking the largest is an exact draw (the
    Gumbel-max trick), and unlike ``torch.multinomial`` never waits for the device.

    Args:
        logits: (B, V) float; -inf is never drawn.
        generator: On the device of ``logits``; ``None`` draws from the global one.

    Returns:
        (B,) int64.
    """
    probabilities = logits.softmax(dim=-1, dtype=torch.float32)
    noise = torch.empty_like(probabilities).exponential_(generator=generator)
    return (probabilities / noise).argmax(dim=-1)
