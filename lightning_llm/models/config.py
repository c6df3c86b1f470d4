"""The architecture of a decoder-only language model as plain data."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lightning_llm.errors import InvalidValueError
from lightning_llm.models.presets import PRESETS
from lightning_llm.models.validation import find_problems


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes and choices of a :class:`~lightning_llm.models.Transformer`.

    Every field is a primitive, so ``dataclasses.asdict(config)`` is plain data and
    ``TransformerConfig(**asdict(config))`` gives the same config back. Fields left at ``None``
    that follow from others (``n_kv_heads``, ``head_dim``, ``hidden_dim``,
    ``attention_out_bias``) are filled in on construction.

    Args:
        vocab_size: Number of token ids.
        max_seq_len: Longest sequence, in tokens, cached ones included.
        n_layers: Number of blocks.
        dim: Width of the residual stream.
        n_heads: Query heads per block.
        n_kv_heads: Key/value heads; each serves ``n_heads / n_kv_heads`` query heads
            (Ainslie et al. 2023, arXiv:2305.13245). Default: ``n_heads``.
        head_dim: Width of a head. Default: ``dim // n_heads``.
        hidden_dim: Inner width of the feed-forward layer (of one expert in a mixture). Default:
            ``8/3 * dim`` rounded up to a multiple of 64 for gated layers, else ``4 * dim``.
        positions: ``"rope"``, ``"learned"``, ``"sinusoidal"``, ``"alibi"`` or ``"none"``.
        rope_theta: Base wavelength of RoPE.
        sliding_rope_theta: Base wavelength in the layers with a sliding window, which then ignore
            ``rope_scaling`` (Gemma 3, arXiv:2503.19786). Default: ``rope_theta``, scaled.
        rotary_pattern: Which layers have no rotation: every n-th (layers n-1, 2n-1, ...), or a
            letter per layer, repeated over the depth: ``"R"`` rotates, ``"N"`` does not
            (``"RRRN"`` is 4; NoPE layers, Yang et al. 2025, arXiv:2501.18795). Default: none.
        rope_scaling: Context extension of RoPE with the keys Hugging Face uses:
            ``{"rope_type": "linear" | "llama3" | "yarn", "factor": ..., ...}``.
        rotary_fraction: Share of each head, from its first component on, that RoPE rotates.
        norm: ``"rmsnorm"`` or ``"layernorm"``.
        norm_eps: Added to the variance.
        norm_bias: Whether ``"layernorm"`` has biases.
        norm_placement: ``"pre"``: ``x + f(norm(x))``; ``"post"``: ``x + norm(f(x))`` (OLMo 2,
            arXiv:2501.00656); ``"both"``: ``x + norm(f(norm(x)))`` (Gemma 2, arXiv:2408.00118).
        mlp: ``"swiglu"``, ``"geglu"``, ``"gelu"`` (tanh approximation, as GPT-2), ``"relu2"``, or
            ``"geglu_erf"`` and ``"gelu_erf"`` with the exact GELU.
        mlp_bias: Biases in the feed-forward layers.
        attention_score: ``"dot"`` (scaled dot product), ``"cosine"`` (learned temperature per
            head, Swin v2, arXiv:2111.09883) or ``"additive"`` (Bahdanau, arXiv:1409.0473).
        attention_bias: Bias of the query, key and value projection.
        attention_out_bias: Bias of the output projection. Default: ``attention_bias``.
        attention_scale: Factor on the scaled dot product. Default: ``head_dim ** -0.5``.
        attention_softcap: Scores become ``c * tanh(scores / c)`` before the mask (Gemma 2,
            arXiv:2408.00118). No fused kernel does this: attention then runs in chunks of rows.
        qk_norm: RMSNorm of queries and keys, before the rotation.
        qk_norm_scope: What has the root mean square 1: each ``"head"``, or ``"all_heads"`` of a
            token together (OLMo 2, arXiv:2501.00656).
        sliding_window: A token sees itself and the ``sliding_window - 1`` tokens before it.
        sliding_window_pattern: Which layers ignore the window and see the whole context: every
            n-th (layers n-1, 2n-1, ...), or a letter per layer, repeated over the depth: ``"S"``
            has the window, ``"L"`` sees everything (``"SSSL"`` is 4). Default: the window holds
            in every layer.
        value_embeddings: Every second layer, the last one included, has a table of vectors by
            token, which it adds to the attention values; one learned scalar each, from 1/2 (Zhou
            et al. 2024, arXiv:2410.17897; modded-nanogpt, nanochat).
        tie_embeddings: The head shares the embedding's weight.
        embedding_scale: Factor on the token embeddings (``dim ** 0.5`` in Vaswani et al. 2017).
        logit_softcap: Logits become ``c * tanh(logits / c)`` (Gemma 2, arXiv:2408.00118).
        parallel_residual: Attention and feed-forward layer read the same input, and both are
            added to it (GPT-J).
        shared_norm: With ``parallel_residual``: one norm feeds both (GPT-J, Falcon, Phi).
        residual_scalars: The residual stream starts from the token embeddings brought to a root
            mean square of 1, and each layer reads ``a * stream + b * start`` with learned scalars,
            from 1 and 0 (modded-nanogpt).
        dropout: Probability of dropping an embedding, an attention weight and a branch's output.
        n_experts: Experts per feed-forward layer; 0 for a dense model.
        n_experts_per_token: Experts each token is sent to.
        normalize_expert_weights: The weights of a token's chosen experts sum to one (Mixtral).
        router_aux_loss_weight: Weight of the load-balancing loss.
        initializer: Residual projections (attention output, feed-forward ``down``) of layer ``l``
            (from 0) of ``L`` start with standard deviation ``init_std / sqrt(2 L)``
            (``"gpt2"``), ``init_std / sqrt(2 (l + 1))`` (``"depth_scaled"``) or 0
            (``"zero_residual"``: every layer starts as the identity; Zhang et al. 2019,
            arXiv:1901.09321; modded-nanogpt).
        init_std: Standard deviation of every other weight matrix and embedding.

    Raises:
        ValueError: Listing every invalid value or combination at once.
    """

    vocab_size: int = 50257
    max_seq_len: int = 1024
    n_layers: int = 12
    dim: int = 768
    n_heads: int = 12
    n_kv_heads: int | None = None
    head_dim: int | None = None
    hidden_dim: int | None = None
    positions: str = "rope"
    rope_theta: float = 10000.0
    sliding_rope_theta: float | None = None
    rotary_pattern: int | str | None = None
    rope_scaling: dict[str, Any] | None = None
    rotary_fraction: float = 1.0
    norm: str = "rmsnorm"
    norm_eps: float = 1e-5
    norm_bias: bool = True
    norm_placement: str = "pre"
    mlp: str = "swiglu"
    mlp_bias: bool = False
    attention_score: str = "dot"
    attention_bias: bool = False
    attention_out_bias: bool | None = None
    attention_scale: float | None = None
    attention_softcap: float | None = None
    qk_norm: bool = False
    qk_norm_scope: str = "head"
    sliding_window: int | None = None
    sliding_window_pattern: int | str | None = None
    value_embeddings: bool = False
    tie_embeddings: bool = True
    embedding_scale: float = 1.0
    logit_softcap: float | None = None
    parallel_residual: bool = False
    shared_norm: bool = False
    residual_scalars: bool = False
    dropout: float = 0.0
    n_experts: int = 0
    n_experts_per_token: int = 2
    normalize_expert_weights: bool = True
    router_aux_loss_weight: float = 0.01
    initializer: str = "gpt2"
    init_std: float = 0.02

    def __post_init__(self) -> None:
        problems = find_problems(self)
        if problems:
            listing = "\n".join(f"  - {problem}" for problem in problems)
            raise InvalidValueError(f"TransformerConfig has {len(problems)} problem(s):\n{listing}")
        resolved = {
            "n_kv_heads": self.n_heads,
            "head_dim": self.dim // self.n_heads,
            "hidden_dim": self._default_hidden_dim(),
            "attention_out_bias": self.attention_bias,
        }
        for name, value in resolved.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    def _default_hidden_dim(self) -> int:
        if not self.gated:
            return 4 * self.dim
        # 8/3 keeps the parameters of a gated layer (three matrices) at those of a plain one (two
        # of 4 dim); the multiple of 64 fills GPU tiles.
        return -(-8 * self.dim // (3 * 64)) * 64

    @property
    def gated(self) -> bool:
        """Whether the feed-forward layer multiplies with a gate (three matrices, not two)."""
        return self.mlp in ("swiglu", "geglu", "geglu_erf")

    @property
    def rotary_dim(self) -> int:
        """Components of each head that RoPE rotates (even)."""
        assert self.head_dim is not None
        return int(self.head_dim * self.rotary_fraction)

    def layer_window(self, layer: int) -> int | None:
        """Sliding window of layer ``layer`` (from 0), or None where it sees the whole context."""
        pattern = self.sliding_window_pattern
        return None if _follows(pattern, layer, letter="L") else self.sliding_window

    def layer_rotation(self, layer: int) -> str | None:
        """``"global"`` or ``"local"`` RoPE of layer ``layer`` (from 0), or None for none."""
        if self.positions != "rope" or _follows(self.rotary_pattern, layer, letter="N"):
            return None
        local = self.sliding_rope_theta is not None and self.layer_window(layer) is not None
        return "local" if local else "global"

    def has_value_embedding(self, layer: int) -> bool:
        """Whether layer ``layer`` (from 0) adds vectors by token to its attention values."""
        return self.value_embeddings and layer % 2 == (self.n_layers - 1) % 2

    @classmethod
    def presets(cls) -> list[str]:
        """Names that :meth:`from_preset` knows."""
        return list(PRESETS)

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> TransformerConfig:
        """Returns a published architecture, with single fields replaced.

        Fields that follow from others are derived after the replacement, so
        ``from_preset("gpt2-124m", dim=384)`` has ``head_dim`` 32.

        Args:
            name: One of :meth:`presets`.
            **overrides: Fields of the config.

        Raises:
            ValueError: The preset or a field does not exist, or the result is invalid.
        """
        if name not in PRESETS:
            raise InvalidValueError(f"unknown preset {name!r}{_suggest(name, cls.presets())}")
        check_field_names(overrides)
        return cls(**{**PRESETS[name], **overrides})


def check_field_names(names: Iterable[str]) -> None:
    """Refuse names that are no fields of a config.

    Raises:
        ValueError: Listing each, with the field that was probably meant.
    """
    fields = [field.name for field in dataclasses.fields(TransformerConfig)]
    unknown = [name for name in names if name not in fields]
    if unknown:
        listing = "; ".join(f"{name!r}{_suggest(name, fields)}" for name in unknown)
        raise InvalidValueError(f"TransformerConfig has no field {listing}")


def _follows(pattern: int | str | None, layer: int, *, letter: str) -> bool:
    """Whether ``layer`` is an n-th one, or has ``letter`` in the repeated pattern."""
    if isinstance(pattern, str):
        return pattern[layer % len(pattern)] == letter
    return pattern is not None and (layer + 1) % pattern == 0


def _suggest(word: str, choices: list[str]) -> str:
    close = difflib.get_close_matches(word, choices, n=3, cutoff=0.5)
    if close:
        return f"; did you mean {' or '.join(map(repr, close))}?"
    return f"; available: {', '.join(choices)}"
