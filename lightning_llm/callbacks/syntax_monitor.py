"""How much of what a code model writes is valid Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lightning_llm.callbacks._continuations import (
    GenerateFn,
    check_can_generate,
    continuations,
)
from lightning_llm.callbacks._evaluation_log import log_evaluation_value
from lightning_llm.callbacks._meeting import has_whole_model
from lightning_llm.callbacks._text_log import append_rows, log_table
from lightning_llm.errors import InvalidTypeError, InvalidValueError
from lightning_llm.metrics.syntax import SyntaxValidity, is_valid_python


class SyntaxMonitor(Callback):
    """Logs ``val_syntax_validity`` (``test_…``): the share of continuations that parse, 0 to 100.

    Each prompt is continued ``samples_per_prompt`` times, and prompt and continuation are parsed
    together as Python; see `lightning_llm.metrics.syntax.is_valid_python` for what happens to an
    end that was cut off. Nothing is executed. The ranks share the work, where each has the whole
    model. Samples go to the loggers and to ``syntax_samples.jsonl`` in the logger's folder.

    Args:
        prompts: Beginnings of Python source.
        samples_per_prompt: Continuations of each.
        max_new_tokens: Tokens to add to each prompt.
        temperature: 0 is greedy; one sample per prompt says all then.
        top_p: Sample among the likeliest tokens that hold this probability together.
        seed: Of the sampling, so that two validations differ by the weights alone.
        batch_size: Prompts continued at a time.
        generate_options: More options for ``generate``.
        generate_fn: ``generate_fn(pl_module, prompts, **options) -> list[str]``, used instead of
            the module's ``generate``.
        num_logged_samples: Rows of the table.

    Raises:
        TypeError: ``prompts`` is a single string, or the module cannot generate.
        ValueError: There is no prompt, or a number is out of range.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        *,
        samples_per_prompt: int = 8,
        max_new_tokens: int = 128,
        temperature: float = 0.8,
        top_p: float | None = 0.95,
        seed: int = 0,
        batch_size: int = 16,
        generate_options: Mapping[str, Any] | None = None,
        generate_fn: GenerateFn | None = None,
        num_logged_samples: int = 8,
    ) -> None:
        super().__init__()
        if isinstance(prompts, str):
            raise InvalidTypeError(
                f"prompts={prompts!r} must be a list of strings; use [{prompts!r}]"
            )
        if not prompts:
            raise InvalidValueError("SyntaxMonitor: prompts must have at least one entry")
        for name, value, least in (
            ("samples_per_prompt", samples_per_prompt, 1),
            ("batch_size", batch_size, 1),
            ("num_logged_samples", num_logged_samples, 0),
        ):
            if value < least:
                raise InvalidValueError(f"SyntaxMonitor: {name}={value} must be at least {least}")
        self.prompts = [prompt for prompt in prompts for _ in range(samples_per_prompt)]
        self.seed, self.batch_size = seed, batch_size
        self.generate_fn, self.num_logged_samples = generate_fn, num_logged_samples
        self._required = dict(generate_options or {})
        self._options: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
        }
        self._validity = SyntaxValidity()

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "predict":
            check_can_generate(pl_module, self.generate_fn, "SyntaxMonitor")

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._measure(trainer, pl_module, "val")

    @override
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._measure(trainer, pl_module, "test")

    def _measure(self, trainer: Trainer, pl_module: LightningModule, prefix: str) -> None:
        # Ranks that hold parts of the model generate the same texts together; counted on each,
        # they give the same share.
        shared = has_whole_model(trainer)
        rank, ranks = (trainer.global_rank, trainer.world_size) if shared else (0, 1)
        mine = self.prompts[rank::ranks]
        texts: list[str] = []
        for begin in range(0, len(mine), self.batch_size):
            chosen = mine[begin : begin + self.batch_size]
            seed = self.seed + 1_000_003 * begin + rank
            texts += continuations(
                trainer,
                pl_module,
                chosen,
                generate_fn=self.generate_fn,
                options={**self._options, "seed": seed},
                required=self._required,
                seed=seed,
            )
        whole = [prompt + text for prompt, text in zip(mine, texts)]
        self._validity.to(trainer.strategy.root_device).reset()
        self._validity.update(whole)
        value = float(self._validity.compute())
        name = f"{prefix}_syntax_validity"
        log_evaluation_value(trainer, pl_module, name, value, None, prog_bar=True)
        self._show(trainer, name, list(zip(mine, texts)))

    def _show(self, trainer: Trainer, name: str, samples: list[tuple[str, str]]) -> None:
        log_dir = trainer.log_dir if trainer.loggers else None  # on every rank: it may broadcast
        if not trainer.is_global_zero:
            return
        rows = [
            {"prompt": prompt, "text": text, "valid": str(is_valid_python(prompt + text))}
            for prompt, text in samples[: self.num_logged_samples]
        ]
        if rows:
            log_table(trainer.loggers, f"{name}_samples", rows, trainer.global_step)
            if log_dir is not None:
                path = Path(log_dir) / "syntax_samples.jsonl"
                append_rows(path, rows, trainer.global_step, trainer.current_epoch)
