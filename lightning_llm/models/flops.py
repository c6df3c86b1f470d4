"""Floating-point operations of training, for MFU and for planning a run."""

from __future__ import annotations

from lightning_llm.models.config import TransformerConfig


def matmul_parameters(config: TransformerConfig) -> int:
    """Weights a token is multiplied with in one forward pass.

    The head counts once also when it is tied; the embedding look-up is no product and counts
    not at all; of a mixture of experts only the chosen ones count.
    """
    assert config.n_kv_heads is not None
    assert config.head_dim is not None
    assert config.hidden_dim is not None
    attention = config.dim * config.head_dim * 2 * (config.n_heads + config.n_kv_heads)
    expert = (3 if config.gated else 2) * config.dim * config.hidden_dim
    if config.n_experts:
        mlp = config.n_experts_per_token * expert + config.n_experts * config.dim
    else:
        mlp = expert
    return config.n_layers * (attention + mlp) + config.vocab_size * config.dim


def flops_per_token(config: TransformerConfig, seq_len: int, *, causal: bool = False) -> int:
    """Operations of forward and backward pass per token.

    ``6 N + 12 * sum over layers of n_heads * head_dim * keys`` (Kaplan et al. 2020,
    arXiv:2001.08361; Chowdhery et al. 2022, arXiv:2204.02311, appendix B), where N are the
    :func:`matmul_parameters` and ``keys`` is ``min(seq_len, window)``.

    Args:
        config: The architecture.
        seq_len: Tokens per sequence.
        causal: Count only the keys a query sees on average: half of ``seq_len`` without a
            window, ``window * (1 - window / (2 seq_len))`` with one.
    """
    assert config.head_dim is not None
    total = 6.0 * matmul_parameters(config)
    for layer in range(config.n_layers):
        window = config.layer_window(layer)
        keys = float(seq_len if window is None else min(seq_len, window))
        if causal:
            keys *= 1 - keys / (2 * seq_len)
        total += 12 * config.n_heads * config.head_dim * keys
    return round(total)


def flops_by_part(config: TransformerConfig, seq_len: int) -> dict[str, int]:
    """The operations of :func:`flops_per_token` of attention, MLP and head over all layers.

    Norms, positions and the embedding's look-up count as nothing there and here.
    """
    assert config.n_kv_heads is not None
    assert config.head_dim is not None
    head = 6 * config.vocab_size * config.dim
    projections = config.dim * config.head_dim * 2 * (config.n_heads + config.n_kv_heads)
    products = 6 * matmul_parameters(config)
    scores = flops_per_token(config, seq_len) - products
    attention = 6 * config.n_layers * projections + scores
    return {"attention": attention, "mlp": products + scores - attention - head, "head": head}
