"""A checkpoint is evaluated on any files, under the tokenizer that it carries."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.nn.functional import cross_entropy

from lightning_llm import TextDataModule
from lightning_llm.cli import main
from lightning_llm.cli.checkpoint import load_trained
from lightning_llm.data import ChatDataModule, QADataModule, TranslationDataModule
from tests.cli.test_commands import make_text, recipe

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")


def written(folder: Path, contents: dict[str, Any]) -> list[str]:
    contents["trainer"] |= {"max_steps": 2, "log_every_n_steps": 1}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(contents))
    return ["--config", str(folder / "recipe.yaml")]


@pytest.fixture(scope="module")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("text")
    make_text(folder / "text.txt")
    config = written(folder, recipe(folder))
    assert main(["fit", *config]) == 0
    return folder / "run" / "checkpoints" / "model.ckpt", config


def held_out(folder: Path) -> Path:
    file = folder / "held_out.text"
    file.write_text("".join(f"Line {i} says {i % 53} and then {i % 5}.\n" for i in range(60)))
    return file


def logged(output: str, name: str) -> float:
    found = re.search(rf"{name}\W+([\d.]+)", output)
    assert found, output
    return float(found[1])


@pytest.mark.parametrize("part", ["val", "test"])
def test_other_files_are_evaluated_under_the_checkpoints_tokenizer(
    tmp_path: Path, text_run: tuple[Path, list[str]], capsys: Any, part: str
) -> None:
    checkpoint, config = text_run
    file = held_out(tmp_path)
    command = {"val": "validate", "test": "test"}[part]
    files = [f"--data.init_args.{part}_files", str(file)]
    # The training text is not needed, nor read.
    files += ["--data.init_args.train_files", str(tmp_path / "gone" / "*.txt")]
    assert main([command, *config, "--ckpt_path", str(checkpoint), *files]) == 0
    loss = logged(capsys.readouterr().out, f"{part}_loss")

    # The same by hand: the file's own ids in windows of 32, each position given its row so far.
    module = load_trained(checkpoint, device="cpu")
    text = file.read_text()
    ids = torch.tensor([*module.tokenizer(text)["input_ids"], module.tokenizer.eos_token_id])
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(ids) - 1, 32):
            row = ids[start : start + 33]
            logits = module.model(row[None, :-1]).double()
            total += float(cross_entropy(logits[0], row[1:], reduction="sum"))
    assert math.isclose(loss, total / (len(ids) - 1), rel_tol=1e-5)


def test_predict_takes_the_files_that_are_named(
    tmp_path: Path, text_run: tuple[Path, list[str]]
) -> None:
    checkpoint, config = text_run
    output = tmp_path / "predictions.jsonl"
    files = ["--data.init_args.test_files", str(held_out(tmp_path)), "--output", str(output)]
    assert main(["predict", *config, "--ckpt_path", str(checkpoint), *files]) == 0
    assert len(output.read_text().splitlines()) > 1


def test_the_folder_of_a_run_stands_for_its_model(
    tmp_path: Path, text_run: tuple[Path, list[str]], capsys: Any
) -> None:
    run = text_run[0].parents[1]
    prompt = ["--prompt", "the cat", "--max_new_tokens", "4", "--temperature", "0"]
    assert main(["generate", "--checkpoint", str(text_run[0]), *prompt]) == 0
    wanted = capsys.readouterr().out
    assert main(["generate", "--checkpoint", str(run), *prompt]) == 0
    assert capsys.readouterr().out == wanted
    assert main(["export", "--checkpoint", str(run), "--output", str(tmp_path / "run" / "hf")]) == 0
    assert main(["generate", "--checkpoint", str(tmp_path / "run"), *prompt]) == 0
    output, errors = capsys.readouterr()
    assert output == wanted
    assert f"loading {tmp_path / 'run' / 'hf'}" in errors


def test_in_python_the_checkpoint_stands_for_its_tokenizer(
    tmp_path: Path, text_run: tuple[Path, list[str]]
) -> None:
    checkpoint, _ = text_run
    options: Any = {"tokenizer": {"pretrained": str(checkpoint)}, "cache_dir": tmp_path / "cache"}
    data = TextDataModule(val_files=held_out(tmp_path), seq_len=32, **options)
    data.prepare_data()
    data.setup("validate")
    assert data.vocab_size == 300
    assert data.val_store is not None
    assert data.train_store is None
    with pytest.raises(ValueError, match="no training data: give train_files"):
        data.train_dataloader()
    with pytest.raises(ValueError, match=r"pretrained.*RUN\.ckpt"):
        TextDataModule(val_files=held_out(tmp_path), seq_len=32)


def test_what_is_no_checkpoint_with_a_tokenizer_is_named(tmp_path: Path) -> None:
    file = tmp_path / "other.ckpt"
    torch.save({"state_dict": {}}, file)
    options: Any = {"tokenizer": {"pretrained": str(file)}, "cache_dir": tmp_path / "cache"}
    data = TextDataModule(val_files=held_out(tmp_path), seq_len=32, **options)
    with pytest.raises(ValueError, match=r"other\.ckpt.*is no checkpoint"):
        data.prepare_data()


ROWS: dict[type, Any] = {
    TranslationDataModule: lambda i: {"source": f"line {i}", "target": f"the {i % 7}"},
    QADataModule: lambda i: {"context": f"it is {i}", "question": "what?", "answers": [f"{i % 9}"]},
    ChatDataModule: lambda i: {
        "messages": [
            {"role": "user", "content": f"say {i}"},
            {"role": "assistant", "content": f"so {i % 7}"},
        ]
    },
}


@pytest.mark.parametrize("kind", ROWS)
def test_task_data_too(tmp_path: Path, capsys: Any, kind: type) -> None:
    for name, first in (("train", 0), ("val", 900)):
        rows = [json.dumps(ROWS[kind](first + i)) for i in range(24)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    contents = recipe(tmp_path)
    contents["data"] = {
        "class_path": f"lightning_llm.data.{kind.__name__}",
        "init_args": {
            "train_files": str(tmp_path / "train.jsonl"),
            "tokenizer": {"algorithm": "bpe", "vocab_size": 270},
            "seq_len": 64,
            "micro_batch_size": 4,
            "val_fraction": 0.3,
            "cache_dir": str(tmp_path / "cache"),
        },
    }
    config = written(tmp_path, contents)
    assert main(["fit", *config]) == 0
    checkpoint = tmp_path / "run" / "checkpoints" / "model.ckpt"
    files = ["--data.init_args.val_files", str(tmp_path / "val.jsonl")]
    capsys.readouterr()
    assert main(["validate", *config, "--ckpt_path", str(checkpoint), *files]) == 0
    assert 0 < logged(capsys.readouterr().out, "val_loss") < math.log(300) + 1
