"""Export folders: what they hold, what they replace, what they refuse; and reading them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from reference_models import randomised, reference_model, token_ids
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from lightning_llm.data import TokenizerSpec
from lightning_llm.data.tokenizer_training import train_tokenizer
from lightning_llm.interop.hf import export, load_pretrained, save_pretrained
from lightning_llm.models import Transformer, TransformerConfig
from lightning_llm.module import CausalLM

CONFIG = TransformerConfig(
    vocab_size=258, max_seq_len=64, n_layers=2, dim=32, n_heads=4, n_kv_heads=2, hidden_dim=64
)


@pytest.fixture
def model() -> Transformer:
    return randomised(Transformer(CONFIG))


def logits_of(model: Transformer) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(token_ids(CONFIG.vocab_size))


def test_folder_loads_with_the_auto_classes(model: Transformer, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TokenizerSpec("byte"), iter(["text"]))
    save_pretrained(model, tmp_path / "export", tokenizer=tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert AutoTokenizer.from_pretrained(tmp_path / "export")("text")["input_ids"] == [*b"text"]
    assert theirs.config.eos_token_id == tokenizer.eos_token_id
    settings = GenerationConfig.from_pretrained(tmp_path / "export")
    assert settings.eos_token_id == tokenizer.eos_token_id
    assert settings.pad_token_id == tokenizer.pad_token_id
    again = load_pretrained(tmp_path / "export")
    assert again.tokenizer is not None
    assert again.tokenizer("text")["input_ids"] == tokenizer("text")["input_ids"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export"]  # no leftovers


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dtype_is_kept(model: Transformer, dtype: torch.dtype, tmp_path: Path) -> None:
    model.to(dtype)
    save_pretrained(model, tmp_path / "export")
    again, _ = load_pretrained(tmp_path / "export")
    assert {weight.dtype for weight in again.parameters()} == {dtype}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "export").dtype == dtype
    assert torch.equal(again.embedding.weight, model.embedding.weight)
    wide, _ = load_pretrained(tmp_path / "export", dtype=torch.float32)
    assert torch.equal(wide.embedding.weight, model.embedding.weight.float())


def test_large_weights_are_split(model: Transformer, tmp_path: Path) -> None:
    save_pretrained(model, tmp_path / "export", max_shard_bytes=40_000)
    index = json.loads((tmp_path / "export" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "export").glob("*.safetensors"))
    assert len(files) > 1
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert set(index["weight_map"].values()) == set(files)
    assert index["metadata"]["total_size"] == 4 * model.num_parameters()
    for file in files[1:]:  # the first holds the embedding alone
        assert (tmp_path / "export" / file).stat().st_size < 50_000
    assert torch.equal(logits_of(load_pretrained(tmp_path / "export").model), logits_of(model))
    (tmp_path / "export" / files[1]).unlink()
    with pytest.raises(FileNotFoundError, match=f"{files[1]} is named by .* and missing"):
        load_pretrained(tmp_path / "export")


def test_earlier_export_is_replaced(model: Transformer, tmp_path: Path) -> None:
    target = tmp_path / "export"
    target.mkdir()  # an empty folder is fine
    save_pretrained(model, target, max_shard_bytes=40_000)
    with torch.no_grad():
        model.embedding.weight.mul_(0.5)
    save_pretrained(model, target, check=False)
    assert sorted(path.name for path in target.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    assert torch.equal(logits_of(load_pretrained(target).model), logits_of(model))
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


@pytest.mark.parametrize("name", ["notes.md", "weights.json", "sub"])
def test_foreign_folder_is_not_replaced(model: Transformer, name: str, tmp_path: Path) -> None:
    if name == "sub":
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_text("precious")
    with pytest.raises(FileExistsError, match=f"holds {name} and is no earlier export"):
        save_pretrained(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_target_that_is_a_file_is_refused(model: Transformer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(FileExistsError, match="is a file; choose a folder"):
        save_pretrained(model, tmp_path / "file")


def test_wrong_logits_stop_the_export(
    model: Transformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One weight off by a little is enough."""

    def slip(config: TransformerConfig, weights: dict[str, torch.Tensor]) -> object:
        for name, tensor in iterate(config, weights):
            if name == "model.layers.1.self_attn.k_proj.weight" and tensor.device.type != "meta":
                tensor = tensor.clone()
                tensor[3, 5] += 0.05
            yield name, tensor

    iterate = export.iterate_to_hf
    monkeypatch.setattr(export, "iterate_to_hf", slip)
    with pytest.raises(RuntimeError, match=r"other logits: relative difference .* of llama"):
        save_pretrained(model, tmp_path / "export")
    assert not list(tmp_path.iterdir())
    save_pretrained(model, tmp_path / "export", check=False)


