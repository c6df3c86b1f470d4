"""The monitors under DDP: a sample counts once, whatever the sampler repeats; tokens add up."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from foreign import VOCAB, Bigram, brute_force, loader, make_rows, perplexity, trainer
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from ranks import run_on_ranks
from torch.utils.data import DistributedSampler
from torchmetrics import MeanMetric

from lightning_llm.callbacks import PerplexityMonitor, SpeedMonitor
from lightning_llm.module import CausalLM

pytestmark = pytest.mark.distributed

# (name, what the step returns, samples, batch size)
PLAIN = [
    ("sums-5-1", "sums", 5, 1),
    ("sums-5-2", "sums", 5, 2),
    ("sums-5-3", "sums", 5, 3),
    ("sums-6-2", "sums", 6, 2),
    ("sums-1-2", "sums", 1, 2),
    ("logits-5-1", "logits", 5, 1),
    ("logits-5-3", "logits", 5, 3),
    ("loss-5-2", "tensor", 5, 2),
    ("logged-5-2", "nothing", 5, 2),
    ("logged-5-3", "nothing", 5, 3),
]


# CausalLM: samples, batch size, with a monitor that runs the last step again
OURS = [(5, 1, True), (5, 2, False), (7, 3, True), (1, 2, True), (1, 1, False), (6, 2, True)]


def own_module() -> CausalLM:
    torch.manual_seed(0)
    module = CausalLM(
        {"n_layers": 1, "dim": 8, "n_heads": 1, "vocab_size": VOCAB, "max_seq_len": 8}
    )
    with torch.no_grad():
        for weight in module.parameters():
            weight.mul_(1.0 if weight.ndim == 1 else 8.0)  # so that rows differ in their loss
    return module


class Counting(Bigram):
    """Has a metric of its own and a memory of the rows its step was given."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = MeanMetric()
        self.calls: list[int] = []

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.calls.append(len(batch["input_ids"]))
        self.mean.update(batch["input_ids"].float())
        torch.rand(3)
        return super().evaluate(batch, "val_loss")


class Texts(Bigram):
    """Its batches also hold a list of strings and a number."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        assert len(batch["names"]) == len(batch["input_ids"]), "a row without its string"
        return super().evaluate(batch, "val_loss")


def validate(module: Bigram, *loaders: Any, **options: Any) -> dict[str, float]:
    callbacks = [PerplexityMonitor(torch.arange(VOCAB))]
    options = {"callbacks": callbacks, "devices": int(os.environ["WORLD_SIZE"])} | options
    run = trainer(strategy="ddp", **options)
    run.validate(module, list(loaders) if len(loaders) > 1 else loaders[0], verbose=False)
    return {name: value.item() for name, value in run.callback_metrics.items()}


def speed() -> dict[str, Any]:
    """Tokens differ between the ranks; a crash on one must not wait for the others."""
    monitor = SpeedMonitor(peak_flops=1e3, flops_per_token=10.0)
    world_size = int(os.environ["WORLD_SIZE"])
    run = trainer(strategy="ddp", devices=world_size, log_every_n_steps=2, callbacks=[monitor])
    run.fit(Bigram(), loader(make_rows(2 * world_size)))
    found = {name: value.item() for name, value in run.callback_metrics.items()}
    # One more step, whose tokens no log point has read.
    batch = {"input_ids": torch.ones(1, 4)}
    monitor.on_train_batch_start(run, run.lightning_module, batch, 0)
    steps = run.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step
    steps.total.completed += 1
    monitor.on_train_batch_end(run, run.lightning_module, None, batch, 0)
    if run.is_global_zero:
        monitor.on_exception(run, run.lightning_module, RuntimeError())
        checkpoint: dict[str, Any] = {"callbacks": {}}
        monitor.on_save_checkpoint(run, run.lightning_module, checkpoint)
        found["saved"] = checkpoint["callbacks"][monitor.state_key]["tokens_seen"]
    return found


def cases() -> dict[str, Any]:
    """All cases of one world, in one start of its processes."""
    found: dict[str, Any] = {}
    for name, returns, samples, batch_size in PLAIN:
        found[name] = validate(Bigram(returns), loader(make_rows(samples), batch_size))
    found["speed"] = speed()
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()

    shuffled = DistributedSampler(make_rows(5), world, rank, shuffle=True, seed=3)
    found["shuffled"] = validate(Bigram(), loader(make_rows(5), 3, sampler=shuffled))
    uneven = UnrepeatedDistributedSampler(make_rows(5), world, rank, shuffle=False)
    found["uneven"] = validate(Quiet(), loader(make_rows(5), 1, sampler=uneven))
    found["stopped early"] = validate(
        Bigram(), loader(make_rows(2 * world + 1), 1), limit_val_batches=2
    )
    found["two loaders"] = validate(
        Bigram(), loader(make_rows(5, seed=1), 2), loader(make_rows(7, seed=2), 8)
    )

    def collate(rows: list[Any]) -> dict[str, Any]:
        batch = torch.utils.data.default_collate(rows)
        return batch | {"names": [str(i) for i in range(len(rows))], "scale": 1.0}

    found["strings"] = validate(Texts(), loader(make_rows(5), 3, collate_fn=collate))

    for samples, batch_size, monitored in OURS:
        options = {} if monitored else {"callbacks": []}
        rows = loader(make_rows(samples), batch_size)
        found[f"ours-{samples}-{batch_size}-{monitored}"] = validate(own_module(), rows, **options)

    for name, options in (("metric", {}), ("metric, no monitor", {"callbacks": []})):
        module = Counting()
        torch.manual_seed(7)
        found[name] = validate(module, loader(make_rows(5), 3), **options)
        found[name]["calls"] = module.calls
        found[name]["left"] = (
            module.mean.mean_value.item(),
            module.mean.weight.item(),
            module.mean.update_count,
            torch.rand(1).item(),
        )
    return found


class Quiet(Bigram):
    """Logs nothing, for a log with ``sync_dist`` needs equally many batches on all ranks."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        outputs = self.table(batch["input_ids"])
        return {"logits": outputs}


