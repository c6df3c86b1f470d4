"""Continuations of fixed prompts, printed and logged as training goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lightning_llm.callbacks._console import printable
from lightning_llm.callbacks._continuations import check_can_generate, continuations
from lightning_llm.callbacks._text_log import append_rows, log_samples
from lightning_llm.errors import InvalidTypeError, InvalidValueError


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
            raise InvalidTypeError(
                f"prompts={prompts!r} must be a list of strings; use [{prompts!r}]"
            )
        if not prompts:
            raise InvalidValueError("SampleText: prompts must have at least one entry")
        if every_n_validations < 1:
            raise InvalidValueError(f"every_n_validations={every_n_validations} must be at least 1")
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
        self._validations = 0  # of this fit

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage not in ("fit", "validate"):
            return
        check_can_generate(pl_module, self.generate_fn, "SampleText")

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validations = 0

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
        texts = continuations(
            trainer,
            pl_module,
            list(self.prompts),
            generate_fn=self.generate_fn,
            options=self._options,
            seed=self._options["seed"],
        )
        log_dir = trainer.log_dir if trainer.loggers else None  # on every rank: it may broadcast
        if not trainer.is_global_zero:
            return
        step = trainer.global_step
        samples = list(zip(self.prompts, texts))
        shown = [printable(prompt + text) for prompt, text in samples]
        pl_module.print("\n".join([f"--- samples at step {step} ---", *shown, "---"]))
        log_samples(trainer.loggers, samples, step)
        if log_dir is not None:
            rows = [{"prompt": prompt, "text": text} for prompt, text in samples]
            append_rows(Path(log_dir) / "samples.jsonl", rows, step, trainer.current_epoch)
