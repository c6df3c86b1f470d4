"""Configurations as published on the hub, most in the spelling before ``transformers`` 5.

Parameter counts are those that the hub shows for the weights.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_llm.interop.hf import from_hf_config, to_hf_config
from lightning_llm.models import Transformer, TransformerConfig


def sizes(
    model_type: str, vocab: int, width: int, layers: int, heads: int, groups: int, hidden: int
) -> dict[str, Any]:
    """The fields that most configurations spell alike."""
    return {
        "model_type": model_type,
        "vocab_size": vocab,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "intermediate_size": hidden,
        "torch_dtype": "bfloat16",
    }


LLAMA_32_1B = {
    **sizes("llama", 128256, 2048, 16, 32, 8, 8192),
    "architectures": ["LlamaForCausalLM"],
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
SMOLLM2_135M = {
    **sizes("llama", 49152, 576, 30, 9, 3, 1536),
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
}
SMOLLM3_3B = {
    **sizes("smollm3", 128256, 2048, 36, 16, 4, 11008),
    "max_position_embeddings": 65536,
    "max_window_layers": 28,
    "no_rope_layer_interval": 4,
    "no_rope_layers": [1, 1, 1, 0] * 9,
    "layer_types": ["full_attention"] * 36,
    "rms_norm_eps": 1e-6,
    "rope_theta": 5000000.0,
    "use_sliding_window": False,
    "sliding_window": None,
}
QWEN25_05B = {
    **sizes("qwen2", 151936, 896, 24, 14, 2, 4864),
    "max_position_embeddings": 32768,
    "max_window_layers": 24,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_mrope": False,
    "use_sliding_window": False,
}
QWEN3_06B = {
    **sizes("qwen3", 151936, 1024, 28, 16, 8, 3072),
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
}
GEMMA2_2B = {
    **sizes("gemma2", 256000, 2304, 26, 8, 4, 9216),
    "attn_logit_softcapping": 50.0,
    "cache_implementation": "hybrid",
    "final_logit_softcapping": 30.0,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
}
GEMMA3_1B = {
    **sizes("gemma3_text", 262144, 1152, 26, 4, 1, 6912),
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 32768,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-6,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
}
PHI3_MINI = {
    **sizes("phi3", 32064, 3072, 32, 32, 32, 8192),
    "embd_pdrop": 0.0,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "sliding_window": 2047,
    "tie_word_embeddings": False,
}
OLMO2_1B = {
    **sizes("olmo2", 100352, 2048, 16, 16, 16, 8192),
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 500000,
    "tie_word_embeddings": False,
}
PYTHIA_160M = {
    "model_type": "gpt_neox",
    "vocab_size": 50304,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 2048,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "use_parallel_residual": True,
}
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "Llama-3.2-1B": (LLAMA_32_1B, 1_235_814_400),
    "SmolLM2-135M": (SMOLLM2_135M, 134_515_008),
    "SmolLM3-3B": (SMOLLM3_3B, 3_075_098_624),
    "Qwen2.5-0.5B": (QWEN25_05B, 494_032_768),
    "Qwen3-0.6B": (QWEN3_06B, 596_049_920),
    "gemma-2-2b": (GEMMA2_2B, 2_614_341_888),
    "gemma-3-1b-pt": (GEMMA3_1B, 999_885_952),
    "Phi-3-mini-4k-instruct": (PHI3_MINI, 3_821_079_552),
    "OLMo-2-0425-1B": (OLMO2_1B, 1_484_916_736),
    "pythia-160m": (PYTHIA_160M, 162_322_944),
}


@pytest.mark.parametrize(("hf_config", "parameters"), PUBLISHED.values(), ids=list(PUBLISHED))
def test_published_model_is_read_whole(hf_config: dict[str, Any], parameters: int) -> None:
    config = from_hf_config(hf_config)
    with torch.device("meta"):
        assert Transformer(config).num_parameters() == parameters
    assert from_hf_config(to_hf_config(config)) == config


@pytest.mark.parametrize(
    ("hf_config", "preset"),
    [
        (LLAMA_32_1B, "llama3.2-1b"),
        (SMOLLM2_135M, "smollm2-135m"),
        (QWEN3_06B, "qwen3-0.6b"),
    ],
)
def test_presets_are_the_published_models(hf_config: dict[str, Any], preset: str) -> None:
    assert from_hf_config(hf_config) == TransformerConfig.from_preset(preset)


@pytest.mark.parametrize(
    ("hf_config", "fields"),
    [
        (SMOLLM3_3B, {"rotary_pattern": 4, "sliding_window": None}),
        (
            GEMMA2_2B,
            {
                "sliding_window": 4096,
                "sliding_window_pattern": 2,
                "attention_scale": None,  # 256 is the width of a head
                "attention_softcap": 50.0,
                "logit_softcap": 30.0,
                "embedding_scale": 48.0,
                "mlp": "geglu",
            },
        ),
        (
            GEMMA3_1B,
            {
                "sliding_window": 512,
                "sliding_window_pattern": 6,
                "rope_theta": 1e6,
                "sliding_rope_theta": 1e4,
                "qk_norm": True,
                "logit_softcap": None,
            },
        ),
        (PHI3_MINI, {"sliding_window": 2047, "rotary_fraction": 1.0}),
        (OLMO2_1B, {"norm_placement": "post", "qk_norm_scope": "all_heads"}),
        (PYTHIA_160M, {"mlp": "gelu_erf", "rotary_fraction": 0.25, "parallel_residual": True}),
        (QWEN25_05B, {"attention_bias": True, "attention_out_bias": False, "sliding_window": None}),
    ],
)
def test_fields_of_published_models(hf_config: dict[str, Any], fields: dict[str, Any]) -> None:
    config = from_hf_config(hf_config)
    assert {name: getattr(config, name) for name in fields} == fields
