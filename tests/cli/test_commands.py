"""The command line, run in process on a small text: fit to export, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_llm.cli import main

# A second run into the same folder, which several tests make on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")

WORDS = "the cat sat on a mat and the dog ran to the red house over green hills".split()


def make_text(path: Path, lines: int = 400) -> Path:
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(0, len(WORDS), (lines, 8), generator=generator)
    path.write_text("\n".join(" ".join(WORDS[i] for i in row) for row in picks.tolist()))
    return path


def recipe(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "seed_everything": 1,
        "trainer": {
            "accelerator": "cpu",
            "default_root_dir": str(folder / "run"),
            "max_steps": 4,
            "log_every_n_steps": 2,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": {
                "class_path": "lightning.pytorch.loggers.CSVLogger",
                "init_args": {"save_dir": "${trainer.default_root_dir}"},
            },
            "callbacks": [
                {"class_path": "lightning_llm.callbacks.PerplexityMonitor"},
                {
                    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "init_args": {
                        "dirpath": "${trainer.default_root_dir}/checkpoints",
                        "filename": "model",
                        "enable_version_counter": False,
                    },
                },
            ],
        },
        "model": {
            "class_path": "lightning_llm.CausalLM",
            "init_args": {
                "config": {
                    "n_layers": 1,
                    "dim": 32,
                    "n_heads": 2,
                    "max_seq_len": "${data.init_args.seq_len}",
                }
            },
        },
        "data": {
            "class_path": "lightning_llm.TextDataModule",
            "init_args": {
                "train_files": [str(folder / "*.txt")],
                "tokenizer": {"algorithm": "bpe", "vocab_size": 300},
                "seq_len": 32,
                "micro_batch_size": 4,
                "val_fraction": 0.1,
                "cache_dir": str(folder / "cache"),
            },
        },
        **changes,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_text(tmp_path / "text.txt")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(tmp_path)))
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `fit` ran once."""
    folder = tmp_path_factory.mktemp("trained")
    make_text(folder / "text.txt")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe(folder)))
    assert main(["fit", "--config", str(folder / "recipe.yaml")]) == 0
    return folder


def config_of(folder: Path) -> str:
    return str(folder / "recipe.yaml")


def test_fit_writes_a_checkpoint_with_config_and_tokenizer(trained: Path) -> None:
    saved = torch.load(trained / "run" / "checkpoints" / "model.ckpt", weights_only=True)
    assert saved["global_step"] == 4
    # The vocabulary of the data reached the model, and the interpolation the sequence length.
    assert saved["lightning_llm"]["config"]["vocab_size"] == 300
    assert saved["lightning_llm"]["config"]["max_seq_len"] == 32
    assert "tokenizer.json" in saved["lightning_llm"]["tokenizer"]


def test_last_step_is_saved_wherever_validation_fell(folder: Path) -> None:
    every = ["--trainer.val_check_interval", "3", "--trainer.check_val_every_n_epoch", "null"]
    assert main(["fit", "--config", config_of(folder), *every, "--trainer.max_steps", "4"]) == 0
    saved = torch.load(folder / "run" / "checkpoints" / "model.ckpt", weights_only=True)
    assert saved["global_step"] == 4


def test_saved_configuration_runs_again(trained: Path) -> None:
    [saved] = (trained / "run").rglob("config.yaml")
    again = ["--config", str(saved), "--trainer.max_steps", "1", "--overwrite"]
    assert main(["fit", *again]) == 0


def test_validate_and_test_log_their_perplexity(trained: Path, capsys: Any) -> None:
    checkpoint = str(trained / "run" / "checkpoints" / "model.ckpt")
    assert main(["validate", "--config", config_of(trained), "--ckpt_path", checkpoint]) == 0
    output = capsys.readouterr().out
    assert "val_perplexity" in output
    assert "val_loss" in output
    arguments = ["--data.init_args.test_files", json.dumps([str(trained / "text.txt")])]
    command = ["test", "--config", config_of(trained), "--ckpt_path", checkpoint, *arguments]
    assert main(command) == 0
    assert "test_perplexity" in capsys.readouterr().out


def test_predict_writes_likelihoods_that_sum_to_the_validation_loss(
    trained: Path, capsys: Any
) -> None:
    checkpoint = str(trained / "run" / "checkpoints" / "model.ckpt")
    main(["validate", "--config", config_of(trained), "--ckpt_path", checkpoint])
    [loss] = re.findall(r"val_loss\W+([0-9.]+)", capsys.readouterr().out)
    output = trained / "nll.jsonl"
    command = ["predict", "--config", config_of(trained), "--ckpt_path", checkpoint]
    assert main([*command, "--output", str(output)]) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    mean = sum(r["nll_sum"] for r in rows) / sum(r["num_tokens"] for r in rows)
    assert mean == pytest.approx(float(loss), rel=1e-4)
    # Rows that fill up the last batch are no samples.
    larger = ["--data.init_args.micro_batch_size", str(len(rows) - 1)]
    assert main([*command, "--output", str(output), *larger]) == 0
    again = [json.loads(line) for line in output.read_text().splitlines()]
    assert [r["num_tokens"] for r in again] == [r["num_tokens"] for r in rows]


