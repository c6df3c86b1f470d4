"""Real steps on real ranks, watched: what a plan of them has to say."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import check_tensor_parallel as split_models
import lightning.pytorch as L
import torch
from fsdp2_runs import CONFIG, GLOBAL_BATCH, Data
from kept_memory import SHARED_CASES, SPLIT_CASES, kept_by_shared, kept_by_split
from strategy_models import LENGTH, trainer
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from lightning_llm import CausalLM
from lightning_llm.optim import Muon
from lightning_llm.planning import Numerics, Parallelism, Run
from lightning_llm.plugins import BF16MixedPrecision, MasterWeightsPrecision
from lightning_llm.strategies import DDPStrategy, FSDP2Strategy, SingleDeviceStrategy

OPERATIONS = {
    "_allgather_base_": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
    "allreduce_": "all_reduce",
    # Those of DTensors.
    "all_gather_into_tensor": "all_gather",
    "reduce_scatter_tensor": "reduce_scatter",
    "all_reduce": "all_reduce",
}
# The broadcast is Lightning's, before each batch: whether a rank was told to end.
_LEFT_OUT = {"wait_tensor", "_wrap_tensor_autograd", "barrier", "monitored_barrier_", "broadcast_"}
# The last of them is followed by what ends a run; DDP forms its buckets anew after the first.
STEP, STEPS = 3, 4


def with_muon() -> CausalLM:
    return CausalLM(CONFIG, optimizer=partial(Muon, lr=1e-2))


def plain() -> CausalLM:
    return CausalLM(CONFIG)


class Case(NamedTuple):
    """A run; ``precision`` and ``options`` are the Trainer's."""

    module: Any
    strategy: Any
    precision: dict[str, Any]
    options: dict[str, Any]
    documents: bool = False


class Documents(Data):
    """Its rows with two documents in each."""

    def train_dataloader(self) -> Any:
        loader = super().train_dataloader()
        documents = torch.arange(LENGTH) // (LENGTH // 2)
        rows = [
            {**loader.dataset[i], "document_ids": documents} for i in range(len(loader.dataset))
        ]
        return DataLoader(rows, batch_sampler=loader.batch_sampler)


MIXED = {"plugins": [BF16MixedPrecision()]}


def two_ranks() -> dict[str, Case]:
    return {
        "fsdp2": Case(plain, FSDP2Strategy(), {}, {}),
        "fsdp2, kept whole": Case(plain, FSDP2Strategy(reshard_after_forward=False), {}, {}),
        "fsdp2, two micro-batches": Case(
            plain, FSDP2Strategy(), {}, {"accumulate_grad_batches": 2}
        ),
        "fsdp2, each reduced": Case(
            plain,
            FSDP2Strategy(reduce_every_micro_batch=True),
            {},
            {"accumulate_grad_batches": 2},
        ),
        "fsdp2, bf16": Case(plain, FSDP2Strategy(), MIXED, {}),
        "fsdp2, bf16 gradients": Case(plain, FSDP2Strategy(reduce_dtype="bfloat16"), MIXED, {}),
        "fsdp2, Muon": Case(with_muon, FSDP2Strategy(), {}, {}),
        "fsdp2, not clipped": Case(plain, FSDP2Strategy(), {}, {"gradient_clip_val": None}),
        "ddp": Case(plain, DDPStrategy(), {}, {}),
        "ddp, two micro-batches": Case(plain, DDPStrategy(), {}, {"accumulate_grad_batches": 2}),
    }


def split_over_two() -> dict[str, Case]:
    Split = partial(FSDP2Strategy, tensor_parallel_size=2)
    grouped, untied = split_models.grouped, split_models.untied
    return {
        "split": Case(grouped, Split(), {}, {}),
        # Chunks of the loss, biases, learned positions, and the products repeated.
        "split, untied, full": Case(untied, Split(activation_checkpointing="full"), {}, {}),
        "split, selective": Case(grouped, Split(activation_checkpointing="selective"), MIXED, {}),
        "split, parallel": Case(split_models.parallel_residual, Split(), MIXED, {}),
        "split, two micro-batches": Case(grouped, Split(), MIXED, {"accumulate_grad_batches": 2}),
    }


def four_ranks() -> dict[str, Case]:
    Split = partial(FSDP2Strategy, tensor_parallel_size=2)
    grouped, each = split_models.grouped, {"accumulate_grad_batches": 2}
    return {
        "fsdp2": Case(plain, FSDP2Strategy(), {}, {}),
        "hsdp": Case(plain, FSDP2Strategy(replicate_size=2), {}, {}),
        "split": Case(grouped, Split(), {}, {}),
        "split, each reduced": Case(grouped, Split(reduce_every_micro_batch=True), MIXED, each),
        "split, Muon": Case(split_models.with_muon, Split(), {}, {}),
        "split, copies": Case(grouped, Split(replicate_size=2), {}, each),
    }


def shared_by_two() -> dict[str, Case]:
    Shared = partial(FSDP2Strategy, context_parallel_size=2)
    grouped, untied = split_models.grouped, split_models.untied
    return {
        "shared": Case(grouped, Shared(), {}, {}),
        "shared, untied, full": Case(untied, Shared(activation_checkpointing="full"), MIXED, {}),
        "shared, selective": Case(grouped, Shared(activation_checkpointing="selective"), MIXED, {}),
    }


