"""Validation and test perplexity of any LightningModule."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lightning_llm.batches import IGNORE_INDEX, count_targets, field, find_targets
from lightning_llm.callbacks._distinct import without_repetition
from lightning_llm.callbacks._evaluation import EvaluationCallback
from lightning_llm.callbacks._evaluation_log import log_evaluation_value
from lightning_llm.callbacks._likelihood import Likelihood, likelihood_of
from lightning_llm.callbacks._sampler_padding import (
    LoaderPadding,
    evaluation_loaders,
    loader_padding,
)
from lightning_llm.callbacks._step_again import EvaluationStep

# Columns of the sums kept per dataloader.
_NLL, _TOKENS, _BYTES, _BYTE_TOKENS = range(4)


class PerplexityMonitor(EvaluationCallback):
    r"""Logs ``val_perplexity`` and ``test_perplexity`` (and bits per byte) of any LightningModule.

    The value is :math:`\exp(\sum \mathrm{NLL} / \sum \mathrm{tokens})` in float64 over all
    batches and ranks, so it does not depend on batch size, padding or number of ranks. What the
    step returned decides where the sums come from, in this order:

    1. ``nll_sum`` and ``num_tokens``;
    2. ``logits`` (B, T, V), with the batch's ``shift_labels`` or Hugging Face ``labels``;
    3. the mean ``loss`` (or a bare tensor), weighted by the batch's number of targets.

    Bits per byte, NLL in bits over bytes of text, is logged as ``val_bits_per_byte`` when the
    bytes are known: from ``num_bytes`` of the outputs, or from a table of bytes per token id
    applied to the batch's targets. The NLL of special tokens counts, their bytes are zero.

    With several dataloaders each has its own value, named the way Lightning does
    (``val_perplexity/dataloader_idx_0``). Nothing is logged during the sanity check, and nothing
    waits for the accelerator before the end of the epoch.

    A ``DistributedSampler`` repeats samples when the ranks cannot share the dataset evenly; the
    repetitions are not counted. Where the step returns sums rather than logits, it therefore runs
    a second time on the last batch, without the repeated row; what it logs then is dropped, and
    its torchmetrics are put back.

    Args:
        token_byte_lengths: (V,) bytes of text each token id stands for. By default that of
            ``trainer.datamodule``, where there is one.
    """

    def __init__(self, token_byte_lengths: Any = None) -> None:
        super().__init__()
        self.token_byte_lengths = token_byte_lengths
        self._byte_table: Tensor | None = None
        self._padding: list[LoaderPadding | None] = []
        self._sums: dict[int, Tensor] = {}

    @override
    def start(self, trainer: Trainer) -> None:
        self._sums = {}
        self._padding = [loader_padding(loader) for loader in evaluation_loaders(trainer)]
        table = self.token_byte_lengths
        if table is None:
            table = getattr(getattr(trainer, "datamodule", None), "token_byte_lengths", None)
        if table is not None:
            table = torch.as_tensor(table, dtype=torch.int64).to(trainer.strategy.root_device)
        self._byte_table = table

    @override
    def add(self, trainer: Trainer, pl_module: LightningModule, ran: EvaluationStep) -> None:
        index = ran.dataloader_idx
        padding = self._padding[index] if self._padding else None
        padded_batch = padding.batch(ran.batch_idx) if padding is not None else None
        if padded_batch is not None:
            is_one_of_many = len(self._padding) > 1
            distinct = without_repetition(trainer, pl_module, ran, padded_batch, is_one_of_many)
            if distinct is None:
                return
            ran = distinct
        likelihood = likelihood_of(ran.outputs, ran.batch, step=ran.name)
        if index not in self._sums:
            self._sums[index] = _zeros(trainer.strategy.root_device)
        sums = self._sums[index]
        sums[_NLL] += likelihood.nll_sum
        sums[_TOKENS] += likelihood.num_tokens
        self._add_bytes(sums, likelihood, ran.outputs, ran.batch)

    def _add_bytes(self, sums: Tensor, likelihood: Likelihood, outputs: Any, batch: Any) -> None:
        num_bytes = field(outputs, "num_bytes")
        if num_bytes is not None:
            sums[_BYTES] += num_bytes
            sums[_BYTE_TOKENS] += likelihood.num_tokens
            return
        targets = find_targets(batch)
        if self._byte_table is None or targets is None:
            return
        lengths = self._byte_table[targets.clamp(min=0)]
        sums[_BYTES] += lengths.masked_fill(targets == IGNORE_INDEX, 0).sum()
        sums[_BYTE_TOKENS] += count_targets(targets)

    @override
    def finish(self, trainer: Trainer, pl_module: LightningModule, prefix: str) -> None:
        if trainer.sanity_checking:
            return
        # By dataloader, and the same on all ranks.
        num_batches = trainer.num_val_batches if prefix == "val" else trainer.num_test_batches
        num_loaders = max(1, len(self._padding))
        # A rank that saw no batch of a loader takes part all the same.
        zeros = _zeros(trainer.strategy.root_device)
        rows = [self._sums.get(index, zeros) for index in range(num_loaders)]
        total = trainer.strategy.reduce(torch.stack(rows), reduce_op="sum").tolist()
        self._sums = {}
        for index, sums in enumerate(total):
            if num_batches[index] == 0:
                continue
            for name, value in _values(sums, prefix).items():
                log_evaluation_value(
                    trainer,
                    pl_module,
                    name,
                    value,
                    index if num_loaders > 1 else None,
                    prog_bar=name.endswith("_perplexity"),
                )


def _zeros(device: torch.device) -> Tensor:
    """Four float64 sums; on the CPU where the device has no float64."""
    return torch.zeros(4, dtype=torch.float64, device="cpu" if device.type == "mps" else device)


def _values(sums: list[float], prefix: str) -> dict[str, float]:
    nll, tokens, num_bytes, byte_tokens = sums
    if tokens == 0:
        rank_zero_warn(f"{prefix}_perplexity is NaN: no batch had a target token.")
        return {f"{prefix}_perplexity": math.nan}
    perplexity = torch.tensor(nll / tokens, dtype=torch.float64).exp().item()  # inf, no error
    values = {f"{prefix}_perplexity": perplexity}
    if num_bytes > 0:
        if byte_tokens == tokens:
            values[f"{prefix}_bits_per_byte"] = nll / (num_bytes * math.log(2))
        else:
            rank_zero_warn(
                f"{prefix}_bits_per_byte is not logged: the bytes were counted over "
                f"{byte_tokens:.0f} targets of the batches, the likelihood over {tokens:.0f}. "
                "Return num_bytes from the step beside nll_sum and num_tokens."
            )
    return values