def test_generate_writes_only_the_completion(trained: Path, capsys: Any) -> None:
    checkpoint = str(trained / "run" / "checkpoints" / "model.ckpt")
    command = ["generate", "--checkpoint", checkpoint, "--prompt", "the cat", "--seed", "3"]
    assert main([*command, "--max_new_tokens", "8"]) == 0
    first = capsys.readouterr().out
    assert first.endswith("\n")
    assert not first.startswith("the cat")
    main([*command, "--max_new_tokens", "8"])
    again = capsys.readouterr()
    assert again.out == first
    assert "max_seq_len" not in again.err
    main([*command, "--max_new_tokens", "32"])
    assert "end at the model's max_seq_len=32 tokens" in capsys.readouterr().err


def test_beams_need_no_temperature(trained: Path, capsys: Any) -> None:
    checkpoint = str(trained / "run" / "checkpoints" / "model.ckpt")
    command = ["generate", "--checkpoint", checkpoint, "--prompt", "the cat", "--num_beams", "2"]
    assert main([*command, "--max_new_tokens", "4"]) == 0
    assert capsys.readouterr().out


def test_export_equals_the_checkpoint(trained: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lightning_llm.cli.checkpoint import load_trained

    checkpoint = trained / "run" / "checkpoints" / "model.ckpt"
    output = trained / "hf"
    assert main(["export", "--checkpoint", str(checkpoint), "--output", str(output)]) == 0
    ours = load_trained(checkpoint, device="cpu")
    theirs = AutoModelForCausalLM.from_pretrained(output)
    tokenizer = AutoTokenizer.from_pretrained(output)
    ids = torch.tensor([tokenizer("the dog ran over green hills")["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(ours.model(ids), theirs(ids).logits, rtol=1e-5, atol=1e-5)
    assert tokenizer.decode(ids[0]) == "the dog ran over green hills"
    again = load_trained(output, device="cpu")
    with torch.no_grad():
        assert torch.equal(again.model(ids), ours.model(ids))


def test_prepare_builds_the_store_and_verifies_it(folder: Path, capsys: Any) -> None:
    assert main(["prepare", "--config", config_of(folder), "--verify"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "train_store: 1 documents" in captured.err
    assert "checksums right" in captured.err
    assert list((folder / "cache").rglob("tokens.bin"))
    assert not (folder / "run").exists()


def test_command_line_beats_the_recipe_and_later_recipes_earlier_ones(folder: Path) -> None:
    (folder / "over.yaml").write_text(
        yaml.safe_dump({"data": {"init_args": {"seq_len": 16}}, "trainer": {"max_steps": 1}})
    )
    main(["fit", "--config", config_of(folder), "--config", str(folder / "over.yaml")])
    saved = torch.load(folder / "run" / "checkpoints" / "model.ckpt", weights_only=True)
    assert saved["lightning_llm"]["config"]["max_seq_len"] == 16
    main(
        [
            *("fit", "--config", config_of(folder), "--data.init_args.seq_len", "24"),
            *("--model.init_args.config.dim", "16", "--trainer.max_steps", "1", "--overwrite"),
        ]
    )
    saved = torch.load(folder / "run" / "checkpoints" / "model.ckpt", weights_only=True)
    assert saved["lightning_llm"]["config"]["max_seq_len"] == 24
    assert saved["lightning_llm"]["config"]["dim"] == 16


def test_resume_auto_continues_and_must_needs_a_checkpoint(folder: Path, capsys: Any) -> None:
    assert main(["fit", "--config", config_of(folder), "--resume", "must"]) == 1
    assert "no readable checkpoint" in capsys.readouterr().err
    assert main(["fit", "--config", config_of(folder), "--resume", "auto"]) == 0
    assert "starting fresh" in capsys.readouterr().err
    (folder / "run" / "torn.ckpt").write_bytes(b"PK\x03\x04 torn")
    command = ["fit", "--config", config_of(folder), "--resume", "must"]
    assert main([*command, "--trainer.max_steps", "6"]) == 0
    errors = capsys.readouterr().err
    assert "torn.ckpt" in errors
    assert "resuming from" in errors
    assert (
        torch.load(folder / "run" / "checkpoints" / "model.ckpt", weights_only=True)["global_step"]
        == 6
    )


def run_badly(arguments: list[str], capsys: Any) -> str:
    """Run a command that must fail, and return what it wrote to standard error."""
    try:
        status = main(arguments)
    except SystemExit as exit_:
        status = int(exit_.code or 0)
    assert status in (1, 2)
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.init_args.config.n_layres", "3"], "n_layres.*\n.*did you mean.*n_layers"),
        (["--trainer.max_stepz", "3"], "max_stepz(.|\n)*did you mean 'trainer.max_steps'"),
        (["--data.init_args.seq_length", "3"], "seq_length"),
        (["--model.init_args.config.n_layers", "abc"], "n_layers(.|\n)*int"),
        (["--model.init_args.config.n_heads", "5"], "n_heads"),
        (["--trainer.accelerator", "quantum"], "quantum"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--ckpt_path", "nowhere.ckpt"], "nowhere.ckpt"),
        (["--data.init_args.train_files", '["nowhere/*.txt"]'], "nowhere"),
        (["--model.init_args.config.max_seq_len", "8"], "seq_len=32 is longer.*max_seq_len=8"),
    ],
)
def test_bad_input_is_named(folder: Path, capsys: Any, arguments: list[str], message: str) -> None:
    errors = run_badly(["fit", "--config", config_of(folder), *arguments], capsys)
    assert re.search(message, errors), errors
    assert "Traceback" not in errors


def test_misspelt_key_in_a_recipe_is_named(folder: Path, capsys: Any) -> None:
    broken = recipe(folder)
    broken["data"]["init_args"]["micro_batch_sise"] = 3
    (folder / "broken.yaml").write_text(yaml.safe_dump(broken))
    errors = run_badly(["fit", "--config", str(folder / "broken.yaml")], capsys)
    assert "micro_batch_sise" in errors
    assert "NoneType" not in errors


def test_class_path_outside_the_allowed_packages_is_not_imported(
    folder: Path, capsys: Any, monkeypatch: Any
) -> None:
    (folder / "stranger.py").write_text(
        "from pathlib import Path\n"
        "Path(__file__).with_name('imported').touch()\n"
        "from lightning.pytorch import Callback\n"
        "class Mine(Callback): ...\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    changed = recipe(folder)
    changed["trainer"]["callbacks"].append({"class_path": "stranger.Mine"})
    changed["trainer"]["max_steps"] = 1
    (folder / "changed.yaml").write_text(yaml.safe_dump(changed))
    errors = run_badly(["fit", "--config", str(folder / "changed.yaml")], capsys)
    assert "stranger.Mine" in errors
    assert "allow_import" in errors
    assert not (folder / "imported").exists()
    command = ["fit", "--config", str(folder / "changed.yaml"), "--allow_import", "stranger"]
    assert main(command) == 0
    assert (folder / "imported").exists()


def test_unwritable_output_is_refused_before_training(folder: Path, capsys: Any) -> None:
    (folder / "file").write_text("in the way")
    command = ["fit", "--config", config_of(folder)]
    errors = run_badly([*command, "--trainer.default_root_dir", str(folder / "file")], capsys)
    assert str(folder / "file") in errors
    assert "cannot be written" in errors


def test_another_vocabulary_than_the_checkpoints_is_refused(
    trained: Path, tmp_path: Path, capsys: Any
) -> None:
    other = tmp_path / "other.txt"
    other.write_text("quite different words here, again and again\n" * 300)
    command = ["validate", "--config", config_of(trained)]
    command += ["--ckpt_path", str(trained / "run" / "checkpoints" / "model.ckpt")]
    files = json.dumps([str(other)])
    errors = run_badly([*command, "--data.init_args.train_files", files], capsys)
    assert re.search("another vocabulary|vocab_size", errors), errors


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04half"])
def test_damaged_checkpoint_is_named(tmp_path: Path, capsys: Any, content: bytes) -> None:
    damaged = tmp_path / "damaged.ckpt"
    damaged.write_bytes(content)
    errors = run_badly(["generate", "--checkpoint", str(damaged), "--prompt", "x"], capsys)
    assert "damaged.ckpt" in errors


def test_unknown_command_and_device(trained: Path, capsys: Any) -> None:
    assert "did you mean 'fit'" in run_badly(["fitt"], capsys)
    checkpoint = str(trained / "run" / "checkpoints" / "model.ckpt")
    command = ["generate", "--checkpoint", checkpoint, "--prompt", "x", "--device", "quantum"]
    assert "quantum" in run_badly(command, capsys)


def test_what_cannot_be_exported_is_refused_before_training(folder: Path, capsys: Any) -> None:
    changed = recipe(folder)
    export = {"class_path": "lightning_llm.callbacks.HFExport"}
    changed["trainer"]["callbacks"].append(export)
    changed["model"]["init_args"]["config"]["positions"] = "alibi"
    (folder / "changed.yaml").write_text(yaml.safe_dump(changed))
    errors = run_badly(["fit", "--config", str(folder / "changed.yaml")], capsys)
    assert "positions" in errors
    assert "alibi" in errors
    assert not (folder / "run" / "checkpoints" / "model.ckpt").exists()


def test_exported_weights_are_as_readable_as_the_rest(trained: Path) -> None:
    checkpoint = trained / "run" / "checkpoints" / "model.ckpt"
    output = trained / "readable"
    assert main(["export", "--checkpoint", str(checkpoint), "--output", str(output)]) == 0
    assert len({file.stat().st_mode for file in output.iterdir()}) == 1