def test_the_check_leaves_mode_and_gradients_alone(model: Transformer, tmp_path: Path) -> None:
    model.train()
    model.blocks[0].eval()  # as where a part is frozen
    modes = [module.training for module in model.modules()]
    save_pretrained(model, tmp_path / "export")
    assert [module.training for module in model.modules()] == modes
    assert all(weight.grad is None for weight in model.parameters())


def test_gathered_weights_are_written_instead_of_the_models_own(
    model: Transformer, tmp_path: Path
) -> None:
    gathered = {name: tensor * 2 for name, tensor in model.state_dict().items()}
    save_pretrained(model, tmp_path / "export", state_dict=gathered, check=False)
    again, _ = load_pretrained(tmp_path / "export")
    assert torch.equal(again.embedding.weight, model.embedding.weight * 2)


def test_loading_reads_one_tensor_at_a_time(model: Transformer, tmp_path: Path) -> None:
    save_pretrained(model, tmp_path / "export")
    with safe_open(tmp_path / "export" / "model.safetensors", framework="pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118 - not a mapping
    again, _ = load_pretrained(tmp_path / "export")
    assert again.training
    assert all(weight.requires_grad for weight in again.parameters())
    assert again.head_weight is again.embedding.weight


def test_overrides(tmp_path: Path) -> None:
    reference_model("gpt2").save_pretrained(tmp_path)
    assert load_pretrained(tmp_path, dropout=0.25).model.config.dropout == 0.25
    with pytest.raises(
        ValueError, match=r"position_embedding\.weight \(64, 64\) where .* has \(128, 64\)"
    ):
        load_pretrained(tmp_path, max_seq_len=64)
    with pytest.raises(ValueError, match=r"head\.weight \(96, 64\) where .* has none; drop"):
        load_pretrained(tmp_path, tie_embeddings=False)


def test_weights_of_another_size_than_the_configuration_says(tmp_path: Path) -> None:
    reference_model("gpt2").save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "n_positions": 64}))
    with pytest.raises(ValueError, match=r"position_embedding\.weight make \(128, 64\), but"):
        load_pretrained(tmp_path)


def test_folders_that_are_no_export(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        load_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        load_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(reference_model("llama").config.to_dict()))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"no \.safetensors file; pickled weights"):
        load_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ValueError, match=r"model\.safetensors is not a whole safetensors file"):
        load_pretrained(tmp_path)


def test_dtype_is_that_of_weights_and_not_of_an_old_buffer(tmp_path: Path) -> None:
    theirs = reference_model("gpt2").half()
    theirs.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["a.attn.bias"] = torch.ones(1, 1, 8, 8)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert load_pretrained(tmp_path).model.embedding.weight.dtype == torch.float16


def test_unknown_names_say_so() -> None:
    with pytest.raises(FileNotFoundError, match="neither a folder nor a model of the Hugging Face"):
        load_pretrained("nobody/nothing")


def test_the_folder_is_named_in_either_spelling(tmp_path: Path) -> None:
    config = {"n_layers": 1, "dim": 8, "n_heads": 1, "vocab_size": 9, "max_seq_len": 8}
    for seed in (0, 1):
        torch.manual_seed(seed)
        CausalLM(config).save_pretrained(tmp_path / str(seed))
    head = CausalLM.from_pretrained(tmp_path / "0").model.head_weight
    for options in (
        {"path_or_name": tmp_path / "0"},
        {"name_or_path": tmp_path / "0"},
        {"path_or_name": tmp_path / "1", "name_or_path": tmp_path / "0"},
    ):
        assert torch.equal(CausalLM.from_pretrained(**options).model.head_weight, head)
    with pytest.raises(TypeError, match=r"from_pretrained needs path_or_name \(or name_or_path\)"):
        CausalLM.from_pretrained()
