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
        turn = _turn(config, layer, window)
        attended = _attention(config, block, normed, document, position, window, turn, token_values)
        attended = _norm(config, block, "attention_post_norm", attended)
        if config.parallel_residual:
            if not config.shared_norm:
                normed = _norm(config, block, "mlp_norm", x)
            x = x + attended + _feed_forward(config, block, normed)
        else:
            x = x + attended
            y = _feed_forward(config, block, _norm(config, block, "mlp_norm", x))
            x = x + _norm(config, block, "mlp_post_norm", y)
    x = _norm(config, weights, "final_norm", x)
    head = weights["embedding.weight"] if config.tie_embeddings else weights["head.weight"]
    logits = x @ head.T
    if config.logit_softcap is not None:
        logits = config.logit_softcap * torch.tanh(logits / config.logit_softcap)
    return logits


def _sees_everything(config: TransformerConfig, layer: int) -> bool:
    return _in_pattern(config.sliding_window_pattern, layer, "L")


def _in_pattern(pattern: int | str | None, layer: int, letter: str) -> bool:
    if isinstance(pattern, str):
        return (pattern * (layer + 1))[layer] == letter
    return pattern is not None and (layer + 1) % pattern == 0


def _turn(config: TransformerConfig, layer: int, window: int | None) -> tuple[float, float] | None:
    """Base wavelength and slow-down of the rotation of a layer; None: it does not rotate."""
    if config.positions != "rope" or _in_pattern(config.rotary_pattern, layer, "N"):
        return None
    if config.sliding_rope_theta is not None and window is not None:
        return config.sliding_rope_theta, 1.0
    slower = 1.0 if config.rope_scaling is None else config.rope_scaling["factor"]
    return config.rope_theta, slower


def _sinusoid(position: int, dim: int) -> Tensor:
    values = []
    for i in range(0, dim, 2):
        angle = position / 10000 ** (i / dim)
        values += [math.sin(angle), math.cos(angle)]
    return torch.tensor(values, dtype=torch.float64)


def _norm(config: TransformerConfig, weights: Weights, name: str, x: Tensor) -> Tensor:
    if f"{name}.weight" not in weights:
        return x
    weight, bias = weights[f"{name}.weight"], weights.get(f"{name}.bias", 0)
    if config.norm == "layernorm":
        x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + config.norm_eps).sqrt() * weight + bias


def _rotate(x: Tensor, position: int, width: int, turn: tuple[float, float]) -> Tensor:
    """Each pair as a complex number, turned by its angle."""
    theta, slower = turn
    first, second = x[: width // 2], x[width // 2 : width]
    angles = [position / slower * theta ** (-2 * i / width) for i in range(width // 2)]
    units = torch.tensor([complex(math.cos(a), math.sin(a)) for a in angles])
    turned = torch.complex(first, second) * units.to(torch.complex128)
    return torch.cat([turned.real, turned.imag, x[width:]])


def _attention(
    config: TransformerConfig,
    weights: Weights,
    x: Tensor,
    document: list[int],
    position: list[int],
    window: int | None,
    turn: tuple[float, float] | None,
    token_values: Tensor | None,
) -> Tensor:
    width, per_group = config.head_dim, config.n_heads // config.n_kv_heads
    qkv = x @ weights["attention.qkv.weight"].T + weights.get("attention.qkv.bias", 0)
    if config.qk_norm and config.qk_norm_scope == "all_heads":
        qkv = _norm_all_heads(config, weights, qkv)
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
                        config,
                        weights,
                        head,
                        query,
                        qkv[s, key_start:value_start],
                        (t, position[t]),
                        (s, position[s]),
                        turn,
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


def _norm_all_heads(config: TransformerConfig, weights: Weights, qkv: Tensor) -> Tensor:
    """Queries of all heads of a token together, and keys, to root mean square 1."""
    width, per_group = config.head_dim, config.n_heads // config.n_kv_heads
    parts = qkv.reshape(len(qkv), config.n_kv_heads, per_group + 2, width).clone()
    for name, places in (("q_norm", slice(0, per_group)), ("k_norm", slice(per_group, -1))):
        heads = parts[:, :, places]
        scale = (heads.square().mean((1, 2, 3), keepdim=True) + config.norm_eps).sqrt()
        gain = weights[f"attention.{name}.weight"].reshape(heads.shape[1:])
        parts[:, :, places] = heads / scale * gain
    return parts.reshape(qkv.shape)


def _score(
    config: TransformerConfig,
    weights: Weights,
    head: int,
    query: Tensor,
    key: Tensor,
    query_at: tuple[int, int],
    key_at: tuple[int, int],
    turn: tuple[float, float] | None,
) -> Tensor:
    """Score of one query and one key, each with its place in the row and its position."""
    if config.qk_norm and config.qk_norm_scope == "head":
        query = query / (query.square().mean() + config.norm_eps).sqrt()
        key = key / (key.square().mean() + config.norm_eps).sqrt()
        query = query * weights["attention.q_norm.weight"]
        key = key * weights["attention.k_norm.weight"]
    if config.attention_score == "cosine":
        query, key = query / query.norm(), key / key.norm()
    if turn is not None:
        query = _rotate(query, query_at[1], config.rotary_dim, turn)
        key = _rotate(key, key_at[1], config.rotary_dim, turn)
    if config.attention_score == "dot":
        score = query @ key * (config.attention_scale or 1 / math.sqrt(config.head_dim))
        if config.attention_softcap is not None:
            score = config.attention_softcap * torch.tanh(score / config.attention_softcap)
    elif config.attention_score == "cosine":
        temperature = 1 / min(math.exp(weights["attention.log_scale"][head]), 100.0)
        score = query @ key / temperature
    else:
        score = weights["attention.score_vector"][head] @ torch.tanh(query + key)
    if config.positions == "alibi":  # a power of two heads
        score = score - 2 ** (-8 * (head + 1) / config.n_heads) * (query_at[0] - key_at[0])
    return score


def _gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _exact_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def _inner(config: TransformerConfig, up: Tensor, gate: Tensor | None) -> Tensor:
    if config.mlp == "geglu_erf":
        return _exact_gelu(gate) * up
    if config.mlp == "gelu_erf":
        return _exact_gelu(up)
    if config.mlp == "swiglu":
        return gate / (1 + torch.exp(-gate)) * up
    if config.mlp == "geglu":
        return _gelu(gate) * up
    return _gelu(up) if config.mlp == "gelu" else torch.clamp(up, min=0) ** 2


def _feed_forward(config: TransformerConfig, weights: Weights, x: Tensor) -> Tensor:
    gated = config.mlp in ("swiglu", "geglu", "geglu_erf")
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
