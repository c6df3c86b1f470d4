"""What gloo ranks do in `test_context_parallel.py`, all in one group of processes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from check_tensor_parallel import COMPILED, CONFIG, callbacks, grouped
from fsdp2_runs import fit
from strategy_models import LENGTH, VOCAB
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from lightning_llm import CausalLM
from lightning_llm.plugins import BF16MixedPrecision
from lightning_llm.strategies import FSDP2Strategy
from lightning_llm.strategies.context_parallel import ContextParallel

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "grouped heads": {},
    "windows": {"sliding_window": 5},
    "alibi": {"positions": "alibi"},
    "learned": {"positions": "learned", "norm": "layernorm"},
    "sinusoidal": {"positions": "sinusoidal"},
    "cosine": {"attention_score": "cosine", "qk_norm": False},
    "additive": {"attention_score": "additive"},
    "capped": {"attention_softcap": 4.0, "logit_softcap": 5.0},
}


def batch() -> dict[str, Tensor]:
    """Four rows; targets are unlike in number."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, VOCAB, (4, LENGTH + 1), generator=generator)
    targets = ids[:, 1:].clone()
    targets[1, 3:] = -100
    targets[2, :9] = -100
    return {"input_ids": ids[:, :-1], "shift_labels": targets}


def batches() -> dict[str, dict[str, Tensor]]:
    """In every form that `compute_loss` takes."""
    plain = batch()
    ids = plain["input_ids"]
    documents = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 3, 3, 3, 3, 3]).expand_as(ids)
    positions = torch.arange(LENGTH).expand_as(ids).flip(0) + torch.arange(4)[:, None] % 2
    return {
        "plain": plain,
        "documents": {**plain, "document_ids": documents},
        "labels": {"input_ids": ids, "labels": ids},
        "left padding": {**plain, "attention_mask": (documents > 0).long()},
        "positions": {**plain, "position_ids": positions.clamp(max=LENGTH - 1)},
    }


def module(**changed: Any) -> CausalLM:
    torch.manual_seed(2)
    return CausalLM(replace(CONFIG, **changed), z_loss=1e-3, label_smoothing=0.1)


def loss_and_gradients(lm: CausalLM, rows: dict[str, Tensor]) -> dict[str, Any]:
    nll, tokens = lm.compute_loss(rows)
    lm.zero_grad()
    (nll / tokens).backward()
    gradients = {name: weight.grad for name, weight in lm.named_parameters()}
    return {"nll": float(nll), "tokens": int(tokens), "gradients": gradients}


# What is tried on four ranks, whose chunks come in another order.
FOUR = ("windows", "batch: positions", "no mask", "no mask, alibi")


def losses(mesh: Any = None) -> dict[str, Any]:
    """Of every architecture on packed documents, and of one on every form of batch."""
    cases = {name: (changed, "documents") for name, changed in ARCHITECTURES.items()}
    cases |= {f"batch: {name}": ({"sliding_window": 9}, name) for name in batches()}
    cases |= {"no mask": ({}, "plain"), "no mask, alibi": ({"positions": "alibi"}, "plain")}
    found = {}
    for name, (changed, rows) in cases.items():
        if mesh is not None and mesh.size() > 2 and name not in FOUR:
            continue
        lm = module(**changed)
        shared = ContextParallel(lm, mesh) if mesh is not None else None
        found[name] = loss_and_gradients(lm, batches()[rows])
        if shared is not None:
            for gradient in found[name]["gradients"].values():
                dist.all_reduce(gradient)
                gradient /= mesh.size()
            shared.undo()
    return found


def losses_on_ranks(directory: Path) -> dict[str, Any]:
    dist.init_process_group("gloo")
    return losses(init_device_mesh("cpu", (dist.get_world_size(),)))


def windowed() -> CausalLM:
    config = replace(CONFIG, sliding_window=6, tie_embeddings=False, positions="learned")
    return CausalLM(config, z_loss=1e-3, label_smoothing=0.1, loss_chunk_size=24)


def two_ranks(directory: Path) -> dict[str, Any]:
    """Both share all sequences."""
    shared: Any = partial(FSDP2Strategy, context_parallel_size=2)
    two = partial(fit, devices=2)
    saved = directory / "shared.ckpt"
    return {
        "grouped": two(grouped, strategy=shared(), save=saved, callbacks=callbacks()),
        "accumulated": two(grouped, strategy=shared(), accumulate_grad_batches=3),
        "windowed": two(windowed, strategy=shared(activation_checkpointing="full")),
        "compiled": two(grouped, strategy=shared(**COMPILED)),
        "bf16": two(grouped, strategy=shared(), plugins=[BF16MixedPrecision()]),
        "unshared": two(grouped, seed=9, strategy=FSDP2Strategy(), ckpt_path=saved, max_steps=5),
    }


def four_ranks(directory: Path) -> dict[str, Any]:
    """Sequences shared by pairs, and layers or batches shared by pairs of pairs."""
    shared: Any = partial(FSDP2Strategy, context_parallel_size=2)
    four = partial(fit, devices=4)
    return {
        "layers": four(grouped, strategy=shared(tensor_parallel_size=2)),
        "batches": four(windowed, strategy=shared(), accumulate_grad_batches=2),
        "copies": four(grouped, strategy=shared(replicate_size=2)),
    }
