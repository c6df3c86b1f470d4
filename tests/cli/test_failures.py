"""What a command that fails says: a sentence if on purpose, else a traceback, once for all."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from torch._utils import ExceptionWrapper

import lightning_llm.cli
from lightning_llm.batches import targets_of
from lightning_llm.cli import failures, main
from lightning_llm.errors import InvalidValueError, LightningLLMError, MissingKeyError
from tests.cli.test_commands import make_text, recipe


def run_and_raise(monkeypatch: pytest.MonkeyPatch, action: Any) -> int:
    """Run a command that does nothing but this."""
    monkeypatch.setattr(lightning_llm.cli, "_run", lambda command, rest: action())
    return main(["fit"])


def refuse() -> None:
    raise InvalidValueError("seq_len=7 is odd; use 8")


def crash_after_refusal() -> None:
    try:
        refuse()
    except ValueError:
        torch.empty(3)[5]


def crash_with_refusal_as_cause() -> None:
    try:
        refuse()
    except ValueError as error:
        raise RuntimeError("my own wrapper") from error


def crash_inside_lightning() -> None:
    # No check of Lightning's: int() fails on what it was given.
    Trainer(max_time={"hours": "many"}, accelerator="cpu", logger=False)


def crash_here() -> None:
    {}["input_ids"]


@pytest.mark.parametrize(
    ("action", "kind"),
    [
        (crash_here, KeyError),
        (crash_after_refusal, IndexError),
        (crash_with_refusal_as_cause, RuntimeError),
        (crash_inside_lightning, TypeError),
    ],
)
def test_what_nobody_raised_on_purpose_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, action: Any, kind: type[Exception]
) -> None:
    with pytest.raises(kind) as caught:
        run_and_raise(monkeypatch, action)
    [note] = caught.value.__notes__
    assert "please report" in note
    assert f"lightning_llm {lightning_llm.__version__}" in note
    assert f"torch {torch.__version__.partition('+')[0]}" in note
    assert "test_failures.py" in note  # whose code it was
    assert capsys.readouterr().err == ""


def test_a_deliberate_error_is_one_sentence_with_the_place_of_the_users_code(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert run_and_raise(monkeypatch, refuse) == 1
    said = capsys.readouterr().err
    assert said.startswith("lightning-llm fit: error: seq_len=7 is odd; use 8 (called at ")
    assert "test_failures.py" in said
    assert said.count("\n") == 1


def misconfigure() -> None:
    raise MisconfigurationException("No training batches")


@pytest.mark.parametrize(
    ("action", "said"),
    [
        (misconfigure, "error: No training batches"),
        (lambda: Trainer(accelerator="nonsense"), "nonsense"),
        (lambda: Trainer(accelerator="cpu", max_epochs=-3), "max_epochs"),
    ],
)
def test_checks_of_lightning_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, action: Any, said: str
) -> None:
    assert run_and_raise(monkeypatch, action) == 1
    assert said in capsys.readouterr().err


def test_all_tracebacks_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_LLM_TRACEBACK", "1")
    with pytest.raises(InvalidValueError):
        run_and_raise(monkeypatch, refuse)


def out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def out_of_host_memory() -> None:
    torch.empty(2**60, dtype=torch.int8)


@pytest.mark.parametrize("action", [out_of_memory, out_of_host_memory])
def test_out_of_memory_says_what_to_lower(monkeypatch: pytest.MonkeyPatch, action: Any) -> None:
    with pytest.raises(RuntimeError) as caught:
        run_and_raise(monkeypatch, action)
    [note] = caught.value.__notes__
    assert "micro_batch_size" in note
    assert "report" not in note


def raised_by_worker(action: Any) -> None:
    """Raise what a DataLoader makes of an error in one of its workers."""
    try:
        action()
    except Exception:
        ExceptionWrapper(where="in DataLoader worker process 0").reraise()


def test_an_error_in_a_worker_of_a_loader_is_that_of_its_kind(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert run_and_raise(monkeypatch, lambda: raised_by_worker(refuse)) == 1
    said = capsys.readouterr().err
    assert said.startswith("lightning-llm fit: error: seq_len=7 is odd; use 8")
    assert "Traceback" not in said
    with pytest.raises(KeyError, match="crash_here"):
        run_and_raise(monkeypatch, lambda: raised_by_worker(crash_here))


MODULE = """
import lightning.pytorch as L, torch


class Data(L.LightningDataModule):
    vocab_size = 64

    def train_dataloader(self):
        row = torch.arange(8)
        return torch.utils.data.DataLoader([{"ids": row, "labels": row}] * 8, batch_size=2)

    val_dataloader = train_dataloader


class Broken(L.Callback):
    def __init__(self):
        self.nothing.there
