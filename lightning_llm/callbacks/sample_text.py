"""Continuations of fixed prompts, printed and logged as training goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from typing_extensions import override

from lightning_llm.callbacks._signature import accepted
from lightning_llm.callbacks._text_log import log_samples


class SampleText(Callback):
    """Continues ``prompts`` after validation, prints the result and hands it to the loggers.

    A run without validation is sampled once, at its end.

    Samples go to the console, to TensorBoard, Weights & Biases, MLflow and Comet where one of
    them is the logger, and, with any logger that has a directory, to ``samples.jsonl`` in it. All
    ranks generate, so that sharded models can; rank zero prints. Neither the random number
    generators nor the train/eval modes of the modules are changed.

    Args:
        prompts: The texts to continue.
        max_new_tokens: Tokens to add to each prompt.
        temperature: 0 is greedy.
        top_k: Sample among the k likeliest tokens.
        top_p: Sample among the likeliest tokens that hold this probability together.
        seed: Seeds the sampling, so that two validations differ by the weights alone.
        every_n_validations: Sample after every n-th validation.
        generate_fn: ``generate_fn(pl_module, prompts, **options) -> list[str]``, used instead of
            ``pl_module.generate(prompts, **options) -> list[str]``. Both are given those of the
            options above that their signature takes.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = 0,
        every_n_validations: int = 1,
        generate_fn: Callable[..., list[str]] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(prompts, str):
            raise TypeError(f"prompts={prompts!r} must be a list of strings; use [{prompts!r}]")
        if every_n_validations < 1:
            raise ValueError(f"every_n_validations={every_n_validations} must be at least 1")
        self.prompts = list(prompts)
        self.every_n_validations = every_n_validations
        self.generate_fn = generate_fn
        self._options: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "seed": seed,
        }
        self._validations = 0

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage not in ("fit", "validate"):
            return
        if self.generate_fn is None and not callable(getattr(pl_module, "generate", None)):
            raise TypeError(
                f"SampleText calls generate(prompts, ...) of the module, which "
                f"{type(pl_module).__name__} does not have. Add that method, or pass "
                "SampleText(generate_fn=...), called as generate_fn(pl_module, prompts, ...)."
            )

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self._validations += 1
        if self._validations % self.every_n_validations == 0:
            self._sample(trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._validations == 0:
            self._sample(trainer, pl_module)

    def _sample(self, trainer: Trainer, pl_module: LightningModule) -> None:
        texts = self._generate(trainer, pl_module)
        log_dir = trainer.log_dir if trainer.loggers else None  # on every rank: it may broadcast
        if not trainer.is_global_zero:
            return
        step = trainer.global_step
        samples = list(zip(self.prompts, texts))
        pl_module.print(
            "\n".join([f"--- samples at step {step} ---", *(p + t for p, t in samples), "---"])
        )
        log_samples(trainer.loggers, samples, step)
        if log_dir is not None:
            _append(Path(log_dir) / "samples.jsonl", samples, step, trainer.current_epoch)

    def _generate(self, trainer: Trainer, pl_module: LightningModule) -> list[str]:
        function: Any = self.generate_fn or pl_module.generate
        prompts = list(self.prompts)
        arguments = (pl_module, prompts) if self.generate_fn is not None else (prompts,)
        modes = [(module, module.training) for module in pl_module.modules()]
        pl_module.eval()
        try:
            with (
                isolate_rng(),
                torch.no_grad(),
                trainer.precision_plugin.val_step_context(),
            ):
                if self._options["seed"] is not None:
                    torch.manual_seed(self._options["seed"])
                texts = list(function(*arguments, **accepted(function, self._options)))
        finally:
            for module, training in modes:
                module.training = training
        if len(texts) != len(prompts):
            raise ValueError(
                f"generate returned {len(texts)} texts for {len(prompts)} prompts; "
                "SampleText expects one continuation per prompt"
            )
        return texts


def _append(path: Path, samples: list[tuple[str, str]], step: int, epoch: int) -> None:
    lines = [
        json.dumps({"step": step, "epoch": epoch, "prompt": prompt, "text": text})
        for prompt, text in samples
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")  # one write: a crash leaves whole lines
    except OSError as error:
        rank_zero_warn(f"Samples were not written to {path}: {error}")
