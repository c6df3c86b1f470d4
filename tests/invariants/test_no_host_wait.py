"""Between log points the host waits for nothing, with progress bar, logger and callbacks on.

At a log point it waits once, for one copy of what all of them kept on the device.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from pretend_device import Methods, Operators, PretendDevice
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_llm import CausalLM
from lightning_llm.callbacks import (
    FiniteGuard,
    GarbageCollection,
    PerplexityMonitor,
    SpeedMonitor,
)
from lightning_llm.models import TransformerConfig
from lightning_llm.optim import AdamW, WarmupCosine
from lightning_llm.strategies import SingleDeviceStrategy

VOCAB, LENGTH, LOG_EVERY, STEPS = 31, 8, 4, 14


class Watch(L.Callback):
    """Notes for each optimizer step how often the host read the device; the first callback.

    A step lasts from the start of its first micro-batch to the start of the next step: what
    callbacks, module, logger and progress bar do at its end is part of it. Validation is not.
    """

    def __init__(self, device: PretendDevice) -> None:
        self.device = device
        self.by_step: dict[int, list[str]] = {}
        self._step = -1

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.device.put(pl_module.parameters())
        self.device.put(pl_module.buffers())

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, index: int) -> None:
        self._close()
        self._step = trainer.global_step + 1
        self.device.put(batch.values())

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self._close()
        self._step = -1

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._close()

    def _close(self) -> None:
        if self._step > 0:
            # DataLoader draws its seed on the host.
            reads = [read for read in self.device.reads if "combined_loader" not in read]
            self.by_step.setdefault(self._step, []).extend(reads)
        self.device.reads.clear()


class Foreign(L.LightningModule):
    """Somebody's module: a mean loss, nothing logged."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Embedding(VOCAB, 16), nn.Linear(16, VOCAB))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        logits = self.net(batch["input_ids"])
        return F.cross_entropy(logits.flatten(0, 1), batch["shift_labels"].flatten())

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        return {"logits": self.net(batch["input_ids"])}

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), fused=True)


def causal_lm() -> CausalLM:
    config = TransformerConfig(vocab_size=VOCAB, max_seq_len=LENGTH, n_layers=2, dim=16, n_heads=2)
    return CausalLM(
        config,
        optimizer=lambda groups: AdamW(groups, fused=True),
        lr_scheduler=lambda optimizer: WarmupCosine(optimizer, warmup_steps=2),
        z_loss=1e-4,
    )


def rows(count: int) -> list[dict[str, Tensor]]:
    ids = torch.randint(VOCAB, (count, LENGTH + 1), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row[:-1], "shift_labels": row[1:]} for row in ids]


def callbacks(schedule: bool = True) -> list[L.Callback]:
    ours = [PerplexityMonitor(), SpeedMonitor(), FiniteGuard(), GarbageCollection(5)]
    return [*ours, LearningRateMonitor()] if schedule else ours


def fit(module: L.LightningModule, folder: Path, watch: L.Callback, **options: Any) -> L.Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": CSVLogger(folder),
        "log_every_n_steps": LOG_EVERY,
        "max_steps": STEPS,
        "gradient_clip_val": 1.0,
        "accumulate_grad_batches": 2,
        "val_check_interval": 12,
        "num_sanity_val_steps": 0,
        "enable_checkpointing": False,  # a checkpoint has to be read
        "enable_model_summary": False,
        "default_root_dir": folder,
    }
    added = options.pop("callbacks", None)
    added = callbacks() if added is None else added
    trainer = L.Trainer(**settings | options, callbacks=[watch, *added])
    trainer.fit(module, DataLoader(rows(64), batch_size=2), DataLoader(rows(6), batch_size=2))
    return trainer


def check(by_step: dict[int, list[str]]) -> None:
    assert set(by_step) == set(range(1, STEPS + 1))
    del by_step[1]  # the ids of the first batch are checked, and it ends the warm-up of the clock
    waits = {step: reads for step, reads in by_step.items() if reads}
    assert set(waits) == {4, 8, 12}, waits
    assert all(len(reads) == 1 for reads in waits.values()), waits


@pytest.mark.parametrize(
    ("options", "ours"),
    [
        pytest.param({}, True, id="clipped, accumulated"),
        pytest.param(
            {"gradient_clip_val": None, "accumulate_grad_batches": 1}, True, id="each batch a step"
        ),
        pytest.param({"precision": "bf16-mixed", "gradient_clip_val": None}, True, id="bf16-mixed"),
        pytest.param({}, False, id="foreign module"),
    ],
)
def test_one_wait_per_log_point(tmp_path: Path, options: dict[str, Any], ours: bool) -> None:
    device = PretendDevice()
    watch = Watch(device)
    module = causal_lm() if ours else Foreign()
    with Operators(device), Methods(device):
        trainer = fit(module, tmp_path, watch, callbacks=callbacks(schedule=ours), **options)
    check(watch.by_step)
    assert trainer.callback_metrics["tokens_seen"] > 0
    assert trainer.callback_metrics["val_perplexity"] > 1


def test_the_count_sees_a_wait(tmp_path: Path) -> None:
    class Waits(Foreign):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            if batch_idx == 5:
                loss.item(), loss.tolist(), loss.isfinite().all().cpu(), loss.to("cpu")
                assert loss > 0
                assert batch["input_ids"][batch["input_ids"] >= 0].numel()
            return loss

    device = PretendDevice()
    watch = Watch(device)
    with Operators(device), Methods(device):
        fit(Waits(), tmp_path, watch, callbacks=[])
    assert len(watch.by_step[3]) == 6, watch.by_step
    assert not any(reads for step, reads in watch.by_step.items() if step != 3)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch
def test_compiled_blocks_wait_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compilation does not run under the modes above: here the methods themselves are counted."""
    device = PretendDevice()
    watch = Watch(device)

    def counted(name: str) -> None:
        original = getattr(Tensor, name)

        def method(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self.dtype is not torch.float64 or name != "item":  # host numbers that were logged
                device.read(name)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(Tensor, name, method)

    for name in ("item", "tolist", "numpy", "__bool__", "__int__", "__float__"):
        counted(name)
    strategy = SingleDeviceStrategy(compile={"backend": "eager"})
    fit(causal_lm(), tmp_path, watch, strategy=strategy, callbacks=callbacks(schedule=False))
    check(watch.by_step)


class SyncErrors(L.Callback):
    """Makes CUDA raise where the host waits; off at the first step, log points and validation."""

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        step = trainer.global_step + 1
        torch.cuda.set_sync_debug_mode("error" if step > 1 and step % LOG_EVERY else "default")

    def on_validation_start(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")

    def on_train_epoch_end(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")

    def on_exception(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compile", [False, True])
def test_cuda_never_waits_between_log_points(tmp_path: Path, compile: bool) -> None:
    module = causal_lm()
    strategy = SingleDeviceStrategy(compile=compile)
    trainer = fit(module, tmp_path, SyncErrors(), accelerator="gpu", strategy=strategy)
    assert trainer.global_step == STEPS
