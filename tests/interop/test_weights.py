"""Weight tables against ``transformers``: logits, parameter counts, round trips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from reference_models import CASES, randomised, reference_model, token_ids
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lightning_llm.interop.hf import (
    from_hf_config,
    from_hf_state_dict,
    load_pretrained,
    save_pretrained,
    to_hf_config,
    to_hf_state_dict,
)
from lightning_llm.interop.hf.layout import one_less
from lightning_llm.interop.hf.weights import family_of
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
    theirs = reference_model(case).bfloat16().float()  # as weights are published, see one_less
    hf_config = theirs.config.to_dict()
    config = from_hf_config(hf_config)
    if family_of(config).model_type != hf_config["model_type"]:
        pytest.skip("nothing in it needs this architecture: it is exported as a plainer one")
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


def test_norms_that_add_one_keep_what_the_precision_can_hold() -> None:
    weights = torch.linspace(-0.9, 40, 999)
    row = one_less("ours", "theirs")
    [ours] = row.from_hf(weights)
    [back] = row.to_hf(ours)
    assert (back - weights).abs().max() <= 2**-19  # half the spacing of float32 at 41
    assert torch.equal(row.from_hf(back)[0], ours)  # and no further loss
    published = weights.bfloat16()
    [ours] = row.from_hf(published)
    assert ours.dtype == torch.float32
    assert torch.equal(row.to_hf(ours)[0], published.float())
    [exact] = row.from_hf(weights.double())
    assert torch.equal(row.to_hf(exact)[0], weights.double())


@pytest.mark.parametrize("case", ["gemma", "gemma2", "gemma3"])
def test_published_gemma_comes_back_bit_by_bit(case: str, tmp_path: Path) -> None:
    """Stored in bfloat16, read into float32."""
    reference_model(case).bfloat16().save_pretrained(tmp_path / "theirs")
    ours, _ = load_pretrained(tmp_path / "theirs", dtype=torch.float32)
    save_pretrained(ours, tmp_path / "back")
    before = load_file(tmp_path / "theirs" / "model.safetensors")
    after = load_file(tmp_path / "back" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name].float(), after[name]) for name in before)
    half, _ = load_pretrained(tmp_path / "theirs")
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}
    save_pretrained(half, tmp_path / "half")  # compares logits
    written = load_file(tmp_path / "half" / "model.safetensors")
    assert {weight.dtype for weight in written.values()} == {torch.bfloat16}


@pytest.mark.parametrize("case", ["phi3-partial", "gemma3", "mixtral"])
def test_rows_of_several_tensors_are_read_from_and_written_to_several_files(
    case: str, tmp_path: Path
) -> None:
    theirs = reference_model(case)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="40KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 2
    ours, _ = load_pretrained(tmp_path / "theirs")
    ids = token_ids(ours.config.vocab_size)
    torch.testing.assert_close(logits_of(ours, ids), logits_of(theirs, ids), rtol=0, atol=TOLERANCE)
    save_pretrained(ours, tmp_path / "ours", max_shard_bytes=40_000)
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 2
    again, _ = load_pretrained(tmp_path / "ours")
    assert all(map(torch.equal, ours.parameters(), again.parameters()))
