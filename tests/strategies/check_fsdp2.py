"""What two gloo ranks do in `test_fsdp2.py`, all in one pair of processes."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
import torch.distributed as dist
from fsdp2_runs import CONFIG, fit
from lightning.pytorch.strategies import DDPStrategy as LightningDDPStrategy
from strategy_models import Foreign

from lightning_llm import CausalLM
from lightning_llm.callbacks import FiniteGuard, PerplexityMonitor, SampleText
from lightning_llm.generation import generate
from lightning_llm.optim import Muon
from lightning_llm.plugins import AtomicCheckpointIO, BF16MixedPrecision, Float8Precision
from lightning_llm.plugins.io import sharded_save
from lightning_llm.plugins.io.sharded_save import save_sharded
from lightning_llm.strategies import DDPStrategy, FSDP2Strategy, fsdp2_checkpoints


def untied() -> CausalLM:
    config = replace(CONFIG, tie_embeddings=False, positions="learned", norm="layernorm")
    return CausalLM(config, z_loss=1e-3, label_smoothing=0.1)


def one_layer() -> CausalLM:
    return CausalLM(replace(CONFIG, n_layers=1))


def on_meta() -> CausalLM:
    with torch.device("meta"):
        return CausalLM(CONFIG)


def with_muon() -> CausalLM:
    return CausalLM(CONFIG, optimizer=partial(Muon, lr=1e-2))


def unlike_lengths(module: Any, prompts: list[str]) -> list[str]:
    """Ranks that decode different numbers of tokens must not wait for one another."""
    ids = torch.arange(4)[None]
    tokens = generate(module.model, ids, max_new_tokens=5 + 3 * module.global_rank)
    return [str(tokens[0, :9].tolist())]


def callbacks() -> list[Any]:
    return [
        FiniteGuard("raise", spike_sigma=6.0),
        PerplexityMonitor(),
        SampleText(["a"], generate_fn=unlike_lengths),
    ]


class TrainsOn(L.Callback):
    """Holds the saving thread back until training has gone on by two steps."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.go = folder, threading.Event()

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        def late(*args: Any) -> None:
            self.go.wait(60)
            save_sharded(*args)

        fsdp2_checkpoints.save_sharded = late

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        if trainer.global_step == 6:
            assert not self.folder.exists()
            self.go.set()

    def on_fit_end(self, trainer: Any, module: Any) -> None:
        fsdp2_checkpoints.save_sharded = save_sharded


def failing_save(directory: Path) -> str:
    """The error that this rank meets when the disk of the other one fails."""

    def fails(path: Path) -> Any:
        raise OSError(f"no space left for {path.name}")

    io = AtomicCheckpointIO(asynchronous=True)
    sharded_save.file_seal, kept = (
        fails if dist.get_rank() == 1 else sharded_save.file_seal,
        sharded_save.file_seal,
    )
    try:
        fit(devices=2, strategy=FSDP2Strategy(), plugins=[io], save=directory / "failed.ckpt")
    except OSError as error:
        return str(error)
    finally:
        sharded_save.file_seal = kept
    return "no error"


COMPILED = {"activation_checkpointing": "selective", "compile": {"backend": "aot_eager"}}


def training(directory: Path) -> dict[str, Any]:
    sharded = partial(fit, devices=2)
    whole = {"save_distributed_checkpoint": False}
    folder = directory / "folder.ckpt"
    runs = {
        "plain": sharded(strategy="fsdp2", save=folder),
        "callbacks": sharded(strategy=FSDP2Strategy(), callbacks=callbacks()),
        "accumulated": sharded(strategy=FSDP2Strategy(), accumulate_grad_batches=3),
        "reduced each time": sharded(
            strategy=FSDP2Strategy(reduce_every_micro_batch=True), accumulate_grad_batches=3
        ),
        "untied": sharded(untied, strategy=FSDP2Strategy(prefetch=2, cpu_offload=True)),
        "one layer": sharded(one_layer, strategy=FSDP2Strategy()),
        "meta": sharded(on_meta, strategy=FSDP2Strategy(reshard_after_forward=False)),
        "compiled": sharded(strategy=FSDP2Strategy(**COMPILED)),  # type: ignore[arg-type]
        "muon": sharded(with_muon, strategy=FSDP2Strategy()),
        "bf16": sharded(strategy=FSDP2Strategy(), plugins=[BF16MixedPrecision()]),
        "float8": sharded(strategy=FSDP2Strategy(), plugins=[Float8Precision(min_dim=16)]),
        "foreign": sharded(Foreign, strategy=FSDP2Strategy()),
        "foreign replicas": sharded(Foreign, strategy=LightningDDPStrategy()),
        "one file": sharded(strategy=FSDP2Strategy(**whole), save=directory / "file.ckpt"),
    }
    background = {"plugins": [AtomicCheckpointIO(asynchronous=True)], "max_steps": 7}
    late = directory / "late.ckpt"
    runs["in a thread"] = sharded(
        strategy=FSDP2Strategy(), save=late, callbacks=[TrainsOn(late)], **background
    )
    runs["failing"] = failing_save(directory)
    resumed = partial(sharded, seed=9, max_steps=5)
    runs |= {
        "from folder": resumed(strategy=FSDP2Strategy(), ckpt_path=folder),
        "from one file": resumed(strategy=FSDP2Strategy(), ckpt_path=directory / "file.ckpt"),
        "from one process": resumed(strategy=FSDP2Strategy(), ckpt_path=directory / "one.ckpt"),
        "replicas": resumed(
            strategy=DDPStrategy(), plugins=[AtomicCheckpointIO()], ckpt_path=folder
        ),
    }
    # Over a folder that is there: nothing of the old one stays.
    sharded(seed=8, strategy=FSDP2Strategy(), save=directory / "again.ckpt")
    sharded(strategy=FSDP2Strategy(), save=directory / "again.ckpt")
    return runs


def four_ranks(directory: Path) -> dict[str, Any]:
    hybrid = FSDP2Strategy(data_parallel_size=2, replicate_size=2)
    return {
        "hybrid": fit(devices=4, strategy=hybrid),
        "from two": fit(
            seed=9,
            devices=4,
            strategy=FSDP2Strategy(),
            ckpt_path=directory / "folder.ckpt",
            max_steps=5,
        ),
    }
