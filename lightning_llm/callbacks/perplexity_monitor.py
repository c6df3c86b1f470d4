"""Validation and test perplexity of any LightningModule."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from typing_extensions import override

from lightning_llm.batches import IGNORE_INDEX, field
from lightning_llm.callbacks._distinct import without_repetition
from lightning_llm.callbacks._evaluation import EvaluationCallback
from lightning_llm.callbacks._evaluation_log import log_evaluation_value
from lightning_llm.callbacks._likelihood import (
    Likelihood,
    likelihood_of,
    targets_in,
    what_to_return,
)
from lightning_llm.callbacks._logged_values import Values, forget, listen, logged_loss
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
    2. ``logits`` (B, T, V), with the batch's targets;
    3. the mean ``loss`` (or a bare tensor), weighted by the batch's number of targets;
    4. the mean loss that the step logged as ``val_loss`` or ``test_loss``, weighted likewise.

    The targets of a batch are its ``shift_labels``, Hugging Face ``labels`` (which are shifted),
    ``targets``, or the integer ``y`` of ``(x, y)``. Those that do not count are -100, or the
    ``ignore_index`` of the module's ``torch.nn.CrossEntropyLoss``; the loss of one with label
    smoothing, class weights or another reduction is no likelihood and is not used. Where none of
    this is there, one warning says what to return; nothing is logged, and the run goes on.

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
        self._returned: set[int] = set()  # dataloaders whose step returns what is needed
        self._values: Values | None = None
        self._has_warned = False
        self._ignore_index, self._loss_is_mean = IGNORE_INDEX, True

    @override
    def start(self, trainer: Trainer) -> None:
        self._sums, self._returned = {}, set()
        self._padding = [loader_padding(loader) for loader in evaluation_loaders(trainer)]
        table = self.token_byte_lengths
        if table is None:
            table = getattr(getattr(trainer, "datamodule", None), "token_byte_lengths", None)
        if table is not None:
            table = torch.as_tensor(table, dtype=torch.int64).to(trainer.strategy.root_device)
        self._byte_table = table
        self._ignore_index, self._loss_is_mean = _criterion(trainer.lightning_module)

    @override
    def before(self, pl_module: LightningModule, dataloader_idx: int) -> None:
        if dataloader_idx not in self._returned:
            self._values = listen(pl_module)

    @override
    def logged(self, pl_module: LightningModule) -> dict[str, Any]:
        values, self._values = self._values, None
        if values is not None:
            forget(pl_module, values)
        return values or {}

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self.logged(pl_module)

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
        likelihood = self._likelihood(ran)
        if index not in self._sums:
            self._sums[index] = _zeros(trainer.strategy.root_device)
        sums = self._sums[index]
        sums[_NLL] += likelihood.nll_sum
        sums[_TOKENS] += likelihood.num_tokens
        self._add_bytes(sums, likelihood, ran.outputs, ran.batch)

    def _likelihood(self, ran: EvaluationStep) -> Likelihood:
        known = partial(
            likelihood_of,
            ran.outputs,
            ran.batch,
            ignore_index=self._ignore_index,
            loss_is_mean=self._loss_is_mean,
        )
        likelihood = known()
        if likelihood is not None:
            self._returned.add(ran.dataloader_idx)
            return likelihood
        likelihood = known(logged_loss=logged_loss(ran.logged, ran.name))
        if likelihood is not None:
            return likelihood
        if not self._has_warned:
            self._has_warned = True
            rank_zero_warn(what_to_return(ran.outputs, ran.batch, step=ran.name))
        return Likelihood(math.nan, math.nan)  # of the whole dataloader, on all ranks

    def _add_bytes(self, sums: Tensor, likelihood: Likelihood, outputs: Any, batch: Any) -> None:
        num_bytes = field(outputs, "num_bytes")
        if num_bytes is not None:
            sums[_BYTES] += num_bytes
            sums[_BYTE_TOKENS] += likelihood.num_tokens
            return
        targets = targets_in(batch)
        if self._byte_table is None or targets is None:
            return
        counts = targets != self._ignore_index
        lengths = self._byte_table[targets.clamp(min=0).long()]
        sums[_BYTES] += lengths.masked_fill(~counts, 0).sum()
        sums[_BYTE_TOKENS] += counts.sum()

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
            if num_batches[index] == 0 or math.isnan(sums[_TOKENS]):
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


def _criterion(pl_module: LightningModule) -> tuple[int, bool]:
    """The label that the module's loss leaves out, and whether it is the mean likelihood.

    Known where the module holds one loss of torch's classes.
    """
    losses = [m for m in pl_module.modules() if isinstance(m, nn.CrossEntropyLoss | nn.NLLLoss)]
    if len(losses) != 1:
        return IGNORE_INDEX, True
    (loss,) = losses
    smoothed = getattr(loss, "label_smoothing", 0.0) > 0 or loss.weight is not None
    return loss.ignore_index, loss.reduction == "mean" and not smoothed


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
