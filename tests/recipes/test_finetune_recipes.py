"""Every fine-tuning recipe trains two steps under its debug overlay, from a tiny local model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lightning_llm import CausalLM, HFCausalLM
from lightning_llm.cli import main
from lightning_llm.data import TokenizerSpec
from lightning_llm.data.tokenizer_training import train_tokenizer

FINETUNE = Path(__file__).parents[2] / "recipes" / "finetune"
TEXT = "def twice(number):\n    return number + number  # doubled\n" * 200
CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}

pytestmark = [
    pytest.mark.filterwarnings("ignore:The number of training batches:UserWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
]


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    tokenizer = train_tokenizer(TokenizerSpec("bpe", vocab_size=300), iter([TEXT]))
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    lm = HFCausalLM({**CONFIG, **ids}, vocab_size=len(tokenizer))
    lm.tokenizer = tokenizer
    lm.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def fit(recipe: str, model_folder: Path, *more: str) -> dict[str, Any]:
    """The checkpoint of a run under the debug overlay."""
    folder = model_folder.parent
    (folder / "text.txt").write_text(TEXT)
    arguments = ["fit"]
    for name in (recipe, "debug.yaml"):
        arguments += ["--config", str(FINETUNE / name)]
    source = "path_or_name" if recipe == "full.yaml" else "name_or_path"
    arguments += [f"--model.init_args.{source}", str(model_folder)]
    arguments += ["--data.init_args.train_files", json.dumps([str(folder / "text.txt")])]
    arguments += ["--data.init_args.cache_dir", str(folder / "cache")]
    arguments += ["--trainer.default_root_dir", str(folder / "run")]
    assert main([*arguments, "--trainer.enable_progress_bar", "false", *more]) == 0
    [path] = (folder / "run" / "checkpoints").glob("*.ckpt")
    checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
    assert checkpoint["global_step"] == 2
    return checkpoint


def test_all_weights(model_folder: Path) -> None:
    weights = fit("hf_full.yaml", model_folder)["state_dict"]
    base = HFCausalLM(model_folder).state_dict()
    assert set(weights) == set(base)
    exported = AutoModelForCausalLM.from_pretrained(model_folder.parent / "run" / "hf")
    for name, weight in exported.state_dict().items():
        assert torch.equal(weight, weights[f"model.{name}"])


def test_our_transformer_learns_what_theirs_learns(model_folder: Path) -> None:
    exports = []
    for recipe in ("full.yaml", "hf_full.yaml"):
        run = model_folder.parent / "run"
        fit(recipe, model_folder)
        exports.append(AutoModelForCausalLM.from_pretrained(run / "hf").state_dict())
        run.rename(run.with_name(recipe))
    before = AutoModelForCausalLM.from_pretrained(model_folder).state_dict()
    for name, weight in exports[1].items():
        assert not torch.equal(weight, before[name])
        torch.testing.assert_close(exports[0][name], weight, rtol=0, atol=1e-6)


def test_a_misspelt_option_of_a_classmethod(
    model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["fit", "--config", str(FINETUNE / "full.yaml")]
    with pytest.raises(SystemExit):
        main([*arguments, "--model.init_args.optimizr", "3"])
    assert "did you mean 'optimizer'?" in capsys.readouterr().err


def test_rows_without_tokens_stay(model_folder: Path) -> None:
    rows = CausalLM.from_pretrained(model_folder).config.vocab_size
    lm = CausalLM.from_pretrained(model_folder, vocab_size=7)
    assert lm.config.vocab_size == len(lm.model.embedding.weight) == rows > 7


def test_adapters(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("peft")
    checkpoint = fit("lora.yaml", model_folder, "--model.init_args.peft.use_dora", "true")
    assert checkpoint["lightning_llm"]["peft"]["use_dora"] is True
    assert all("lora_" in name for name in checkpoint["state_dict"])
    capsys.readouterr()
    [path] = (model_folder.parent / "run" / "checkpoints").glob("*.ckpt")
    words = ["--prompt", "def twice", "--temperature", "0", "--max_new_tokens", "4"]
    for source in (path, model_folder.parent / "run" / "hf"):  # adapters, and the merged export
        assert main(["generate", "--checkpoint", str(source), "--device", "cpu", *words]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
