"""What all training contenders share: options, tokens, optimizer, and the bare loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from benchmarks.pacing import Pacer
from benchmarks.workloads import WORKLOADS, Workload

# Distinct batches; the run goes round them.
_BATCHES = 16
PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")
OPTIMIZERS = ("foreach", "fused", "loop")
CLIP_NORM = 1.0


@dataclass(frozen=True)
class TrainOptions:
    """One training run, equal for all contenders but for ``extras``.

    Attributes:
        workload: Name of a `Workload`.
        precision: Lightning's names: ``"32-true"``, ``"bf16-mixed"`` (float32 weights, autocast),
            ``"bf16-true"`` (weights and optimizer state in bfloat16).
        device: ``"cpu"`` or ``"cuda"``.
        optimizer: How AdamW runs: torch's ``"foreach"``, ``"fused"`` or ``"loop"``.
        batch: Rows of a step; the workload's if not given.
        seed: Of weights and tokens.
        extras: What the label adds after ``+``, e.g. ``{"compile"}``; ``"fused"`` overrides
            ``optimizer``.
        same_weights: Start from the same weights as the others; costs time at the start.
    """

    workload: str
    precision: str = "32-true"
    device: str = "cpu"
    optimizer: str = "foreach"
    batch: int | None = None
    seed: int = 1
    extras: frozenset[str] = field(default_factory=frozenset)
    same_weights: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "extras", frozenset(self.extras))
        if "fused" in self.extras:
            object.__setattr__(self, "optimizer", "fused")
        for name, allowed in (
            ("workload", tuple(WORKLOADS)),
            ("precision", PRECISIONS),
            ("optimizer", OPTIMIZERS),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {allowed}")

    @property
    def work(self) -> Workload:
        """The workload itself."""
        return WORKLOADS[self.workload]

    @property
    def rows(self) -> int:
        """Rows of a step."""
        default = self.work.batch_cuda if self.device == "cuda" else self.work.batch
        return self.batch or default

    @property
    def tokens_per_step(self) -> int:
        """Input tokens of a step."""
        return self.rows * self.work.seq_len

    @property
    def weight_dtype(self) -> torch.dtype:
        """Of weights and optimizer state."""
        return torch.bfloat16 if self.precision == "bf16-true" else torch.float32

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of forward passes, for loops without a framework."""
        if self.precision == "bf16-mixed":
            return torch.autocast(self.device, dtype=torch.bfloat16)
        return nullcontext()

    def refuse_unknown(self, *known: str) -> None:
        """Raise ``ValueError`` for an extra that the contender does not have."""
        known = (*known, "fused")
        unknown = sorted(self.extras - set(known))
        if unknown:
            raise ValueError(f"unknown options {unknown}; there are {sorted(known)}")


class TokenRows(Dataset[dict[str, Tensor]]):
    """Rows of random tokens, the same for every contender.

    Frequencies fall as in text (Zipf). ``labels`` are the inputs themselves, as Hugging Face has
    it, with the first one ignored; ``shift_labels`` are the same targets, shifted already.

    Args:
        options: Of the run.
        steps: Batches that are asked for.
        fields: Which of ``input_ids``, ``labels``, ``shift_labels`` a row has.
    """

    def __init__(self, options: TrainOptions, steps: int, fields: tuple[str, ...]) -> None:
        self._length, self._fields = steps * options.rows, fields
        self.tokens = random_tokens(options)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tokens = self.tokens[index % len(self.tokens)]
        labels = tokens.clone()
        labels[0] = -100  # nothing predicts it; the Trainer counts it as a target otherwise
        columns = {"input_ids": tokens, "labels": labels, "shift_labels": shifted(tokens)}
        return {name: columns[name] for name in self._fields}


def random_tokens(options: TrainOptions) -> Tensor:
    """Return (rows of all distinct batches, T) int64."""
    size = options.work.model["vocab_size"]
    generator = torch.Generator().manual_seed(options.seed)
    frequencies = 1.0 / torch.arange(1, size + 1)
    count = _BATCHES * options.tokens_per_step
    drawn = torch.multinomial(frequencies, count, replacement=True, generator=generator)
    return drawn.view(-1, options.work.seq_len)


def shifted(tokens: Tensor) -> Tensor:
    """The target of each position (..., T); the last one has none."""
    return nn.functional.pad(tokens[..., 1:], (0, 1), value=-100)


def optimizer_arguments(options: TrainOptions) -> dict[str, Any]:
    """What AdamW is given beside the parameters."""
    return {
        "lr": 3e-4,
        "betas": (0.9, 0.95),
        "weight_decay": 0.1,
        "foreach": options.optimizer == "foreach",
        "fused": options.optimizer == "fused",
    }


def build_optimizer(model: nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    """AdamW on decay groups made by kind of module, so the same groups for every contender."""
    from lightning_llm.optim import parameter_groups

    return torch.optim.AdamW(parameter_groups(model), **optimizer_arguments(options))


def batches(options: TrainOptions, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (inputs, targets) on the device: what a loop without a framework costs at least."""
    inputs = list(random_tokens(options).split(options.rows))
    targets = [shifted(batch) for batch in inputs]
    if options.device == "cuda":
        inputs, targets = ([batch.pin_memory() for batch in side] for side in (inputs, targets))
    for step in range(steps):
        place = step % len(inputs)
        # On a CPU they lie there already, and nothing is copied.
        pair = (side[place].to(options.device, non_blocking=True) for side in (inputs, targets))
        yield next(pair), next(pair)


def bare_loop(
    model: nn.Module,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    options: TrainOptions,
    pacer: Pacer,
) -> None:
    """Train without a framework.

    Args:
        model: On the device already.
        loss_of: (inputs, targets) -> mean loss.
        options: Of the run.
        pacer: Told after each step.
    """
    optimizer = build_optimizer(model, options)
    parameters = list(model.parameters())
    pacer.units_per_step = options.tokens_per_step
    model.train()
    for inputs, targets in batches(options, pacer.total_steps):
        with options.autocast():
            loss = loss_of(inputs, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        pacer.step_done(loss.detach())
