"""What gloo ranks do in `test_tensor_parallel.py`, all in one group of processes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fsdp2_runs import CONFIG as ODD
from fsdp2_runs import fit

from lightning_llm import CausalLM
from lightning_llm.callbacks import FiniteGuard, PerplexityMonitor, SampleText
from lightning_llm.generation import generate
from lightning_llm.optim import Muon
from lightning_llm.plugins import AtomicCheckpointIO, BF16MixedPrecision, Float8Precision
from lightning_llm.strategies import DDPStrategy, FSDP2Strategy

# An odd number of token ids: ranks hold unlike numbers of rows.
CONFIG = replace(ODD, n_heads=4, dim=32, n_kv_heads=2, qk_norm=True)


def grouped() -> CausalLM:
    return CausalLM(CONFIG)


def untied() -> CausalLM:
    config = replace(
        CONFIG,
        tie_embeddings=False,
        positions="learned",
        norm="layernorm",
        mlp="gelu",
        attention_bias=True,
        mlp_bias=True,
        logit_softcap=5.0,
    )
    return CausalLM(config, z_loss=1e-3, label_smoothing=0.1, loss_chunk_size=24)


def parallel_residual() -> CausalLM:
    config = replace(CONFIG, parallel_residual=True, shared_norm=True, attention_softcap=4.0)
    return CausalLM(config)


def experts() -> CausalLM:
    return CausalLM(replace(CONFIG, n_experts=4, router_aux_loss_weight=0.1))


def unbalanced() -> CausalLM:
    """Balance is a matter of the rows of a rank, which differ with their number."""
    return CausalLM(replace(CONFIG, n_experts=4, router_aux_loss_weight=0.0))


def with_muon() -> CausalLM:
    return CausalLM(CONFIG, optimizer=partial(Muon, lr=1e-2))


def same_prompts(module: Any, prompts: list[str]) -> list[str]:
    """Generation needs neither lengths that divide nor ranks that decode alike."""
    ids = torch.tensor([[1, 2, 3]])
    tokens = generate(module.model, ids, max_new_tokens=4 + module.global_rank)
    return [str(tokens[0, :7].tolist())]


def callbacks() -> list[Any]:
    return [
        FiniteGuard("raise", spike_sigma=6.0),
        PerplexityMonitor(),
        SampleText(["a"], generate_fn=same_prompts),
    ]


COMPILED = {"activation_checkpointing": "selective", "compile": {"backend": "aot_eager"}}


def two_ranks(directory: Path) -> dict[str, Any]:
    """Layers split over both ranks; and checkpoints on their way to and from other layouts."""
    Split = partial(FSDP2Strategy, tensor_parallel_size=2)
    split = partial(fit, devices=2)
    folder = directory / "split.ckpt"
    runs = {
        "grouped": split(grouped, strategy=Split(), save=folder, callbacks=callbacks()),
        "accumulated": split(grouped, strategy=Split(), accumulate_grad_batches=3),
        "untied": split(untied, strategy=Split(activation_checkpointing="full")),
        "parallel": split(parallel_residual, strategy=Split()),
        "experts": split(experts, strategy=Split(), save=directory / "experts.ckpt"),
        "experts, compiled": split(experts, strategy=Split(**COMPILED)),  # type: ignore[arg-type]
        "compiled": split(grouped, strategy=Split(**COMPILED)),  # type: ignore[arg-type]
        "bf16": split(grouped, strategy=Split(), plugins=[BF16MixedPrecision()]),
        "one file": split(
            grouped,
            strategy=Split(save_distributed_checkpoint=False),
            save=directory / "file.ckpt",
        ),
    }
    muon = directory / "muon_shards.ckpt"
    runs["muon shards"] = split(with_muon, strategy=FSDP2Strategy(), save=muon)
    resumed = partial(split, grouped, seed=9, max_steps=5)
    return runs | {
        "muon replicas": split(
            with_muon,
            seed=9,
            max_steps=5,
            strategy=DDPStrategy(),
            plugins=[AtomicCheckpointIO()],
            ckpt_path=muon,
        ),
        "split from split": resumed(strategy=Split(), ckpt_path=folder),
        "split from one": resumed(strategy=Split(), ckpt_path=directory / "one.ckpt"),
        "shards": resumed(strategy=FSDP2Strategy(), ckpt_path=folder),
        "replicas": resumed(
            strategy=DDPStrategy(), plugins=[AtomicCheckpointIO()], ckpt_path=folder
        ),
    }


def four_ranks(directory: Path) -> dict[str, Any]:
    """Two groups of two ranks that share layers."""
    mesh = partial(FSDP2Strategy, tensor_parallel_size=2)
    return {
        "grouped": fit(grouped, devices=4, strategy=mesh(), save=directory / "mesh.ckpt"),
        "untied": fit(untied, devices=4, strategy=mesh(), accumulate_grad_batches=2),
        "unbalanced": fit(unbalanced, devices=4, strategy=mesh()),
        "muon": fit(with_muon, devices=4, strategy=mesh(), save=directory / "muon.ckpt"),
        "muon from shards": fit(
            with_muon,
            seed=9,
            devices=4,
            strategy=mesh(),
            ckpt_path=directory / "muon_shards.ckpt",
            max_steps=5,
        ),
        "float8": fit(grouped, devices=4, strategy=mesh(), plugins=[Float8Precision(min_dim=16)]),
        "from two": fit(
            grouped,
            seed=9,
            devices=4,
            strategy=mesh(),
            ckpt_path=directory / "split.ckpt",
            max_steps=5,
        ),
    }
