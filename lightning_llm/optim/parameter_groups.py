"""Splits a module's parameters by what they are, so that an optimizer can treat them by kind."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lightning_llm.errors import InvalidValueError

# Own classes are known by the end of their name (LlamaRMSNorm, VocabParallelEmbedding).
_NORMS = (nn.LayerNorm, nn.RMSNorm)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
# Order of the groups; only matrices and an untied head are decayed.
_KINDS = ("matrix", "head", "embedding", "vector")
_DECAYED = frozenset({"matrix", "head"})


def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Groups the trainable parameters of any module for an optimizer.

    The kinds, in this order, empty ones left out:

    - ``matrix``: weights of two or more dimensions (stacked expert weights have three).
    - ``head``: an output projection that is not tied to the embedding: what ``head_weight`` or
      ``get_output_embeddings()`` of the module names.
    - ``embedding``: weights of ``nn.Embedding`` or of a class whose name ends in "Embedding", and
      with them a head tied to one.
    - ``vector``: norms (torch's, or a class whose name ends in "Norm"), biases, and every other
      parameter of fewer than two dimensions.

    Only ``matrix`` and ``head`` are decayed: decay pulls a norm's scale away from the 1 that it
    means, and shrinks rare embeddings, which see no gradient, to nothing.

    Args:
        module: any ``nn.Module``, Hugging Face models included.

    Returns:
        ``{"params": [...], "kind": ...}`` per kind, in registration order, each parameter once;
        with ``"weight_decay": 0.0`` for the kinds without decay. Frozen parameters are left out.
        Fused query, key and value projections that tell their heads (see :func:`_qkv_heads`) are
        matrices in a group of their own, with ``"qkv_heads": (query heads, key/value heads)``.

    Raises:
        ValueError: nothing in ``module`` is trainable.
    """
    kinds, heads = _kinds_by_parameter(module), _qkv_heads(module)
    groups: dict[tuple[int, Any], list[Tensor]] = {}
    for parameter in module.parameters():  # registration order, shared parameters once
        if parameter.requires_grad:
            key = (_KINDS.index(kinds[id(parameter)]), heads.get(id(parameter), ()))
            groups.setdefault(key, []).append(parameter)
    if not groups:
        raise InvalidValueError(
            f"{type(module).__name__} has no parameter with requires_grad=True: nothing to optimize"
        )
    return [
        {"params": parameters, "kind": _KINDS[index]}
        | ({} if _KINDS[index] in _DECAYED else {"weight_decay": 0.0})
        | ({"qkv_heads": qkv_heads} if qkv_heads else {})
        for (index, qkv_heads), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def _kinds_by_parameter(module: nn.Module) -> dict[int, str]:
    """Kind of every parameter by identity; a shared one takes the least decayed of its roles."""
    heads = _head_weights(module)
    kinds: dict[int, str] = {}
    for owner in module.modules():
        for parameter in owner._parameters.values():
            if parameter is None:
                continue
            kind = _kind(owner, parameter, heads)
            known = kinds.get(id(parameter), kind)
            kinds[id(parameter)] = max(kind, known, key=_KINDS.index)
    return kinds


def _kind(owner: nn.Module, parameter: Tensor, heads: set[int]) -> str:
    name = type(owner).__name__.lower()
    if isinstance(owner, _EMBEDDINGS) or (parameter.ndim >= 2 and name.endswith("embedding")):
        return "embedding"
    if parameter.ndim < 2 or isinstance(owner, _NORMS) or name.endswith("norm"):
        return "vector"
    return "head" if id(parameter) in heads else "matrix"


def _head_weights(module: nn.Module) -> set[int]:
    """Identities of the output projections that the module or a part of it declares."""
    found: set[int] = set()
    for part in module.modules():
        weight: Any = getattr(part, "head_weight", None)
        output_embeddings: Any = getattr(part, "get_output_embeddings", None)
        if weight is None and callable(output_embeddings):
            weight = getattr(output_embeddings(), "weight", None)
        if isinstance(weight, Tensor):
            found.add(id(weight))
    return found


def _qkv_heads(module: nn.Module) -> dict[int, tuple[int, int]]:
    """Head counts by identity of a fused projection ``qkv`` with rows grouped by key/value head.

    Such a projection is an attribute ``qkv`` of a module with ``n_heads``, ``n_kv_heads`` and
    ``head_dim``, as in :class:`lightning_llm.models.Transformer`.
    """
    found: dict[int, tuple[int, int]] = {}
    for part in module.modules():
        weight = getattr(getattr(part, "qkv", None), "weight", None)
        names = ("n_heads", "n_kv_heads", "head_dim")
        if not isinstance(weight, Tensor) or not all(hasattr(part, name) for name in names):
            continue
        n_heads, n_kv_heads, head_dim = (int(getattr(part, name)) for name in names)
        if weight.ndim == 2 and weight.shape[0] == (n_heads + 2 * n_kv_heads) * head_dim:
            found[id(weight)] = (n_heads, n_kv_heads)
    return found