"""


def users_recipe(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> dict[str, Any]:
    make_text(folder / "text.txt")
    (folder / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(folder)
    return recipe(folder)


def fit(folder: Path, contents: dict[str, Any], package: str) -> int:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(contents))
    return main(["fit", "--config", str(folder / "recipe.yaml"), "--allow_import", package])


def test_a_batch_without_ids_says_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    contents = users_recipe(tmp_path, monkeypatch, "strange_batches")
    contents["data"] = {"class_path": "strange_batches.Data"}
    contents["model"]["init_args"]["config"]["max_seq_len"] = 8
    assert fit(tmp_path, contents, "strange_batches") == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "the batch is a dict with keys ['ids', 'labels']; it needs 'input_ids'" in said


def test_a_crash_in_a_class_of_the_recipe_keeps_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = users_recipe(tmp_path, monkeypatch, "strange_callback")
    contents["trainer"]["callbacks"] = {"class_path": "strange_callback.Broken"}  # of two types
    with pytest.raises((AttributeError, ValueError)) as caught:
        fit(tmp_path, contents, "strange_callback")
    error: BaseException | None = caught.value
    while error is not None and not isinstance(error, AttributeError):
        error = error.__cause__
    assert "nothing" in str(error)
    assert "strange_callback.py:17 (__init__)" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    "batch", [{"labels": torch.zeros(2, 4)}, (torch.zeros(2, 4),), {"input_ids": torch.zeros(2, 4)}]
)
def test_strange_batches_are_refused_by_name(batch: Any) -> None:
    from lightning_llm.batches import inputs_of

    with pytest.raises(LightningLLMError, match="input_ids"):
        inputs_of(batch)


def test_targets_are_named_too() -> None:
    with pytest.raises(MissingKeyError, match="labels"):
        targets_of({"input_ids": torch.zeros(2, 4, dtype=torch.int64)})


# ---------------------------------------------------------------------- several processes

FAILING = """
import sys
from unittest import mock

import lightning_llm.cli as cli
from lightning_llm.cli import failures
from lightning_llm.errors import InvalidValueError

failures._HEAD_START_SECONDS = {head_start}


def fail():
    {what}


with mock.patch.object(cli, "_run", lambda command, rest: fail()):
    sys.exit(cli.main(["fit"]))
"""


def failing_ranks(
    tmp_path: Path, what: str, ranks: list[int], head_start: float = 20.0
) -> list[str]:
    """What each of some ranks, started by one launcher, writes to standard error."""
    script = tmp_path / "failing.py"
    script.write_text(textwrap.dedent(FAILING).format(what=what, head_start=head_start))
    started = [
        subprocess.Popen(
            [sys.executable, str(script)],
            env={
                "PATH": "",
                "PYTHONPATH": ":".join(sys.path),
                "TORCHELASTIC_RUN_ID": "none",
                "MASTER_PORT": "29500",
                "TMPDIR": str(tmp_path),
                "RANK": str(rank),
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ranks
    ]
    said = [process.communicate(timeout=60)[1] for process in started]
    assert all(process.returncode == 1 for process in started)
    return said


@pytest.mark.parametrize(
    ("what", "sign"),
    [
        ("raise InvalidValueError('seq_len=7 is odd')", "error: seq_len=7 is odd"),
        ("{}['rank']", "Traceback"),
    ],
)
def test_ranks_that_fail_alike_say_so_once(tmp_path: Path, what: str, sign: str) -> None:
    for _ in range(2):  # the first rank is heard, whatever an earlier launch said
        said = failing_ranks(tmp_path, what, [2, 1, 0])
        assert [sign in text for text in said] == [False, False, True]
    # A rank that fails alone is heard, too.
    what = what.replace("7", "9").replace("rank", "key")
    sign = sign.replace("7", "9")
    assert sign in failing_ranks(tmp_path, what, [3], head_start=0.0)[0]


def test_a_rank_that_lost_contact_names_no_fault_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(failures.tempfile, "gettempdir", lambda: str(tmp_path))

    def lose_contact() -> None:
        failures.tell("the failure of another rank\n")
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [::1]:91")

    assert run_and_raise(monkeypatch, lose_contact) == 1
    assert "rank 0 stopped because another rank failed" in capsys.readouterr().err


def test_a_reader_that_leaves_ends_the_command_quietly() -> None:
    script = (
        "import sys, lightning_llm.cli as cli\n"
        "cli._run = lambda command, rest: print('x' * 100000) or 0\n"
        "sys.exit(cli.main(['generate']))"
    )
    shell = f'"{sys.executable}" -c "$SCRIPT" | true; echo "${{PIPESTATUS[0]}}"'
    done = subprocess.run(
        ["bash", "-c", shell],
        env={"SCRIPT": script, "PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout.strip(), done.stderr) == ("141", "")
