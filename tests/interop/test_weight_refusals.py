"""What the weight tables refuse, and that they name it."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from reference_models import reference_model

from lightning_llm.interop.hf import (
    ExportError,
    from_hf_config,
    from_hf_state_dict,
    to_hf_config,
    to_hf_state_dict,
)
from lightning_llm.interop.hf.families import FAMILIES
from lightning_llm.interop.hf.family import TRAINING_FIELDS, Family
from lightning_llm.models import TransformerConfig

# transformers itself warns about the sizes of toy models.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformers.*")


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_tables_name_fields_that_exist(family: Family) -> None:
    known = {*family.requires, *family.fields, *family.converts, *family.unused, *TRAINING_FIELDS}
    assert known <= {field.name for field in fields(TransformerConfig)}


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_a_field_that_no_table_names_is_not_dropped_in_silence(family: Family) -> None:
    found = family.problems(TransformerConfig(value_embeddings=True))
    assert f"value_embeddings=True ({family.model_type} has nothing like it)" in found


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"attention_score": "cosine"}, "attention_score='cosine'"),
        ({"positions": "alibi"}, "positions='alibi'"),
        ({"logit_softcap": 30.0}, "logit_softcap=30.0"),
        ({"mlp": "relu2"}, "mlp='relu2'"),
        ({"value_embeddings": True}, "value_embeddings=True"),
        ({"residual_scalars": True}, "residual_scalars=True"),
        ({"rotary_fraction": 0.5, "qk_norm": True}, "rotary_fraction=0.5"),
        ({"embedding_scale": 8.0}, "embedding_scale=8.0"),
        ({"norm_placement": "both"}, "norm_placement='both'"),
        ({"attention_scale": 0.3}, "attention_scale=0.3"),
        ({"attention_softcap": 5.0}, "attention_softcap=5.0"),
        ({"qk_norm": True, "qk_norm_scope": "all_heads"}, "qk_norm_scope='all_heads'"),
        ({"sliding_window": 8, "sliding_rope_theta": 1e3}, "sliding_rope_theta=1000.0"),
        ({"attention_out_bias": True}, "attention_out_bias=True"),
    ],
)
def test_what_cannot_be_exported_is_named(changes: dict[str, Any], named: str) -> None:
    config = TransformerConfig.from_preset("tinyllama-1.1b", **changes)
    with pytest.raises(ExportError, match="no Hugging Face architecture") as error:
        to_hf_config(config)
    assert f"in the way: {named}" in str(error.value)


def test_several_obstacles_are_all_named() -> None:
    config = TransformerConfig(positions="sinusoidal", mlp="relu2", norm="layernorm")
    with pytest.raises(ExportError, match=r"gpt2.*positions='sinusoidal'.*mlp='relu2'"):
        to_hf_config(config)


@pytest.mark.parametrize(
    ("base", "changes", "message"),
    [
        ("llama", {"model_type": "mamba"}, r"model_type='mamba'.*supported: gpt2, llama"),
        ("llama", {"hidden_act": "relu"}, r"hidden_act='relu'.*supported: 'silu'"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            r"rope_type='dynamic'.*linear, llama3, yarn",
        ),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ("gpt2", {"activation_function": "relu"}, "activation_function='relu'"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, r"mlp_only_layers=\[0\]"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
        (
            "qwen2-windows",
            {"layer_types": ["full_attention"] + 3 * ["chunked_attention"]},
            "layer_types of model_type='qwen2' has chunked_attention without counterpart",
        ),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        ("gemma3", {"attn_logit_softcapping": 5.0}, "attn_logit_softcapping=5.0"),
        (
            "gemma3",
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "default", "rope_theta": 1e4},
                    "sliding_attention": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
                }
            },
            "scale the positions of layers with a sliding window",
        ),
        (
            "phi3",
            {
                "rope_parameters": {
                    "rope_type": "longrope",
                    "rope_theta": 1e4,
                    "partial_rotary_factor": 1.0,
                    "short_factor": [1.0] * 8,
                    "long_factor": [2.0] * 8,
                }
            },
            "rope_type='longrope' of model_type='phi3' has no counterpart.*HFCausalLM",
        ),
    ],
)
def test_what_cannot_be_imported_is_named(base: str, changes: dict[str, Any], message: str) -> None:
    hf_config = {**reference_model(base).config.to_dict(), **changes}
    with pytest.raises(ValueError, match=message):
        from_hf_config(hf_config)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"attention_scale": 0.3}, "attention_scale=0.3 (gemma has n ** -0.5 with a whole n)"),
        ({"embedding_scale": 3.0}, "embedding_scale=3.0 (gemma has dim ** 0.5)"),
        ({"attention_out_bias": True}, "attention_out_bias=True"),
        ({"mlp": "relu2"}, "mlp='relu2'"),
        ({"rotary_pattern": 2}, "rotary_pattern=2"),
    ],
)
def test_what_gemma_cannot_express_is_named(changes: dict[str, Any], named: str) -> None:
    config = from_hf_config(reference_model("gemma2").config.to_dict())
    with pytest.raises(ExportError, match="Closest is gemma2") as error:
        to_hf_config(replace(config, **changes))
    assert f"in the way: {named}" in str(error.value)


def test_missing_and_left_over_weights_are_named() -> None:
    theirs = reference_model("llama")
    hf_config, weights = theirs.config.to_dict(), dict(theirs.state_dict())
    weights["model.layers.0.extra"] = weights.pop("model.norm.weight")
    with pytest.raises(
        ValueError, match=r"missing model\.norm\.weight; unexpected model\.layers\.0\.extra"
    ):
        from_hf_state_dict(hf_config, weights)
    config = from_hf_config(hf_config)
    with pytest.raises(ValueError, match=r"missing .*blocks\.0\.attention\.out\.weight"):
        to_hf_state_dict(config, {"embedding.weight": torch.zeros(96, 64)})


@pytest.mark.parametrize(
    ("hf_config", "match"),
    [
        (
            {"model_type": "gpt_neox", "hidden_act": "relu"},
            "hidden_act='relu' of model_type='gpt_neox'",
        ),
        ({"model_type": "stablelm", "qk_layernorm": True}, "qk_layernorm=True"),
        (
            {
                "model_type": "stablelm",
                "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
            },
            "scale the positions",
        ),
        ({"model_type": "bloom"}, "HFCausalLM trains any architecture"),
    ],
)
def test_values_of_other_families_without_counterpart(
    hf_config: dict[str, Any], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        from_hf_config(hf_config)
