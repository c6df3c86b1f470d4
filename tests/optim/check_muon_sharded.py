"""Muon on sharded weights against Muon on whole ones; one rank of two, started by the test."""

from __future__ import annotations

import copy
import sys

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing import assert_close

from lightning_llm.models import Transformer, TransformerConfig
from lightning_llm.optim import Muon, parameter_groups


def main(rank: int, world_size: int, rendezvous: str) -> None:
    """Three steps on the same batch: every rank must hold its part of the whole result."""
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size
    )
    torch.manual_seed(0)
    config = TransformerConfig(
        vocab_size=13, n_layers=2, dim=12, n_heads=3, n_kv_heads=1, max_seq_len=8, n_experts=3
    )
    whole = Transformer(config)
    sharded = copy.deepcopy(whole)
    mesh = init_device_mesh("cpu", (world_size,))
    for block in sharded.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    ids = torch.randint(0, 13, (2, 8))
    pairs = [(model, Muon(parameter_groups(model), lr=1e-2)) for model in (whole, sharded)]
    for _ in range(3):
        for model, optimizer in pairs:
            model(ids).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    for one, other in zip(whole.parameters(), sharded.parameters(), strict=True):
        # Gathering reorders sums: float32 rounding, blown up by small singular values.
        assert_close(other.full_tensor(), one.detach(), rtol=1e-3, atol=1e-4)
    check_checkpoint(*pairs[1])
    dist.destroy_process_group()


def check_checkpoint(model: Transformer, optimizer: Muon) -> None:
    """The state goes through torch's gathered checkpoint format and back, unchanged."""
    before = copy.deepcopy(optimizer.state_dict())
    options = StateDictOptions(full_state_dict=True)
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
    fresh = Muon(parameter_groups(model), lr=1.0)
    set_optimizer_state_dict(model, fresh, optim_state_dict=saved, options=options)
    after = fresh.state_dict()
    for one, other in zip(after["param_groups"], before["param_groups"], strict=True):
        # That format turns tuples into lists.
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in other.items()}
        assert one == plain
    for index, state in before["state"].items():
        for key, value in state.items():
            found = after["state"][index][key]
            if hasattr(value, "full_tensor"):
                value, found = value.full_tensor(), found.full_tensor()
            assert torch.equal(found, value), (index, key)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
