"""Folders as others leave them, read as ``transformers`` does; weights that are not finite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from reference_models import CASES, randomised, reference_model, token_ids
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lightning_llm import CausalLM, HFCausalLM
from lightning_llm.interop.hf import from_hf_state_dict, load_pretrained, save_pretrained
from lightning_llm.models import Transformer, TransformerConfig

IDS = token_ids(96)
DIFFERENT_HEAD = "ignore:.*a different lm_head.weight is stored:UserWarning"


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, **changes: torch.Tensor) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path) | {name.replace("__", "."): w for name, w in changes.items()}
    save_file(weights, path, metadata={"format": "pt"})


def assert_read_as_transformers_does(folder: Path) -> Transformer:
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    ours = load_pretrained(folder).model.eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS), theirs(IDS).logits, rtol=1e-4, atol=1e-4)
    return ours


@pytest.mark.filterwarnings(DIFFERENT_HEAD)
@pytest.mark.parametrize("case", ["llama", "gpt2-untied-inner", "gpt_neox"])
def test_a_stored_head_is_used_whatever_the_config_says(case: str, tmp_path: Path) -> None:
    reference_model(case).save_pretrained(tmp_path)
    edit_config(tmp_path, tie_word_embeddings=True)
    model = assert_read_as_transformers_does(tmp_path)
    assert not model.config.tie_embeddings
    with pytest.warns(UserWarning, match="tie_word_embeddings=true, but a different lm_head"):
        load_pretrained(tmp_path)
    hf_config = json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(ValueError, match=r"lm_head\.weight is stored and differs"):
        from_hf_state_dict(hf_config, load_file(tmp_path / "model.safetensors"))
    # The same around the model of transformers, in a checkpoint's configuration too.
    module = HFCausalLM(tmp_path)
    assert module.checkpoint_entry()["hf_config"]["tie_word_embeddings"] is False
    with torch.no_grad():
        wanted = AutoModelForCausalLM.from_pretrained(tmp_path).eval()(IDS).logits
        torch.testing.assert_close(module.network.eval()(IDS).logits, wanted)


def test_of_two_tied_weights_one_is_enough(tmp_path: Path) -> None:
    theirs = reference_model("llama-tied")
    theirs.save_pretrained(tmp_path)
    embedding = theirs.get_input_embeddings().weight.detach().clone()
    edit_weights(tmp_path, lm_head__weight=embedding)
    assert assert_read_as_transformers_does(tmp_path).config.tie_embeddings
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.embed_tokens.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_read_as_transformers_does(tmp_path)


def test_files_of_other_layouts_are_left_alone(tmp_path: Path) -> None:
    reference_model("llama").save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("model-*"))) > 1
    other = {"layers.0.attention.wq.weight": torch.zeros(4, 4)}
    save_file(other, tmp_path / "consolidated.safetensors")
    save_file(other, tmp_path / "adapter_model.safetensors")
    ours = assert_read_as_transformers_does(tmp_path)
    # A whole file goes before an index that an earlier save left.
    whole = reference_model("llama")
    torch.nn.init.normal_(whole.lm_head.weight)
    save_file(whole.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    with torch.no_grad():
        assert not torch.allclose(assert_read_as_transformers_does(tmp_path)(IDS), ours(IDS))
    for path in tmp_path.glob("model*"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.saf.*, consolidated.* and"):
        load_pretrained(tmp_path)


def test_adapters_beside_a_model_are_not_dropped_in_silence(tmp_path: Path) -> None:
    reference_model("llama").save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    for load in (load_pretrained, HFCausalLM):
        with pytest.raises(ValueError, match="a model and, beside it, adapters"):
            load(tmp_path)


_YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 8.0,
    "original_max_position_embeddings": 2048,
    "beta_fast": 5.0,
    "truncate": False,
}


def built(model_type: str, fields: dict[str, Any]) -> PreTrainedModel:
    torch.manual_seed(0)
    fields = {"pad_token_id": None, **fields}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **fields)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.5 if parameter.ndim == 1 else 0.0, 0.15)
    return model


@pytest.mark.parametrize(
    ("case", "changes"),
    [
        ("gemma3", {"rope_parameters": {"full_attention": _YARN, "sliding_attention": _YARN}}),
        ("olmo3", {"rope_parameters": {"full_attention": _YARN, "sliding_attention": _YARN}}),
        ("llama", {"rope_parameters": _YARN}),
        ("olmo2", {"head_dim": 32}),
        ("olmo3", {"head_dim": 8}),
        ("phi3", {"head_dim": 32}),
        ("qwen2", {"head_dim": 32}),
        ("gpt2", {"head_dim": 32}),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_fields_of_few_files(case: str, changes: dict[str, Any], tmp_path: Path) -> None:
    model_type, fields = CASES[case]
    built(model_type, fields | changes).save_pretrained(tmp_path)
    ours = assert_read_as_transformers_does(tmp_path)
    save_pretrained(ours, tmp_path / "again")  # compares logits
    assert load_pretrained(tmp_path / "again").model.config == ours.config


@pytest.mark.parametrize(
    ("case", "changes"),
    [
        ("stablelm", {"head_dim": 32}),
        ("gpt_neox", {"head_dim": 32}),
        ("llama", {"is_causal": False}),
        ("gpt2", {"is_causal": False}),
    ],
)
def test_fields_without_counterpart_are_named(
    case: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    reference_model(case).save_pretrained(tmp_path)
    edit_config(tmp_path, **changes)
    [(name, value)] = changes.items()
    with pytest.raises(ValueError, match=f"{name}={value} of model_type=.*HFCausalLM"):
        load_pretrained(tmp_path)


SMALL = TransformerConfig(vocab_size=96, max_seq_len=64, n_layers=1, dim=32, n_heads=2)


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    module = CausalLM(SMALL)
    randomised(module.model)
    module.save_pretrained(tmp_path / "good")
    before = (tmp_path / "good" / "model.safetensors").read_bytes()
    with torch.no_grad():
        module.model.blocks[0].attention.out.weight[3, 4] = torch.nan
    wanted = "not finite: 1 of the 1024 values of model.layers.0.self_attn.o_proj.weight are NaN"
    for name in ("good", "new"):
        with pytest.raises(ValueError, match=wanted):
            module.save_pretrained(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["good"]
    assert (tmp_path / "good" / "model.safetensors").read_bytes() == before


def test_a_head_of_zeros_is_a_head(tmp_path: Path) -> None:
    module = CausalLM(SMALL)
    with torch.no_grad():
        module.model.head_weight.zero_()
    module.save_pretrained(tmp_path)
    assert not AutoModelForCausalLM.from_pretrained(tmp_path)(IDS).logits.any()