def shared_by_pairs() -> dict[str, Case]:
    Shared = partial(FSDP2Strategy, context_parallel_size=2)
    grouped, twice = split_models.grouped, {"accumulate_grad_batches": 2}
    return {
        "shared, documents": Case(grouped, Shared(), {}, twice, documents=True),
        "shared and split": Case(grouped, Shared(tensor_parallel_size=2), MIXED, {}),
    }


def one_rank() -> dict[str, Case]:
    single = SingleDeviceStrategy
    return {
        "single": Case(plain, single(), {}, {}),
        "single, Muon": Case(with_muon, single(), {}, {}),
        "single, bf16-mixed": Case(plain, single(), {"plugins": [BF16MixedPrecision()]}, {}),
        "single, bf16-true": Case(plain, single(), {"precision": "bf16-true"}, {}),
        "single, masters": Case(plain, single(), {"plugins": [MasterWeightsPrecision()]}, {}),
        "single, rounded": Case(
            plain,
            single(),
            {"plugins": [MasterWeightsPrecision(mode="stochastic_rounding")]},
            {},
        ),
    }


def run_of(case: Case, ranks: int) -> Run:
    """The same as `watch` runs, on paper."""
    module, strategy, precision, options, documents = case
    numerics = Numerics.of(precision.get("plugins", [precision.get("precision", "32-true")])[0])
    parallelism = Parallelism.of(strategy, ranks)
    with torch.device("meta"):
        built = module()
    return Run(
        module=built,
        parallelism=parallelism,
        numerics=numerics,
        world_size=ranks,
        micro_batch_size=GLOBAL_BATCH * parallelism.tensor * parallelism.context // ranks,
        seq_len=LENGTH,
        accumulate_grad_batches=options.get("accumulate_grad_batches", 1),
        clips_gradients=options.get("gradient_clip_val", 0.5) is not None,
        documents=documents,
    )


class Collectives(TorchDispatchMode):
    """Notes what goes to the process groups: operation and bytes of the largest tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # first what it does with the local tensors
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if func.namespace in ("c10d", "_c10d_functional") and name not in _LEFT_OUT:
            tensors = tree_leaves((args, kwargs, result))
            size = max((t.nbytes for t in tensors if isinstance(t, Tensor)), default=0)
            self.seen.append((OPERATIONS.get(name, name), size))
        return result


class Watcher(L.Callback):
    """Keeps the collectives of one step, and the bytes that states take there."""

    def __init__(self, recorder: Collectives) -> None:
        self.recorder = recorder
        self.found: dict[str, Any] = {}

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == (STEP - 1) * trainer.accumulate_grad_batches:
            self.recorder.seen.clear()

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any
    ) -> None:
        parameters = list(pl_module.parameters())
        self.found["weights"] = _bytes(parameters)
        self.found["gradients"] = _bytes(p.grad for p in optimizer_parameters(optimizer))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        if trainer.global_step == STEP and "collectives" not in self.found:
            self.found["collectives"] = _totals(self.recorder.seen)
            states = trainer.optimizers[0].state.values()
            kept = [v for own in states for v in own.values() if isinstance(v, Tensor) and v.ndim]
            # Masters are the plugin's, which lends them to the optimizer.
            kept += trainer.precision_plugin.state_dict().get("masters", {}).values()
            self.found["optimizer"] = _bytes(kept)


def optimizer_parameters(optimizer: Any) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _bytes(tensors: Any) -> int:
    local = [t.to_local() if hasattr(t, "to_local") else t for t in tensors if t is not None]
    # Gradients are views of what was reduced together; released memory has no bytes.
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in local}
    return sum(storages.values())


def _totals(seen: list[tuple[str, int]]) -> dict[str, list[int]]:
    calls, sizes = Counter[str](), Counter[str]()
    for operation, size in seen:
        calls[operation] += 1
        sizes[operation] += size
    return {operation: [calls[operation], sizes[operation]] for operation in calls}


def watch(case: Case, ranks: int) -> dict[str, Any]:
    """Train and return what `Watcher` kept."""
    module, strategy, precision, options, documents = case
    recorder = Collectives()
    watcher = Watcher(recorder)
    defaults = {"gradient_clip_val": 0.5, "num_sanity_val_steps": 0, "limit_val_batches": 0}
    runner = trainer(
        devices=ranks,
        strategy=strategy,
        callbacks=[watcher],
        max_steps=STEPS,
        log_every_n_steps=50,
        use_distributed_sampler=False,
        **{**defaults, **precision, **options},
    )
    torch.manual_seed(3)
    with recorder:
        runner.fit(module(), Documents() if documents else Data())
    return watcher.found


def watch_two(directory: Path) -> dict[str, Any]:
    cases = two_ranks() | split_over_two() | shared_by_two()
    found = {name: watch(case, 2) for name, case in cases.items()}
    found["kept"] = [kept_by_split(*case) for case in SPLIT_CASES]  # type: ignore[assignment]
    found["kept, shared"] = [kept_by_shared(*case) for case in SHARED_CASES]  # type: ignore[assignment]
    return found


def watch_four(directory: Path) -> dict[str, Any]:
    cases = four_ranks() | shared_by_pairs()
    return {name: watch(case, 4) for name, case in cases.items()}
