"""The recipes for translation, chat and questions train two steps, on small local rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_llm import HFCausalLM
from lightning_llm.cli import main
from lightning_llm.data import TokenizerSpec
from lightning_llm.data.chat_examples import CHATML
from lightning_llm.data.tokenizer import train_tokenizer

RECIPES = Path(__file__).parents[2] / "recipes"
TURNS = ("<|im_start|>", "<|im_end|>")
CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
ROWS = 24

pytestmark = [
    pytest.mark.filterwarnings("ignore:The number of training batches:UserWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
]


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    spec = TokenizerSpec("bpe", vocab_size=300, special_tokens=TURNS)
    tokenizer = train_tokenizer(spec, iter(["a bird sings in the tree " * 50]))
    tokenizer.chat_template, tokenizer.eos_token = CHATML, TURNS[1]
    lm = HFCausalLM({**CONFIG, "eos_token_id": tokenizer.eos_token_id}, vocab_size=len(tokenizer))
    lm.tokenizer = tokenizer
    lm.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def fit(folder: Path, recipe: str, overlay: str, **data: Any) -> tuple[dict[str, Any], str]:
    """The checkpoint of a run under a debug overlay, and what its logger wrote."""
    arguments = ["fit"]
    for name in (recipe, overlay):
        arguments += ["--config", str(RECIPES / name)]
    for name, value in {**data, "cache_dir": folder / "cache"}.items():
        arguments += [f"--data.init_args.{name}", str(value)]
    if (folder / "model").exists():
        arguments += ["--model.init_args.name_or_path", str(folder / "model")]
    arguments += ["--trainer.default_root_dir", str(folder / "run")]
    assert main([*arguments, "--trainer.enable_progress_bar", "false"]) == 0
    [path] = (folder / "run" / "checkpoints").glob("*.ckpt")
    checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
    assert checkpoint["global_step"] == 2
    return checkpoint, "".join(p.name for p in (folder / "run").rglob("*_samples.jsonl"))


def test_translation(tmp_path: Path) -> None:
    files = {}
    for name, text in (("source", "a bird sings in tree {}"), ("target", "第{}棵树上有只鸟在唱歌")):
        path = tmp_path / name
        path.write_text("".join(text.format(i) + "\n" for i in range(ROWS)), encoding="utf-8")
        files |= {f"train_{name}": path, f"val_{name}": path}
    overlay = "translation/debug.yaml"
    checkpoint, samples = fit(tmp_path, "translation/multi30k_en_de.yaml", overlay, **files)
    assert samples == "bleu_samples.jsonl"
    assert checkpoint["lightning_llm"]["tokenizer"]["tokenizer.json"]


def test_translation_into_chinese_is_scored_by_character(tmp_path: Path) -> None:
    rows = [f"a bird sings in tree {i}\t第{i}棵树上有只鸟在唱歌。" for i in range(ROWS)]
    path = tmp_path / "rows.tsv"
    path.write_text("source\ttarget\n" + "\n".join(rows) + "\n", encoding="utf-8")
    callback = {
        "class_path": "lightning_llm.callbacks.BLEUMonitor",
        "init_args": {"tokenize": "zh", "max_new_tokens": 4},
    }
    overlay = tmp_path / "chinese.yaml"
    overlay.write_text(json.dumps({"trainer": {"callbacks": [callback]}}))
    arguments = ["fit"]
    for config in ("translation/multi30k_en_de.yaml", "translation/debug.yaml", overlay):
        arguments += ["--config", str(RECIPES / config)]
    for name in ("train", "val"):
        arguments += [f"--data.init_args.{name}_{side}=null" for side in ("source", "target")]
        arguments += [f"--data.init_args.{name}_files={path}"]
    arguments += ["--data.init_args.cache_dir", str(tmp_path / "cache")]
    arguments += ["--trainer.default_root_dir", str(tmp_path / "run")]
    assert main([*arguments, "--trainer.enable_progress_bar", "false"]) == 0
    [samples] = (tmp_path / "run").rglob("bleu_samples.jsonl")
    row = json.loads(samples.read_text(encoding="utf-8").splitlines()[0])
    assert "唱歌" in row["reference"]


def test_chat(tmp_path: Path, model_folder: Path) -> None:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"谁在唱 {i}?"},
                {"role": "assistant", "content": "a bird"},
            ]
        }
        for i in range(ROWS)
    ]
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    options = {"train_files": path, "val_fraction": 0.3, "seq_len": 64}
    _, samples = fit(tmp_path, "finetune/chat.yaml", "finetune/debug.yaml", **options)
    assert samples == "bleu_samples.jsonl"
    assert (tmp_path / "run" / "hf" / "chat_template.jinja").exists()


def test_questions(tmp_path: Path, model_folder: Path) -> None:
    rows = [
        {"context": f"a bird sings {i}", "question": "who?", "answers": {"text": ["a bird", "鸟"]}}
        for i in range(ROWS)
    ]
    path = tmp_path / "qa.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    options = {"train_files": path, "val_files": path, "seq_len": 64}
    _, samples = fit(tmp_path, "qa/extractive.yaml", "finetune/debug.yaml", **options)
    assert samples == "answer_samples.jsonl"
