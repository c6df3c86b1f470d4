"""HFCausalLM under FSDP2: whole models and adapters learn on two ranks what they learn on one."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fsdp2_runs import fit, spawn
from hf_modules import module
from lightning.pytorch import Callback
from strategy_models import LENGTH
from transformers import AutoModelForCausalLM

from lightning_llm import CausalLM, HFCausalLM
from lightning_llm.cli import main
from lightning_llm.models.drawn_later import weights_drawn_later
from lightning_llm.strategies import FSDP2Strategy

pytest.importorskip("peft")
pytestmark = [
    pytest.mark.distributed,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
]
LORA = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj", "down_proj"]}
PEFT: dict[str, Any] = {"all": None, "lora": LORA, "dora": {**LORA, "use_dora": True}}
BASE = "base"


class Exports(Callback):
    """As HFExport does at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.save_pretrained(self.folder)


def build(directory: Path, kind: str) -> HFCausalLM:
    """All ranks draw the same adapters: `fit` seeds."""
    return HFCausalLM(
        directory / BASE,
        peft=PEFT[kind],
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9),
    )


def runs(directory: Path, strategy: Any = None, where: str = "one") -> dict[str, Any]:
    found = {}
    for kind in PEFT:
        options: dict[str, Any] = {"strategy": strategy(), "devices": 2} if strategy else {}
        found[kind] = fit(
            partial(build, directory, kind),
            max_steps=4,  # after which `fit` saves
            save=directory / where / f"{kind}.ckpt",
            callbacks=[Exports(directory / where / kind)],
            **options,
        )
    return found


def pretrained(directory: Path) -> CausalLM:
    with weights_drawn_later():
        lm = CausalLM.from_pretrained(
            directory / BASE, optimizer=lambda groups: torch.optim.SGD(groups, lr=0.05)
        )
    rank = int(os.environ.get("RANK", "0"))
    assert all(weight.is_meta == (rank > 0) for weight in lm.parameters())
    return lm


def on_two_ranks(directory: Path) -> dict[str, Any]:
    found = runs(directory, FSDP2Strategy, "two")
    found["ours"] = fit(
        partial(pretrained, directory), max_steps=4, strategy=FSDP2Strategy(), devices=2
    )
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sharded")
    torch.manual_seed(2)
    module().save_pretrained(directory / BASE)
    return directory


@pytest.fixture(scope="module")
def both(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    return runs(folder), spawn(on_two_ranks, 2, folder)


@pytest.mark.parametrize("kind", PEFT)
def test_ranks_learn_what_one_process_learns(both: Any, folder: Path, kind: str) -> None:
    one, two = both
    for rank in two:
        torch.testing.assert_close(rank[kind]["norms"], one[kind]["norms"], rtol=1e-4, atol=1e-6)
        for name, weight in one[kind]["weights"].items():
            torch.testing.assert_close(rank[kind]["weights"][name], weight, rtol=0, atol=1e-6)
    exports = [AutoModelForCausalLM.from_pretrained(folder / n / kind) for n in ("one", "two")]
    before = AutoModelForCausalLM.from_pretrained(folder / BASE).state_dict()
    moved = 0
    for name, weight in exports[0].state_dict().items():
        torch.testing.assert_close(exports[1].state_dict()[name], weight, rtol=0, atol=1e-6)
        moved += not torch.equal(weight, before[name])
    assert moved == (len(before) if kind == "all" else 4)


def test_the_first_rank_alone_reads_our_models(both: Any, folder: Path) -> None:
    one = fit(partial(pretrained, folder), max_steps=4)
    stored = CausalLM.from_pretrained(folder / BASE).state_dict()
    for rank in both[1]:
        for name, weight in one["weights"].items():
            assert torch.equal(rank["ours"]["start"]["weights"][name], stored[name])
            torch.testing.assert_close(rank["ours"]["weights"][name], weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", PEFT)
def test_a_folder_of_shards_is_exported(both: Any, folder: Path, kind: str) -> None:
    saved = folder / "two" / f"{kind}.ckpt"
    assert saved.is_dir()
    assert main(["export", "--checkpoint", str(saved), "--output", str(folder / f"{kind}-x")]) == 0
    ids = torch.arange(LENGTH)[None]
    wanted = AutoModelForCausalLM.from_pretrained(folder / "two" / kind)(ids).logits
    again = AutoModelForCausalLM.from_pretrained(folder / f"{kind}-x")(ids).logits
    torch.testing.assert_close(again, wanted)
