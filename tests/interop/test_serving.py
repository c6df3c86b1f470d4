"""Exported models in the hands of others: pipelines of transformers, and lm-eval."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from lightning_llm import CausalLM
from lightning_llm.data.tokenizer import TokenizerSpec, train_tokenizer
from lightning_llm.models import TransformerConfig

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
TEXTS = ["A light in the morning.", "All the light, in which nobody had ever seen so bright a day."]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[CausalLM, Path]:
    """A small model with random weights and its export."""
    torch.manual_seed(0)
    lm = CausalLM(
        TransformerConfig(
            vocab_size=257, n_layers=2, dim=32, n_heads=2, max_seq_len=128, init_std=0.2
        )
    )
    lm.tokenizer = train_tokenizer(TokenizerSpec("byte"), iter(TEXTS))
    folder = tmp_path_factory.mktemp("served") / "exported"
    lm.save_pretrained(folder)
    return lm.eval(), folder


@pytest.mark.parametrize("prompt", ["A light", "中文"])
def test_a_pipeline_of_transformers_generates_the_same_text(
    exported: tuple[CausalLM, Path], prompt: str
) -> None:
    from transformers import pipeline

    lm, folder = exported
    generate = pipeline("text-generation", model=str(folder), device="cpu")
    options = {"max_new_tokens": 12, "do_sample": False, "return_full_text": False}
    [answer] = generate(prompt, **options)
    assert answer["generated_text"] == lm.generate([prompt], max_new_tokens=12)[0]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed")
def test_lm_eval_measures_the_likelihood_of_our_model(
    exported: tuple[CausalLM, Path], tmp_path: Path
) -> None:
    lm, folder = exported
    [task] = re.findall(r"^```yaml\n(task: .*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "my_perplexity.yaml").write_text(task)
    lines = [json.dumps({"text": text}) for text in TEXTS]
    (tmp_path / "held_out.jsonl").write_text("\n".join(lines))
    options = f"--model_args pretrained={folder} --tasks my_perplexity --include_path tasks"
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", *options.split()]
    command += ["--device", "cpu", "--batch_size", "1", "--output_path", "results.json"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=280)
    [results] = tmp_path.rglob("results*.json")
    measured = json.loads(results.read_text())["results"]["my_perplexity"]

    nll = num_bytes = 0
    for text in TEXTS:
        ids = torch.tensor([[lm.tokenizer.eos_token_id, *text.encode()]])
        with torch.no_grad():
            logits = lm.model(ids)[0, :-1]
        nll += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        num_bytes += len(text.encode())
    expected = nll / num_bytes / math.log(2)
    assert measured["bits_per_byte,none"] == pytest.approx(expected, rel=1e-4)
