"""`fit` on two ranks that torchrun or SLURM started, and numbers of ranks that cannot be meant."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import free_port, srun
from test_commands import make_text

from lightning_llm.cli import main
from lightning_llm.cli.checkpoint import load_trained

ROOT = Path(__file__).parents[2]


def start(launcher: str, arguments: list[str]) -> list[str]:
    """Run ``lightning-llm`` on two ranks; what each of them (torchrun: both together) said."""
    command, port = [sys.executable, "-m", "lightning_llm.cli", *arguments], free_port()
    variables: list[dict[str, str]] = [srun(task, 2, port) for task in range(2)]
    if launcher == "torchrun":
        options = ["--standalone", "--nproc-per-node", "2", "-m", "lightning_llm.cli"]
        command = [sys.executable, "-m", "torch.distributed.run", *options, *arguments]
        variables = [{}]
    started = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | own,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for own in variables
    ]
    said = [process.communicate(timeout=200)[0] for process in started]
    assert [process.returncode for process in started] == [0] * len(started), said[-1][-3000:]
    return said


def options(folder: Path, run: str, **changed: Any) -> list[str]:
    overlays = ["quickstart", "debug", *["hardware/fsdp2"] * ("trainer.devices" in changed)]
    values = {
        "trainer.accelerator": "cpu",
        "trainer.precision": "32-true",
        "trainer.default_root_dir": folder / run,
        "data.init_args.train_files": json.dumps([str(folder / "text.txt")]),
        "data.init_args.cache_dir": folder / "cache",
        **changed,
    }
    configs = [word for name in overlays for word in ("--config", f"recipes/{name}.yaml")]
    return ["fit", *configs, *(f"--{name}={value}" for name, value in values.items())]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("launched")
    make_text(folder / "text.txt")
    return folder


@pytest.fixture(scope="module")
def alone(folder: Path) -> Any:
    """The model that one process trains on the batches of two ranks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert main(options(folder, "alone", **{"data.init_args.micro_batch_size": 4})) == 0
    return load_trained(folder / "alone" / "checkpoints" / "model.ckpt", device="cpu")


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
def test_ranks_of_a_launcher_train_like_one_process(
    folder: Path, alone: Any, launcher: str
) -> None:
    run = folder / launcher
    said = start(launcher, options(folder, launcher, **{"trainer.devices": 2}))
    assert "".join(said).count("CausalLM:") == 1  # one rank speaks
    assert [path.name for path in (run / "lightning_logs").iterdir()] == ["version_0"]
    told = json.loads((run / "lightning_logs" / "version_0" / "environment.json").read_text())
    assert told["devices"] == "2 x cpu"
    [checkpoint] = run.rglob("*.ckpt")
    assert {path.name for path in checkpoint.glob("*.distcp")} == {"__0_0.distcp", "__1_0.distcp"}
    trained = load_trained(checkpoint, device="cpu").state_dict()
    for name, weight in alone.state_dict().items():
        torch.testing.assert_close(trained[name], weight, rtol=0, atol=1e-6, msg=name)
    assert (run / "hf" / "model.safetensors").is_file()
    out = folder / f"{launcher} exported"
    assert main(["export", "--checkpoint", str(checkpoint), "--output", str(out)]) == 0
    assert json.loads((out / "config.json").read_text())["hidden_size"] == 32