@pytest.fixture(scope="module", params=[2, 3])
def world(request: Any, tmp_path_factory: Any) -> tuple[int, list[dict[str, Any]]]:
    directory: Path = tmp_path_factory.mktemp("ranks")
    return request.param, run_on_ranks(cases, request.param, directory)


def check(world: tuple[int, list[dict[str, Any]]], name: str, rows: Any, suffix: str = "") -> None:
    nll, _ = brute_force(Bigram(), rows)
    text_bytes = sum(int(t) for row in rows for t in row["shift_labels"] if t != -100)
    for found in world[1]:
        value = found[name][f"val_perplexity{suffix}"]
        assert value == pytest.approx(perplexity(Bigram(), rows), rel=2e-6)
        bits = found[name][f"val_bits_per_byte{suffix}"]
        assert bits == pytest.approx(nll / math.log(2) / text_bytes, rel=2e-6)


@pytest.mark.parametrize(("name", "samples"), [(case[0], case[2]) for case in PLAIN])
def test_each_sample_counts_once(world: Any, name: str, samples: int) -> None:
    check(world, name, make_rows(samples))


def test_the_sampler_did_repeat(world: Any) -> None:
    """The module's own average, over what Lightning ran, is another one with the repetitions."""
    [losses] = {found["logits-5-1"]["val_loss"] for found in world[1]}
    rows = make_rows(5)
    rows += rows[: -len(rows) % world[0]]
    means = [nll / tokens for nll, tokens in (brute_force(Bigram(), [row]) for row in rows)]
    assert losses == pytest.approx(sum(means) / len(means), rel=1e-5)


@pytest.mark.parametrize("case", OURS)
def test_the_loss_of_our_module_counts_each_sample_once(world: Any, case: Any) -> None:
    samples, batch_size, monitored = case
    module, nll, tokens = own_module().eval(), 0.0, 0
    for row in make_rows(samples):
        logits = module.model(row["input_ids"][None])[0].detach().double()
        losses = F.cross_entropy(logits, row["shift_labels"], ignore_index=-100, reduction="sum")
        nll, tokens = nll + float(losses), tokens + int((row["shift_labels"] != -100).sum())
    for found in world[1]:
        logged = found[f"ours-{samples}-{batch_size}-{monitored}"]
        assert logged["val_loss"] == pytest.approx(nll / tokens, rel=2e-6)
        if monitored:
            assert math.log(logged["val_perplexity"]) == pytest.approx(logged["val_loss"], rel=1e-9)
            text_bytes = sum(
                int(t) for row in make_rows(samples) for t in row["shift_labels"] if t != -100
            )
            bits = nll / math.log(2) / text_bytes
            assert logged["val_bits_per_byte"] == pytest.approx(bits, rel=2e-6)


@pytest.mark.parametrize("name", ["shuffled", "uneven", "strings", "metric"])
def test_other_samplers_and_batches(world: Any, name: str) -> None:
    check(world, name, make_rows(5))


def test_a_run_that_stops_before_the_repetition(world: Any) -> None:
    check(world, "stopped early", make_rows(2 * world[0] + 1)[: 2 * world[0]])


def test_several_dataloaders(world: Any) -> None:
    check(world, "two loaders", make_rows(5, seed=1), "/dataloader_idx_0")
    check(world, "two loaders", make_rows(7, seed=2), "/dataloader_idx_1")


def test_the_second_call_of_the_step_leaves_metrics_and_generators_alone(world: Any) -> None:
    size = math.ceil(5 / world[0])
    for rank, found in enumerate(world[1]):
        repeats = (size - 1) * world[0] + rank >= 5
        assert found["metric"]["calls"] == [size, size - repeats]
        assert found["metric, no monitor"]["calls"] == [size]
        assert found["metric"]["left"] == found["metric, no monitor"]["left"]
        assert found["metric"]["val_loss"] == found["metric, no monitor"]["val_loss"]


def test_speed_is_that_of_all_ranks(world: Any) -> None:
    rows = make_rows(2 * world[0])
    total = sum(int((row["shift_labels"] != -100).sum()) for row in rows)
    for found in world[1]:
        found = found["speed"]
        assert found["tokens_seen"] == total
        assert found["mfu"] == pytest.approx(found["tokens_per_second"] * 10.0 / world[0] / 1e3)
    assert world[1][0]["speed"]["saved"] == total + world[0] * 4
