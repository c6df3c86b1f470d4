"""Weight tables against ``transformers``: logits, parameter counts, round trips, refusals."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from reference_models import CASES, randomised, reference_model, token_ids
from transformers import AutoModelForCausalLM

from lightning_llm.interop.hf import (
    ExportError,
    from_hf_config,
    from_hf_state_dict,
    load_pretrained,
    save_pretrained,
    to_hf_config,
    to_hf_state_dict,
)
from lightning_llm.interop.hf.families import FAMILIES
from lightning_llm.interop.hf.family import TRAINING_FIELDS, Family
from lightning_llm.models import Transformer, TransformerConfig

FUSED_EXPERTS = ("mixtral", "qwen3_moe")
TOLERANCE = 1e-5  # of logits of size 5, in float32

# transformers itself warns about the sizes of toy models.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformers.*")


def logits_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """From either kind of model, without dropout."""
    with torch.no_grad():
        found = model.eval()(ids)
    return found if isinstance(found, torch.Tensor) else found.logits


@pytest.mark.parametrize("case", CASES)
def test_imported_model_has_the_logits_of_transformers(case: str, tmp_path: Path) -> None:
    theirs = reference_model(case)
    theirs.save_pretrained(tmp_path)
    ours, tokenizer = load_pretrained(tmp_path)
    assert tokenizer is None
    assert ours.num_parameters() == theirs.num_parameters()
    ids = token_ids(ours.config.vocab_size)
    assert logits_of(theirs, ids).abs().max() > 1  # so that the tolerance can fail
    torch.testing.assert_close(logits_of(ours, ids), logits_of(theirs, ids), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("case", CASES)
def test_export_and_import_give_back_every_weight(case: str, tmp_path: Path) -> None:
    reference_model(case).save_pretrained(tmp_path / "theirs")
    ours, _ = load_pretrained(tmp_path / "theirs")
    save_pretrained(ours, tmp_path / "ours")
    again, _ = load_pretrained(tmp_path / "ours")
    assert again.config == ours.config
    first, second = ours.state_dict(), again.state_dict()
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


# transformers fuses experts in memory; its checkpoints have them apart, as the table does.
DENSE = [name for name, (model_type, _) in CASES.items() if model_type not in FUSED_EXPERTS]


@pytest.mark.parametrize("case", DENSE)
def test_state_dicts_of_models_in_memory(case: str) -> None:
    theirs = reference_model(case)
    hf_config = theirs.config.to_dict()
    config = from_hf_config(hf_config)
    state_dict = theirs.state_dict()
    ours = from_hf_state_dict(hf_config, state_dict)
    back = to_hf_state_dict(config, ours)
    expected = dict(state_dict)
    if config.tie_embeddings:
        del expected["lm_head.weight"]
    assert back.keys() == expected.keys()
    for name, tensor in back.items():
        assert torch.equal(tensor, expected[name]), name
        assert tensor.is_contiguous(), name


@pytest.mark.parametrize("preset", TransformerConfig.presets())
def test_every_preset_equals_transformers(preset: str, tmp_path: Path) -> None:
    full = TransformerConfig.from_preset(preset)
    scaling = full.rope_scaling and {**full.rope_scaling, "original_max_position_embeddings": 16}
    assert full.n_kv_heads is not None
    assert full.head_dim is not None
    small = {
        "vocab_size": 101,
        "max_seq_len": 64,
        "n_layers": 2,
        "dim": 64,
        "n_heads": 4,
        "n_kv_heads": 4 * full.n_kv_heads // full.n_heads or 1,
        "head_dim": 16 if full.head_dim * full.n_heads == full.dim else 32,
        "hidden_dim": 96,
        "rope_scaling": scaling,
    }
    ours = randomised(Transformer(TransformerConfig.from_preset(preset, **small)))
    save_pretrained(ours, tmp_path / "export", check=False)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert ours.num_parameters() == theirs.num_parameters()
    ids = token_ids(101)
    torch.testing.assert_close(logits_of(ours, ids), logits_of(theirs, ids), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    "flags",
    [
        {"attention_bias": False, "mlp_bias": False, "norm_bias": False},
        {"attention_bias": True, "attention_out_bias": False, "mlp_bias": False},
    ],
)
def test_gpt2_without_biases_is_exported_with_zeros(flags: dict[str, bool], tmp_path: Path) -> None:
    config = TransformerConfig.from_preset(
        "gpt2-124m", vocab_size=50, max_seq_len=48, n_layers=2, dim=32, n_heads=2, **flags
    )
    ours = randomised(Transformer(config))
    save_pretrained(ours, tmp_path / "export")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    ids = token_ids(50)
    torch.testing.assert_close(logits_of(ours, ids), logits_of(theirs, ids), rtol=0, atol=TOLERANCE)


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
        ({"rotary_fraction": 0.5}, "rotary_fraction=0.5"),
        ({"embedding_scale": 8.0}, "embedding_scale=8.0"),
        ({"sliding_window": 8, "sliding_window_pattern": 2}, "sliding_window"),
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
            {"layer_types": ["full_attention"] + 3 * ["sliding_attention"]},
            "layer_types=.*no counterpart",
        ),
    ],
)
def test_what_cannot_be_imported_is_named(base: str, changes: dict[str, Any], message: str) -> None:
    hf_config = {**reference_model(base).config.to_dict(), **changes}
    with pytest.raises(ValueError, match=message):
        from_hf_config(hf_config)


def test_configuration_in_the_spelling_before_transformers_5() -> None:
    hf_config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
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
        "torch_dtype": "bfloat16",
    }
    assert from_hf_config(hf_config) == TransformerConfig.from_preset("llama3.2-1b")


def test_special_ids_are_written_even_if_there_are_none() -> None:
    """A missing key would mean the architecture's default, some word of this vocabulary."""
    hf_config = to_hf_config(TransformerConfig.from_preset("cpu-1m"), eos_token_id=7)
    assert hf_config["eos_token_id"] == 7
    assert hf_config["bos_token_id"] is None
    assert "pad_token_id" in hf_config


def test_old_and_base_model_checkpoints() -> None:
    theirs = reference_model("gpt2")
    hf_config = theirs.config.to_dict()
    expected = from_hf_state_dict(hf_config, theirs.state_dict())
    # Without the prefix, and with the buffers of old versions, as GPT-2's own files have them.
    base = {
        name.removeprefix("transformer."): tensor
        for name, tensor in theirs.state_dict().items()
        if name != "lm_head.weight"
    }
    base["h.0.attn.bias"] = torch.ones(1, 1, 128, 128)
    base["h.1.attn.masked_bias"] = torch.tensor(-1e4)
    found = from_hf_state_dict(hf_config, base)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


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
        ({"model_type": "gpt_neox"}, "hidden_act='gelu' of model_type='gpt_neox'"),
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
