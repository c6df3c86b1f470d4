"""The Transformer once more, in float64, one query and one head at a time.

Written from the definitions, without the package's functions: it shares only the names of the
weights. Shapes: T sequence, D model width, Dh head width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_llm.models import TransformerConfig

Weights = Mapping[str, Tensor]


def reference_logits(
    config: TransformerConfig,
    weights: Weights,
    ids: Tensor,
    *,
    documents: Tensor | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """Logits (B, T, V) in float64 for token ids (B, T)."""
    weights = {name: weight.double() for name, weight in weights.items()}
    rows = []
    for b, row in enumerate(ids):
        document = torch.zeros_like(row) if documents is None else documents[b]
        position = torch.arange(len(row)) if positions is None else positions[b]
        rows.append(_one_sequence(config, weights, row, document.tolist(), position.tolist()))
    return torch.stack(rows)


def _one_sequence(
    config: TransformerConfig,
    weights: Weights,
    ids: Tensor,
    document: list[int],
    position: list[int],
) -> Tensor:
    x = weights["embedding.weight"][ids] * config.embedding_scale
    if config.positions == "learned":
        x = x + weights["position_embedding.weight"][position]
    if config.positions == "sinusoidal":
        x = x + torch.stack([_sinusoid(p, config.dim) for p in position])
    if config.residual_scalars:
        x = x / (x.square().mean(-1, keepdim=True) + config.norm_eps).sqrt()
    start = x
    for layer in range(config.n_layers):
        block = {
            name.removeprefix(f"blocks.{layer}."): weight
            for name, weight in weights.items()
            if name.startswith(f"blocks.{layer}.")
        }
        if config.residual_scalars:
            x = block["residual_mix.weight"][0] * x + block["residual_mix.weight"][1] * start
        table = weights.get(f"value_embeddings.{layer}.weight")
        token_values = None if table is None else table[ids]
        window = None if _sees_everything(config, layer) else config.sliding_window
        normed = _norm(config, block, "attention_norm", x)
        attended = _attention(config, block, normed, document, position, window, token_values)
        if config.parallel_residual:
            if not config.shared_norm:
                normed = _norm(config, block, "mlp_norm", x)
            x = x + attended + _feed_forward(config, block, normed)
        else:
            x = x + attended
            x = x + _feed_forward(config, block, _norm(config, block, "mlp_norm", x))
    x = _norm(config, weights, "final_norm", x)
    head = weights["embedding.weight"] if config.tie_embeddings else weights["head.weight"]
    logits = x @ head.T
    if config.logit_softcap is not None:
        logits = config.logit_softcap * torch.tanh(logits / config.logit_softcap)
    return logits


def _sees_everything(config: TransformerConfig, layer: int) -> bool:
    pattern = config.sliding_window_pattern
    if isinstance(pattern, str):
        return (pattern * config.n_layers)[layer] == "L"
    return pattern is not None and (layer + 1) % pattern == 0


def _sinusoid(position: int, dim: int) -> Tensor:
    values = []
    for i in range(0, dim, 2):
        angle = position / 10000 ** (i / dim)
        values += [math.sin(angle), math.cos(angle)]
    return torch.tensor(values, dtype=torch.float64)


def _norm(config: TransformerConfig, weights: Weights, name: str, x: Tensor) -> Tensor:
    weight, bias = weights[f"{name}.weight"], weights.get(f"{name}.bias", 0)
    if config.norm == "layernorm":
        x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + config.norm_eps).sqrt() * weight + bias


def _rotate(x: Tensor, position: int, config: TransformerConfig) -> Tensor:
    """Each pair as a complex number, turned by its angle."""
    width = config.rotary_dim
    first, second = x[: width // 2], x[width // 2 : width]
    angles = [position * config.rope_theta ** (-2 * i / width) for i in range(width // 2)]
    turn = torch.tensor([complex(math.cos(a), math.sin(a)) for a in angles])
    turned = torch.complex(first, second) * turn.to(torch.complex128)
    return torch.cat([turned.real, turned.imag, x[width:]])


def _attention(
    config: TransformerConfig,
    weights: Weights,
    x: Tensor,
    document: list[int],
    position: list[int],
    window: int | None,
    token_values: Tensor | None,
) -> Tensor:
    width, per_group = config.head_dim, config.n_heads // config.n_kv_heads
    qkv = x @ weights["attention.qkv.weight"].T + weights.get("attention.qkv.bias", 0)
    heads = []
    for head in range(config.n_heads):
        group = head // per_group
        group_start = group * (per_group + 2) * width
        query_start = group_start + (head % per_group) * width
        key_start = group_start + per_group * width
        value_start = key_start + width
        outputs = []
        for t in range(len(x)):
            seen = [
                s
                for s in range(t + 1)
                if document[s] == document[t] and (window is None or t - s < window)
            ]
            query = qkv[t, query_start : query_start + width]
            scores = torch.stack(
                [
                    _score(
                        config, weights, head, query, qkv[s, key_start:value_start], t, s, position
                    )
                    for s in seen
                ]
            )
            values = torch.stack([qkv[s, value_start : value_start + width] for s in seen])
            if token_values is not None:
                mix = weights["attention.value_mix.weight"]
                more = token_values[seen, group * width : (group + 1) * width]
                values = mix[0] * values + mix[1] * more
            outputs.append(scores.softmax(0) @ values)
        heads.append(torch.stack(outputs))
    y = torch.cat(heads, dim=-1)  # (T, H Dh)
    return y @ weights["attention.out.weight"].T + weights.get("attention.out.bias", 0)


def _score(
    config: TransformerConfig,
    weights: Weights,
    head: int,
    query: Tensor,
    key: Tensor,
    t: int,
    s: int,
    position: list[int],
) -> Tensor:
    if config.qk_norm:
        query = query / (query.square().mean() + config.norm_eps).sqrt()
        key = key / (key.square().mean() + config.norm_eps).sqrt()
        query = query * weights["attention.q_norm.weight"]
        key = key * weights["attention.k_norm.weight"]
    if config.attention_score == "cosine":
        query, key = query / query.norm(), key / key.norm()
    if config.positions == "rope":
        query, key = _rotate(query, position[t], config), _rotate(key, position[s], config)
    if config.attention_score == "dot":
        score = query @ key / math.sqrt(config.head_dim)
    elif config.attention_score == "cosine":
        temperature = 1 / min(math.exp(weights["attention.log_scale"][head]), 100.0)
        score = query @ key / temperature
    else:
        score = weights["attention.score_vector"][head] @ torch.tanh(query + key)
    if config.positions == "alibi":  # a power of two heads
        score = score - 2 ** (-8 * (head + 1) / config.n_heads) * (t - s)
    return score


def _gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _inner(config: TransformerConfig, up: Tensor, gate: Tensor | None) -> Tensor:
    if config.mlp == "swiglu":
        return gate / (1 + torch.exp(-gate)) * up
    if config.mlp == "geglu":
        return _gelu(gate) * up
    return _gelu(up) if config.mlp == "gelu" else torch.clamp(up, min=0) ** 2


def _feed_forward(config: TransformerConfig, weights: Weights, x: Tensor) -> Tensor:
    gated = config.mlp in ("swiglu", "geglu")
    if config.n_experts == 0:
        up, gate = (
            x @ weights[f"mlp.{name}.weight"].T + weights.get(f"mlp.{name}.bias", 0)
            if name == "up" or gated
            else None
            for name in ("up", "gate")
        )
        y = _inner(config, up, gate)
        return y @ weights["mlp.down.weight"].T + weights.get("mlp.down.bias", 0)
    outputs = []
    for token in x:
        probabilities = (weights["mlp.router.weight"] @ token).softmax(0)
        chosen = probabilities.argsort(descending=True)[: config.n_experts_per_token].tolist()
        total = sum(probabilities[e] for e in chosen) if config.normalize_expert_weights else 1
        output = torch.zeros_like(token)
        for e in chosen:
            gate = weights["mlp.experts.gate"][e] @ token if gated else None
            inner = _inner(config, weights["mlp.experts.up"][e] @ token, gate)
            output += probabilities[e] / total * (weights["mlp.experts.down"][e] @ inner)
        outputs.append(output)
    return torch.stack(outputs)
