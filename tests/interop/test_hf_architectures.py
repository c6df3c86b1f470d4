"""What HFCausalLM makes of architectures: trained on a right loss, or refused in one sentence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hf_modules import CONFIGS, module

from lightning_llm import HFCausalLM

TINY: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
_MAMBA = {"mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_expand": 2}
_LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
_JAMBA = {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False}
_RECURRENT = {"block_types": ["recurrent", "attention"], "lru_width": 32}
_LFM2 = {"layer_types": ["conv", "full_attention"], "block_ff_dim": 48}

# Freshly initialised with the default 0.02: what their convolutions carry is next to nothing.
HYBRIDS: dict[str, dict[str, Any]] = {
    "lfm2": {**TINY, **_LFM2},
    "falcon_h1": {**TINY, **_MAMBA, "mamba_d_ssm": 64, "mamba_chunk_size": 8},
    "bamba": {**TINY, **_MAMBA, "attn_layer_indices": [1], "mamba_chunk_size": 8},
    "granitemoehybrid": {**TINY, **_MAMBA, "layer_types": ["mamba", "attention"]},
    "jamba": {**TINY, **_JAMBA, "num_experts": 2, "mamba_dt_rank": 4},
    "qwen3_next": {**TINY, **_LINEAR, "num_experts": 0, "mlp_only_layers": [0, 1]},
    "recurrent_gemma": {**TINY, **_RECURRENT, "num_key_value_heads": 1},
    "mamba": {k: v for k, v in TINY.items() if k != "head_dim"} | {"state_size": 8},
}


@pytest.mark.parametrize("kind", HYBRIDS)
@pytest.mark.filterwarnings("ignore")
def test_documents_that_would_leak_are_not_packed(kind: str) -> None:
    torch.manual_seed(0)
    lm = HFCausalLM({"model_type": kind, **HYBRIDS[kind]})
    ids = torch.randint(2, 64, (1, 8))
    rows = {"input_ids": ids, "labels": ids, "document_ids": torch.arange(8)[None] // 4}
    with pytest.raises(ValueError, match="does not keep packed documents apart"):
        lm.compute_loss(rows)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral", "gemma2", "granitemoe"])
def test_attention_alone_keeps_documents_apart(kind: str) -> None:
    torch.manual_seed(0)
    initial = {"initializer_range": 0.002}
    lm = HFCausalLM({**CONFIGS[kind], **initial}).eval()
    ids = torch.randint(2, 64, (1, 8))
    found = lm.hidden_states({"input_ids": ids, "document_ids": torch.arange(8)[None] // 4})
    alone = lm.hidden_states({"input_ids": ids[:, 4:]})
    torch.testing.assert_close(found[:, 4:], alone, rtol=1e-4, atol=1e-5)


_BIDIRECTIONAL = {key: value for key, value in TINY.items() if "key_value" not in key}


@pytest.mark.parametrize("kind", ["bert-generation", "roberta"])
@pytest.mark.filterwarnings("ignore")
def test_a_model_that_sees_its_targets_is_refused(kind: str) -> None:
    fields = {**_BIDIRECTIONAL, "model_type": kind}
    if kind == "bert-generation":
        with pytest.raises(ValueError, match=r"not causal: .*'is_decoder': False.*set it to true"):
            HFCausalLM(fields)
        HFCausalLM({**fields, "is_decoder": True})
    else:  # its head has layers of its own
        with pytest.raises(ValueError, match="are not its output embeddings applied to its hidden"):
            HFCausalLM(fields)


def test_a_head_of_another_width_is_refused_in_words() -> None:
    fields = {**_BIDIRECTIONAL, "input_embedding_size": 16, "output_embedding_size": 24}
    with pytest.raises(ValueError, match=r"logits of RemBertForCausalLM .* are not its output"):
        HFCausalLM({**fields, "model_type": "rembert", "is_decoder": True})


def test_the_decoder_is_found_under_another_name() -> None:
    fields = {**TINY, "intermediate_size_mlp": 48, "num_local_experts": 2}
    torch.manual_seed(0)
    lm = HFCausalLM({**fields, "model_type": "llama4_text"}).eval()
    ids = torch.randint(2, 64, (2, 9))
    nll, count = lm.compute_loss({"input_ids": ids, "labels": ids})
    wanted = lm.network(input_ids=ids, labels=ids).loss
    torch.testing.assert_close(nll / count, wanted, rtol=1e-5, atol=1e-5)
    assert lm.generate(ids, max_new_tokens=3).shape == (2, 12)
    assert lm.flops_per_token(8) > 0


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"hidden_size": 30}, "builds no model of this configuration|cannot be run on token ids"),
        ({"num_attention_heads": 3}, "builds no model of this configuration|cannot be run on"),
        ({"hidden_act": "no"}, "builds no model of this configuration of model_type='llama'"),
    ],
)
def test_a_configuration_that_makes_no_model_is_named(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        HFCausalLM({"model_type": "llama", **TINY, **fields})


def test_operations_are_those_of_each_layer() -> None:
    """Gemma 4: widths of heads differ by layer."""
    fields = {
        **TINY,
        "global_head_dim": 16,
        "num_hidden_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"],
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": 64,
        "num_kv_shared_layers": 0,
    }
    lm = HFCausalLM({"model_type": "gemma4_text", **fields})
    counted = lm.flops_per_token(10) - lm.flops_per_token(0)
    assert counted == 12 * 10 * (4 * 8 + 4 * 16)
    llama = module("llama")
    assert llama.flops_per_token(10) - llama.flops_per_token(0) == 12 * 10 * 2 * 32


def test_of_a_model_that_sees_the_text_part_is_counted() -> None:
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    fields = {"text_config": TINY, "vision_config": vision, "mm_tokens_per_image": 4}
    whole = HFCausalLM({"model_type": "gemma3", **fields})
    text = HFCausalLM({"model_type": "gemma3_text", **TINY})
    assert whole.flops_per_token(8) == text.flops_per_token(8)


@pytest.mark.filterwarnings("ignore")
def test_positions_behind_the_padding_id_are_fewer() -> None:
    fields = {"vocab_size": 64, "d_model": 32, "pad_token_id": 1}
    fields |= {"decoder_layers": 1, "decoder_attention_heads": 2}
    lm = HFCausalLM({"model_type": "whisper", **fields, "max_target_positions": 24})
    assert lm.size_limits() == (64, 24)
    assert HFCausalLM({**CONFIGS["gpt2"]}).size_limits() == (64, 64)
