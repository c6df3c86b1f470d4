"""Models built without weights for `FSDP2Strategy`, and ranks started by torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import WeightAveraging
from test_commands import make_text, recipe

from lightning_llm import CausalLM
from lightning_llm.cli import main
from lightning_llm.cli.checkpoint import load_trained
from lightning_llm.cli.sharded_build import sharded_build
from lightning_llm.models import TransformerConfig
from lightning_llm.models.drawn_later import drawing, weights_drawn_later
from lightning_llm.strategies import FSDP2Strategy

CONFIG = TransformerConfig(vocab_size=61, max_seq_len=16, n_layers=2, dim=32, n_heads=4)
FSDP2 = "lightning_llm.strategies.FSDP2Strategy"


class OtherLoss(CausalLM):
    """Leaves building alone."""

    def aux_loss(self) -> None:
        return None


class Touches(CausalLM):
    """Looks at weights when they should be there."""

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.model.embedding.weight.data.zero_()


class Sets(Callback):
    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        pl_module.model.embedding.weight.data.zero_()


@pytest.mark.parametrize(("kind", "later"), [(CausalLM, True), (OtherLoss, True), (Touches, False)])
def test_who_is_built_without_weights(kind: type[CausalLM], later: bool) -> None:
    with weights_drawn_later():
        built = kind(CONFIG)
    assert all(weight.is_meta == later for weight in built.parameters())
    assert not any(weight.is_meta for weight in kind(CONFIG).parameters())


def test_weights_are_those_of_the_moment_of_building() -> None:
    torch.manual_seed(5)
    now = CausalLM(CONFIG)
    torch.manual_seed(5)
    with weights_drawn_later():
        later = CausalLM(CONFIG)
    state = torch.rand(7)
    with drawing(later):
        later.model.to_empty(device="cpu").reset_parameters()
    assert not torch.equal(torch.rand(7), state)  # the generator went on from where it was
    for name, weight in now.state_dict().items():
        assert torch.equal(later.state_dict()[name], weight), name


@pytest.mark.parametrize(
    ("trainer", "later"),
    [
        ({"strategy": "fsdp2"}, True),
        ({"strategy": FSDP2Strategy()}, True),
        ({"strategy": {"class_path": FSDP2}, "callbacks": []}, True),
        ({"strategy": "ddp"}, False),
        ({"strategy": None}, False),
        ({"strategy": {"class_path": "lightning_llm.strategies.DDPStrategy"}}, False),
        ({"callbacks": {"class_path": "lightning_llm.callbacks.SampleText"}}, True),
        ({"callbacks": [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint"}]}, True),
        ({"callbacks": [{"class_path": "lightning.pytorch.callbacks.ModelSummary"}]}, True),
        ({"callbacks": [{"class_path": "lightning.pytorch.callbacks.Timer"}]}, True),
        ({"callbacks": [{"class_path": "lightning_llm.interop.word_vectors.WordVectors"}]}, False),
        ({"callbacks": [Sets()]}, False),
        ({"callbacks": [{"class_path": f"{WeightAveraging.__module__}.WeightAveraging"}]}, False),
    ],
    ids=str,
)
def test_recipes_that_are_built_without_weights(trainer: dict[str, Any], later: bool) -> None:
    with sharded_build({"strategy": "fsdp2", **trainer}):
        assert CausalLM(CONFIG).model.embedding.weight.is_meta == later


@pytest.mark.distributed
@pytest.mark.slow
def test_ranks_of_torchrun_train_like_one_process(tmp_path: Path) -> None:
    make_text(tmp_path / "text.txt")
    contents = recipe(tmp_path)
    contents["trainer"] |= {"gradient_clip_val": 1.0, "num_sanity_val_steps": 0}
    contents["model"]["init_args"]["config"]["n_layers"] = 2
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(contents))
    assert main(["fit", "--config", str(path)]) == 0
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    changed = {
        "config": str(path),
        "trainer.default_root_dir": str(tmp_path / "sharded"),
        "trainer.strategy": FSDP2,
        "trainer.devices": "2",
        "data.init_args.micro_batch_size": "2",
    }
    options = [f"--{name}={value}" for name, value in changed.items()]
    done = subprocess.run(
        [sys.executable, *command, "-m", "lightning_llm.cli", "fit", *options],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("CausalLM:") + done.stdout.count("CausalLM:") == 1  # one rank speaks
    folder = tmp_path / "sharded" / "checkpoints" / "model.ckpt"
    assert (folder / "meta.pt").is_file()
    one = load_trained(tmp_path / "run" / "checkpoints" / "model.ckpt", device="cpu")
    two = load_trained(folder, device="cpu")
    for name, weight in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[name], weight, rtol=0, atol=1e-6, msg=name)
    out = tmp_path / "hf"
    assert main(["export", "--checkpoint", str(folder), "--output", str(out)]) == 0
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 300
