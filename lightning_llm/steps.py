"""The steps of training and evaluation for a module that computes token losses.

A subclass supplies ``compute_loss(batch) -> (nll_sum, num_tokens)``. What is here: gradients
normalised by target tokens over the whole optimizer step, clipping that keeps the norm, losses
logged without making the host wait for the device, exact means in validation, and the length of
the run in tokens.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_llm.batches import describe, field
from lightning_llm.callbacks._evaluation_log import log_evaluation_value
from lightning_llm.callbacks._idle_profiler import idle
from lightning_llm.callbacks._lazy_sum import LazySum, widest_dtype
from lightning_llm.callbacks._log_point import LogPoint
from lightning_llm.callbacks._meeting import data_replica
from lightning_llm.callbacks._rows import first_rows
from lightning_llm.callbacks._run_length import steps_for_batches, total_steps
from lightning_llm.callbacks._sampler_padding import (
    LoaderPadding,
    evaluation_loaders,
    loader_padding,
)
from lightning_llm.errors import InvalidTypeError, InvalidValueError
from lightning_llm.runtime.accumulation import follow_accumulation_schedule
from lightning_llm.runtime.learning_rate import is_search

_SUMS_KEY = "train_sums_since_log_point"  # in checkpoints: step, NLL in nats, targets


class TokenLossModule(L.LightningModule):
    """Steps for a module whose ``compute_loss(batch)`` returns ``(nll_sum, num_tokens)``.

    Args:
        max_tokens: Stop once this many input tokens (over all ranks) were trained on.
    """

    def __init__(self, *, max_tokens: int | None = None) -> None:
        super().__init__()
        if max_tokens is not None and max_tokens <= 0:
            raise InvalidValueError(f"max_tokens={max_tokens} must be positive")
        self.max_tokens = max_tokens
        self._run_length_known = False
        self._planned_batch: int | None = None  # its tokens, where max_tokens is planned by them
        self._told: list[Any] = []  # schedules that follow the length of the run
        self._window_tokens: list[Tensor] = []  # targets of micro-batches since the last step
        self._train_nll, self._train_tokens = LazySum(), LazySum()  # since the last log point
        self._grad_norm: Tensor | None = None
        self._seen_step = 0
        self._restored_sums: list[float] | None = None
        self._frees_gradients = False
        self._eval_sums: dict[int, Tensor] = {}  # by dataloader
        self._eval_batches: dict[int, int] = {}  # the last one counted, by dataloader
        self._eval_padding: list[LoaderPadding | None] = []

    @override
    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; the one that the Trainer sets 40 times a step without ceremony."""
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def compute_loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return ``(nll_sum, num_tokens)``, two scalars on the device."""
        raise InvalidTypeError(f"{type(self).__name__} must define compute_loss(batch)")

    # ------------------------------------------------------------------ training

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return the loss to differentiate, and the sums that callbacks read."""
        nll_sum, num_tokens = self.compute_loss(batch)
        accumulate = self.trainer.accumulate_grad_batches
        if accumulate == 1:
            # The step is this batch: normalise before backward, no pass over the gradients.
            # In float32 whatever the default dtype: "bf16-true" sets it to bfloat16 in this step,
            # where 1 / 30 is off by 0.3 %.
            ranks = self._data_parallel_size()
            if ranks == 1:
                loss = nll_sum.float() / num_tokens.clamp(min=1)
            else:
                loss = nll_sum.float() * (
                    ranks / self._sum_over_ranks(num_tokens).clamp(min=1).float()
                )
        else:
            # Lightning divides by `accumulate`; on_after_backward divides by the real count.
            # The constant keeps the magnitude near one and is the same on every rank.
            loss = nll_sum * (accumulate / self._loss_unit())
            self._window_tokens.append(num_tokens)
        nll_sum = nll_sum.detach()
        self._train_nll.add(nll_sum)
        self._train_tokens.add(num_tokens)
        return {"loss": loss, "nll_sum": nll_sum, "num_tokens": num_tokens}

    # Lightning inspects this method in every micro-batch: here is the answer.
    training_step.__signature__ = inspect.signature(training_step)  # type: ignore[attr-defined]

    def on_after_backward(self) -> None:
        """After the last micro-batch of a step, divide the gradients by its target tokens.

        Not together with clipping: callbacks look at the gradients in between.
        """
        if not self._window_tokens or self.trainer.fit_loop._should_accumulate():
            return
        ranks = self._data_parallel_size()
        total = torch.stack(self._window_tokens).sum()
        if ranks > 1:
            total = self._sum_over_ranks(total)
        factor = ranks * self._loss_unit() / total.clamp(min=1).float()
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        torch._foreach_mul_(gradients, factor)
        self._window_tokens.clear()

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip, and keep the norm for the next log point; it is computed once."""
        if not gradient_clip_val:
            step = self.trainer.global_step
            if not LogPoint.lies_between(self.trainer, step, step + 1):
                return
        else:
            plugin = type(self.trainer.precision_plugin)
            own_clipping = plugin.clip_grad_by_norm is not Precision.clip_grad_by_norm
            if gradient_clip_algorithm not in (None, "norm") or own_clipping:
                self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
                return
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        self._grad_norm = torch.nn.utils.get_total_norm(gradients)
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            # A fused optimizer takes the scale out of the gradients itself, in its step.
            self._grad_norm = self._grad_norm / scaler._get_scale_async()
        if gradient_clip_val:
            torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, self._grad_norm)

    @override
    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step, then free the gradients, so that no forward pass needs room beside them.

        Lightning keeps them until the next backward pass begins; so does this where a callback
        or the module looks at them there (``on_before_zero_grad``).
        """
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self._frees_gradients:
            optimizer.zero_grad()

    def on_fit_start(self) -> None:
        """Start every fit with fresh counters."""
        idle(self.trainer)
        guests = [(self, L.LightningModule)]
        guests += [(callback, L.Callback) for callback in self.trainer.callbacks]  # type: ignore
        self._frees_gradients = not any(is_overridden("on_before_zero_grad", *g) for g in guests)
        self._run_length_known = False
        self._planned_batch = None
        self._window_tokens.clear()
        self._train_nll.clear()
        self._train_tokens.clear()
        self._grad_norm = None

    def on_train_start(self) -> None:
        """Inside an epoch, go on with the accumulation that is planned for it."""
        if self.trainer.ckpt_path is not None:
            follow_accumulation_schedule(self.trainer)

    def on_train_batch_start(self, batch: Mapping[str, Tensor], batch_idx: int) -> int | None:
        """Before the first step: tell the schedule and the loop how long the run is."""
        LogPoint.of(self.trainer).batch_started(self.trainer)
        if not self._run_length_known:
            self._check_ids(batch)
            self._settle_run_length(batch)
            self._run_length_known = True
            # The sums of the steps are read at each log point, with what callbacks have there.
            LogPoint.of(self.trainer).join(TokenLossModule, self._train_values)
            self._seen_step = self.trainer.global_step
            self._continue_sums()
            if 0 <= self.trainer.max_steps <= self.trainer.global_step:
                return -1  # a resumed run that had already reached max_tokens
        elif self._planned_batch is not None:
            self._compare_with_plan(batch)
        return None

    def _compare_with_plan(self, batch: Mapping[str, Tensor]) -> None:
        """Say once that batches differ in size, so that the plan from the first one is off."""
        size, planned = batch["input_ids"].numel(), self._planned_batch
        if size != planned and not self.trainer.is_last_batch:
            self._planned_batch = None
            rank_zero_warn(
                f"max_tokens={self.max_tokens:,} was converted to steps by the first batch of "
                f"{planned:,} tokens, and now there is one of {size:,}: the run ends at another "
                "number of tokens. Use rows of one length, or set max_steps"
            )

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """At log points, read the device once and log host numbers."""
        trainer = self.trainer
        before, self._seen_step = self._seen_step, trainer.global_step
        if not LogPoint.lies_between(trainer, before, self._seen_step):
            return
        point = LogPoint.of(trainer)
        read = point.read(TokenLossModule, self._seen_step, batch, outputs)
        if not read:  # a subclass has its own training_step
            return
        nll, tokens, *rest = read
        values = {"train_loss": nll / max(tokens, 1.0)}
        if rest:
            values["grad_norm"] = rest[0]
        point.log(self, values, prog_bar="train_loss")
        self._train_nll.clear()
        self._train_tokens.clear()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the next log point will average over, of the first rank."""
        nll, tokens = self._train_nll.total(), self._train_tokens.total()
        # Inside an accumulation window the whole window is taken again.
        if nll is None or tokens is None or self._window_tokens or self._trainer is None:
            return
        step = self.trainer.global_step
        # A callback may save before this step's own log point.
        if not LogPoint.lies_between(self.trainer, self._seen_step, step):
            checkpoint[_SUMS_KEY] = [step, float(nll), float(tokens)]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember it; weights alone, loaded into a new run, do not continue a log.

        Lightning's `LearningRateFinder` and `BatchSizeFinder` train for some steps, and then load
        a checkpoint to undo them: their sums and their length are not those of the run.
        """
        self._run_length_known = False
        self._planned_batch = None
        self._window_tokens.clear()
        self._train_nll.clear()
        self._train_tokens.clear()
        self._grad_norm = None
        self._restored_sums = checkpoint.get(_SUMS_KEY)

    def _continue_sums(self) -> None:
        saved, self._restored_sums = self._restored_sums, None
        if saved is None or saved[0] != self.trainer.global_step:
            return
        if data_replica(self.trainer)[0] == 0:
            for total, value in zip((self._train_nll, self._train_tokens), saved[1:], strict=True):
                total.add(torch.tensor(value, dtype=widest_dtype(self.device), device=self.device))

    def _train_values(self) -> Tensor | None:
        """Sum of the NLL, targets, and the gradient norm where it is known, over all ranks."""
        nll, tokens = self._train_nll.total(), self._train_tokens.total()
        if nll is None or tokens is None:
            return None
        sums = torch.stack((nll, tokens))
        if self._data_parallel_size() > 1:
            sums = self._sum_over_ranks(sums)
        norm: Any = self._grad_norm
        if hasattr(norm, "full_tensor"):  # of sharded gradients
            norm = norm.full_tensor()
        return sums if norm is None else torch.cat((sums, norm.to(sums.dtype).reshape(1)))

    # ------------------------------------------------------------------ evaluation

    def validation_step(
        self, batch: Mapping[str, Tensor], batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Tensor]:
        """Return ``{"loss", "nll_sum", "num_tokens"}`` of the batch."""
        return self._evaluation_step(batch, batch_idx, dataloader_idx)

    def test_step(
        self, batch: Mapping[str, Tensor], batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Tensor]:
        """Return ``{"loss", "nll_sum", "num_tokens"}`` of the batch."""
        return self._evaluation_step(batch, batch_idx, dataloader_idx)

    def on_validation_epoch_start(self) -> None:
        """Start with empty sums."""
        self._start_evaluation()

    def on_test_epoch_start(self) -> None:
        """Start with empty sums."""
        self._start_evaluation()

    def on_validation_epoch_end(self) -> None:
        """Log ``val_loss``: total NLL over total target tokens, in nats."""
        self._log_evaluation("val_loss")

    def on_test_epoch_end(self) -> None:
        """Log ``test_loss``: total NLL over total target tokens, in nats."""
        self._log_evaluation("test_loss")

    def _start_evaluation(self) -> None:
        self._eval_sums.clear()
        self._eval_batches.clear()
        self._eval_padding = [loader_padding(loader) for loader in evaluation_loaders(self.trainer)]

    def _evaluation_step(
        self, batch: Mapping[str, Tensor], batch_idx: int, dataloader_idx: int
    ) -> dict[str, Any]:
        """Compute the sums of a batch, without a row that a sampler repeats.

        A `DistributedSampler` ends the loader of some ranks with a repeated row. The outputs then
        have the key ``without_repetition``, on all ranks, so that callbacks know it is left out.
        """
        padding = self._eval_padding[dataloader_idx] if self._eval_padding else None
        padded = None if padding is None else padding.batch(batch_idx)
        is_again = self._eval_batches.get(dataloader_idx, -1) >= batch_idx
        if padded is not None and not is_again:
            # Where nothing is left every rank still computes, since sharded models communicate.
            cut = first_rows(batch, padded.size, max(1, padded.kept))
            batch = batch if cut is None else cut
            padded = None if cut is None else padded
        else:
            padded = None
        nll_sum, num_tokens = self.compute_loss(batch)
        if padded is not None and padded.kept == 0:
            nll_sum, num_tokens = torch.zeros_like(nll_sum), torch.zeros_like(num_tokens)
        if not is_again:
            self._eval_batches[dataloader_idx] = batch_idx
            dtype = widest_dtype(nll_sum.device)
            pair = torch.stack((nll_sum.detach().to(dtype), num_tokens.to(dtype)))
            sums = self._eval_sums.get(dataloader_idx)
            self._eval_sums[dataloader_idx] = pair if sums is None else sums + pair
        outputs: dict[str, Any] = {
            "loss": nll_sum / num_tokens.clamp(min=1),
            "nll_sum": nll_sum,
            "num_tokens": num_tokens,
        }
        if padded is not None:
            outputs["without_repetition"] = True
        return outputs

    def _log_evaluation(self, name: str) -> None:
        count = max(1, len(evaluation_loaders(self.trainer)))
        # A rank that was given no batch of a loader takes part all the same.
        device = self.trainer.strategy.root_device
        nothing = torch.zeros(2, dtype=widest_dtype(device), device=device)
        total = torch.stack([self._eval_sums.get(index, nothing) for index in range(count)])
        if self._data_parallel_size() > 1:
            total = self._sum_over_ranks(total)
        for index, (nll, tokens) in enumerate(total.tolist()):
            if tokens == 0:
                if index in self._eval_sums:
                    rank_zero_warn(f"{name}: no target token in the evaluation; it is not logged")
                continue
            loader = index if count > 1 else None
            log_evaluation_value(self.trainer, self, name, nll / tokens, loader, prog_bar=True)

    # ------------------------------------------------------------------ length of the run

    def _settle_run_length(self, batch: Mapping[str, Tensor]) -> None:
        trainer = self.trainer
        if is_search(trainer):  # of a learning rate: it has a length and a schedule of its own
            return
        if self.max_tokens is not None:
            self._planned_batch = batch["input_ids"].numel()
            per_batch = self._planned_batch * self._data_parallel_size()
            steps = steps_for_batches(trainer, math.ceil(self.max_tokens / per_batch))
            if trainer.max_steps != -1:
                steps = min(steps, trainer.max_steps)
            trainer.fit_loop.epoch_loop.max_steps = steps
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        waiting = [
            s
            for s in schedulers
            if getattr(s, "needs_total_steps", False) or any(s is told for told in self._told)
        ]
        self._told = waiting
        if not waiting:
            return
        total = total_steps(trainer)
        if total is None:
            raise InvalidValueError(
                f"{type(waiting[0]).__name__} needs the length of the run: set trainer.max_steps, "
                f"trainer.max_epochs (where the dataloader has a length), the model's max_tokens, "
                "or the schedule's max_steps"
            )
        if any(isinstance(callback, Timer) for callback in trainer.callbacks):  # type: ignore
            rank_zero_warn(
                f"{type(waiting[0]).__name__} is planned for {total:,} steps; max_time may end the "
                "run before its rate has come down, since a time is no number of steps"
            )
        if math.isinf(trainer.num_training_batches) and trainer.max_epochs not in (None, -1):
            rank_zero_warn(
                f"{type(waiting[0]).__name__} is planned for {total:,} steps; "
                f"max_epochs={trainer.max_epochs} may end the run before its rate has come down, "
                "since the length of the training dataloader is not known: set max_steps or "
                "max_tokens to what the epochs hold, or give the dataset a __len__"
            )
        for scheduler in waiting:
            scheduler.set_total_steps(total)  # type: ignore[attr-defined]

    def _check_ids(self, batch: Mapping[str, Tensor]) -> None:
        """Refuse ids that have no row in the embedding; the first batch only, since it syncs."""
        vocab_size = getattr(getattr(self, "config", None), "vocab_size", None)
        if vocab_size is None:
            return
        ids = field(batch, "input_ids")
        if ids is None:
            raise InvalidTypeError(
                f"the batch is {describe(batch)}; it must be a mapping with 'input_ids' and "
                "'shift_labels' or 'labels', each (B, T) int64"
            )
        wrong = ((ids < 0) | (ids >= vocab_size)).nonzero()
        if len(wrong):
            row, position = wrong[0].tolist()
            raise InvalidValueError(
                f"token id {int(ids[row, position])} at row {row}, position {position} of the "
                f"first batch is outside the model's vocabulary of {vocab_size} ids; give the "
                "model the vocab_size of the tokenizer that made them"
            )

    # ------------------------------------------------------------------ small facts

    def _loss_unit(self) -> int:
        """A constant near the tokens of a sequence; it cancels out of the gradient."""
        return getattr(getattr(self, "config", None), "max_seq_len", 1024)

    def _data_parallel_size(self) -> int:
        return data_replica(self.trainer)[1]

    def _sum_over_ranks(self, value: Tensor) -> Tensor:
        """Sum over the shares of the data, queued on the device; the input is left alone."""
        value = value.clone()
        dist.all_reduce(value)
        alike = self.trainer.world_size // self._data_parallel_size()  # ranks of the same share
        if alike == 1:
            return value
        return value / alike if value.is_floating_point() else value // alike
