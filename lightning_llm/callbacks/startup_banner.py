"""What a run is made of, said once before its first step."""

from __future__ import annotations

import sys
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary, RichModelSummary
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from torch import Tensor
from typing_extensions import override

from lightning_llm.batches import field
from lightning_llm.callbacks._console import short_number
from lightning_llm.callbacks._flops import find_token_flops
from lightning_llm.callbacks._hardware import can_compile, has_fast_bf16
from lightning_llm.callbacks._parameter_table import parameter_lines
from lightning_llm.callbacks._precision_name import precision_name
from lightning_llm.callbacks._run_length import changes_accumulation, total_steps


class StartupBanner(Callback):
    """Prints a few lines at the first batch: model, precision, compilation, strategy, step, run.

    The last line names what could make the run faster, works on the device in use, and is off. Rank
    zero prints, to standard error. The parameters of each part take the place of Lightning's
    summary of one level, unless ``enable_model_summary`` is false. Works with any LightningModule.
    """

    def __init__(self) -> None:
        super().__init__()
        self._is_due = False

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for callback in trainer.callbacks if stage == "fit" else []:  # type: ignore[attr-defined]
            is_default = type(callback) in (ModelSummary, RichModelSummary)
            if is_default and callback._max_depth == 1:
                callback._max_depth = 0  # says nothing; the banner has the same numbers, and more

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_due = trainer.is_global_zero

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._is_due:
            self._is_due = False
            sys.stderr.write(describe_run(trainer, pl_module, batch) + "\n")
            sys.stderr.flush()


def describe_run(trainer: Trainer, pl_module: LightningModule, batch: Any) -> str:
    """The text of the banner.

    Args:
        trainer: The trainer, in the first step.
        pl_module: Its module.
        batch: The first batch; tokens are counted if it has ``input_ids`` (B, T).
    """
    total, trained = _parameters(pl_module)
    frozen = "" if trained == total else f" ({short_number(trained)} trained)"
    strategy = trainer.strategy
    device = strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    packing = getattr(getattr(trainer, "datamodule", None), "packing", None)
    facts = [
        f"precision {precision_name(trainer)}",
        f"compile {'on' if _is_compiled(pl_module, strategy) else 'off'}",
        f"strategy {type(strategy).__name__}",
        *([f"packing {packing}"] if isinstance(packing, str) else []),
    ]
    lines = [
        f"{type(pl_module).__name__}: {short_number(total)} parameters{frozen} "
        f"on {trainer.world_size} x {name}",
        *(parameter_lines(pl_module) if _wants_summary(trainer) else []),
        "  ".join(facts),
        _step_and_run(trainer, batch),
        *_padding_of_small_data(trainer),
    ]
    off = _could_be_on(trainer, pl_module, packing)
    if off:
        lines.append("could be on: " + "; ".join(off))
    return "\n  ".join(lines)


def _parameters(module: torch.nn.Module) -> tuple[int, int]:
    """All parameters and those that are trained; sharded ones count in full."""
    sizes = [(p.numel(), p.requires_grad) for p in module.parameters()]
    return sum(n for n, _ in sizes), sum(n for n, trained in sizes if trained)


def _wants_summary(trainer: Trainer) -> bool:
    """Whether ``enable_model_summary`` is on, which adds Lightning's own callback."""
    return any(isinstance(callback, ModelSummary) for callback in trainer.callbacks)  # type: ignore[attr-defined]


def _step_and_run(trainer: Trainer, batch: Any) -> str:
    steps = total_steps(trainer)
    run = "without end" if steps is None else f"{steps:,} steps"
    ids = field(batch, "input_ids")
    if not isinstance(ids, Tensor) or ids.ndim != 2:
        return f"run: {run}"
    sampler = getattr(trainer.strategy, "distributed_sampler_kwargs", None) or {}
    replicas, micro = sampler.get("num_replicas", 1), trainer.accumulate_grad_batches
    rows, length = ids.shape
    per_step = rows * length * micro * replicas
    factors = [f"{rows} x {length:,}"]
    factors += [f"{micro} micro-batches"] if micro > 1 else []
    factors += [f"{replicas} ranks"] if replicas > 1 else []
    if steps is not None and not changes_accumulation(trainer):
        run += f", {short_number(steps * per_step)} tokens"
    flops = find_token_flops(None, trainer.lightning_module)
    if flops is not None:
        run += f"  FLOPs per token: {short_number(flops.at(length)[0])}"
        run += _shares(trainer.lightning_module, length)
    return f"step: {per_step:,} tokens ({', '.join(factors)})  run: {run}"


def _padding_of_small_data(trainer: Trainer) -> list[str]:
    """Where the loader fills a batch up for want of data, what that costs."""
    loader = trainer.train_dataloader
    rows, batch = (getattr(loader, name, None) for name in ("num_samples", "samples_per_step"))
    if not isinstance(rows, int) or not isinstance(batch, int) or rows >= batch:
        return []
    return [
        f"the data has {rows:,} of the {batch:,} rows of a batch, the others are padding: "
        "lower micro_batch_size"
    ]


def _shares(pl_module: LightningModule, length: int) -> str:
    """Of the parts of a model that knows theirs: ``(attention 21%, mlp 48%, head 31%)``."""
    by_part = getattr(getattr(pl_module, "model", None), "flops_by_part", None)
    if not callable(by_part):
        return ""
    parts: dict[str, int] = by_part(length)
    total = sum(parts.values()) or 1
    return f" ({', '.join(f'{name} {count / total:.0%}' for name, count in parts.items())})"


def _is_compiled(pl_module: LightningModule, strategy: Any) -> bool:
    options = getattr(strategy, "blocks", None)
    if options is not None and hasattr(options, "compile"):
        return bool(options.compile)
    return any(
        module._compiled_call_impl is not None or hasattr(module, "_orig_mod")
        for module in pl_module.modules()
    )


def _could_be_on(trainer: Trainer, pl_module: LightningModule, packing: Any) -> list[str]:
    """Only what this device, model and strategy can do."""
    strategy, plugin = trainer.strategy, trainer.precision_plugin
    device = strategy.root_device
    off = []
    compiles = _compiling_strategy(strategy)
    if compiles and not _is_compiled(pl_module, strategy) and can_compile(pl_module, device):
        off.append(f"compile=True of lightning_llm.strategies.{compiles}")
    if type(plugin) is Precision and has_fast_bf16(device):  # float32, and no plugin of a user
        off.append("precision bf16-mixed")
    if packing == "pad":
        off.append("packing concat or best_fit")
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    if device.type == "cuda" and any(group.get("fused", True) in (None, False) for group in groups):
        # Lightning's own refuses to clip with a fused optimizer, for the sake of float16.
        own = type(plugin).clip_gradients is MixedPrecision.clip_gradients
        refuses = isinstance(plugin, MixedPrecision) and own and trainer.gradient_clip_val
        if not refuses:
            off.append("fused=True of the optimizer")
        elif plugin.precision == "bf16-mixed":
            kind = "lightning_llm.plugins.BF16MixedPrecision"
            off.append(f"fused=True of the optimizer, with {kind} in trainer.plugins")
    return off


def _compiling_strategy(strategy: Any) -> str | None:
    """The strategy of this package that does what ``strategy`` does, and can compile."""
    name = type(strategy).__name__
    if hasattr(strategy, "blocks") or name in ("SingleDeviceStrategy", "DDPStrategy"):
        return name
    return {"FSDPStrategy": "FSDP2Strategy", "ModelParallelStrategy": "FSDP2Strategy"}.get(name)
