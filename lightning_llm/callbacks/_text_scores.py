"""Scores of generated texts against references, over the corpus, for any LightningModule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from typing_extensions import override

from lightning_llm.callbacks._continuations import (
    GenerateFn,
    check_can_generate,
    continuations,
)
from lightning_llm.callbacks._evaluation import EvaluationCallback
from lightning_llm.callbacks._evaluation_log import log_evaluation_value
from lightning_llm.callbacks._meeting import data_replica, gather_objects, has_whole_model
from lightning_llm.callbacks._sampler_padding import (
    LoaderPadding,
    evaluation_loaders,
    loader_padding,
)
from lightning_llm.callbacks._segments import Segment, missing_texts, segments_of
from lightning_llm.callbacks._step_again import EvaluationStep
from lightning_llm.callbacks._text_log import append_rows, log_fact, log_table
from lightning_llm.errors import InvalidValueError


class TextScore(Protocol):
    """A metric of texts, in the manner of torchmetrics."""

    @property
    def signature(self) -> str:
        """What has to be known to compare the score with others."""

    def to(self, device: Any) -> Any:
        """Move the states."""

    def reset(self) -> None:
        """Forget all texts."""

    def update(self, predictions: list[str], references: list[list[str]]) -> None:
        """Add texts."""

    def compute(self) -> Any:
        """Return the score over all ranks."""


class _Note(NamedTuple):
    """What a rank tells the others before anything is generated."""

    replica: int
    prompts: list[str]  # empty where each rank generates by itself
    batch_size: int
    has_segments: list[bool]  # by dataloader
    problem: str | None


class TextScoreMonitor(EvaluationCallback):
    """Collects or generates texts of an evaluation and logs their scores.

    What it does is told by `lightning_llm.callbacks.BLEUMonitor`, whose arguments these are.

    Args:
        scores: Name in the log, without ``val_``, -> metric; the first is in the progress bar.
        table: Name of the table of samples.
    """

    def __init__(
        self,
        scores: Mapping[str, TextScore],
        table: str,
        *,
        generate_fn: GenerateFn | None,
        max_new_tokens: int,
        num_beams: int,
        stop: Sequence[str] | None,
        generate_options: Mapping[str, Any] | None,
        max_samples: int | None,
        batch_size: int | None,
        num_logged_samples: int,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("num_beams", num_beams, 1),
            ("max_samples", max_samples, 1),
            ("batch_size", batch_size, 1),
            ("num_logged_samples", num_logged_samples, 0),
        ):
            if value is not None and value < least:
                raise InvalidValueError(
                    f"{type(self).__name__}: {name}={value} must be at least {least}"
                )
        self.generate_fn = generate_fn
        self.max_samples = max_samples
        self.batch_size = batch_size
        self.num_logged_samples = num_logged_samples
        self._scores = dict(scores)
        self._table = table
        self._options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": 0.0}
        self._required: dict[str, Any] = dict(generate_options or {})
        if num_beams > 1:
            self._required["num_beams"] = num_beams
        if stop is not None:
            self._required["stop"] = list(stop)
        self._logged_signatures: dict[str, str] = {}
        self._start([])

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for other in trainer.callbacks:  # type: ignore[attr-defined]
            if other is self or not isinstance(other, TextScoreMonitor):
                continue
            same = sorted(self._scores.keys() & other._scores.keys())
            if same:  # Lightning would log the mean of the two
                raise InvalidValueError(
                    f"{type(self).__name__} and {type(other).__name__} among the callbacks both "
                    f"log {' and '.join(same)}; leave one of them out"
                )

    @override
    def start(self, trainer: Trainer) -> None:
        self._start(evaluation_loaders(trainer))

    def _start(self, loaders: Sequence[Any]) -> None:
        self._padding: list[LoaderPadding | None] = [loader_padding(loader) for loader in loaders]
        self._segments: list[list[Segment]] = [[] for _ in range(max(1, len(loaders)))]
        self._seen = [0] * len(self._segments)  # samples, by dataloader
        self._largest_batch = 1
        self._problem: str | None = None

    @override
    def add(self, trainer: Trainer, pl_module: LightningModule, ran: EvaluationStep) -> None:
        index = ran.dataloader_idx
        segments = segments_of(ran.outputs, ran.batch, type(self).__name__)
        if segments is None:
            # Of several dataloaders, some may be for other callbacks.
            name = type(self).__name__
            self._problem = missing_texts(ran.name, ran.outputs, ran.batch, name)
            if len(self._segments) == 1:
                raise InvalidValueError(self._problem)
            return
        if any(segment.prediction is None for segment in segments):
            check_can_generate(pl_module, self.generate_fn, type(self).__name__)
        self._largest_batch = max(self._largest_batch, len(segments))
        padding = self._padding[index] if self._padding else None
        padded = padding.batch(ran.batch_idx) if padding is not None else None
        if padded is not None:
            if padded.size == len(segments):
                segments = segments[: padded.kept]
            else:
                rank_zero_warn(
                    f"The sampler behind {ran.name} repeats samples so that all ranks get equally "
                    f"many. Its last batch has {padded.size} samples and {len(segments)} texts, so "
                    f"{type(self).__name__} cannot leave the repetition out: it counts twice."
                )
        replica, replicas = data_replica(trainer)
        for segment in segments:
            # A DistributedSampler deals samples out in turns.
            position = self._seen[index] * replicas + replica
            self._seen[index] += 1
            if self.max_samples is None or position < self.max_samples:
                self._segments[index].append(segment)

    @override
    def finish(self, trainer: Trainer, pl_module: LightningModule, prefix: str) -> None:
        """All ranks come here once, whatever they have seen."""
        pending = [s for group in self._segments for s in group if s.prediction is None]
        alone = has_whole_model(trainer)
        notes: list[_Note] = gather_objects(
            trainer,
            _Note(
                data_replica(trainer)[0],
                [] if alone else [str(segment.prompt) for segment in pending],
                self._largest_batch,
                [bool(group) for group in self._segments],
                self._problem,
            ),
        )
        has_segments = [any(flags) for flags in zip(*(note.has_segments for note in notes))]
        problem = next((note.problem for note in notes if note.problem), None)
        if problem is not None and not any(has_segments):
            raise InvalidValueError(problem)
        if trainer.sanity_checking:
            return
        self._generate(trainer, pl_module, pending, notes, alone)
        rank = dist.get_rank() if len(notes) > 1 else 0
        first = [note.replica for note in notes].index(notes[rank].replica) == rank
        for index, group in enumerate(self._segments):
            if has_segments[index]:
                loader = index if len(self._segments) > 1 else None
                self._score(trainer, pl_module, prefix, group if first else [], loader)
        self._start([])

    def _generate(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        pending: list[Segment],
        notes: list[_Note],
        alone: bool,
    ) -> None:
        """Fill in the predictions of ``pending``, by itself or with all ranks."""
        if alone:
            prompts, start = [str(segment.prompt) for segment in pending], 0
        else:
            rank = dist.get_rank() if len(notes) > 1 else 0
            prompts = [prompt for note in notes for prompt in note.prompts]
            start = sum(len(note.prompts) for note in notes[:rank])
        if not prompts:
            return
        size = self.batch_size or max(note.batch_size for note in notes)
        # The longest first: if memory does not suffice, that shows at once.
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
        texts: dict[int, str] = {}
        for begin in range(0, len(order), size):
            chosen = order[begin : begin + size]
            new = continuations(
                trainer,
                pl_module,
                [prompts[i] for i in chosen],
                generate_fn=self.generate_fn,
                options=self._options,
                required=self._required,
                seed=0,
            )
            texts.update(zip(chosen, new))
        for position, segment in enumerate(pending, start):
            segment.prediction = texts[position]

    def _score(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prefix: str,
        segments: list[Segment],
        index: int | None,
    ) -> None:
        predictions = [str(segment.prediction) for segment in segments]
        references = [segment.references for segment in segments]
        suffix = "" if index is None else f"/dataloader_idx_{index}"
        lines, signatures = [], {}
        for name, score in self._scores.items():
            score.to(trainer.strategy.root_device).reset()
            score.update(predictions, references)
            value = float(score.compute())
            key = f"{prefix}_{name}"
            log_evaluation_value(
                trainer,
                pl_module,
                key,
                value,
                index,
                prog_bar=index is None and name == next(iter(self._scores)),
            )
            signatures[f"{key}_signature{suffix}"] = score.signature
            lines.append(f"{key}{suffix} = {value:.2f}  {score.signature}")
        log_dir = trainer.log_dir if trainer.loggers else None  # on every rank: it may broadcast
        if not trainer.is_global_zero:
            return
        pl_module.print("\n".join(lines))
        step = trainer.global_step
        for name, signature in signatures.items():
            if self._logged_signatures.get(name) != signature:
                log_fact(trainer.loggers, name, signature, step)
        self._logged_signatures.update(signatures)
        rows = [_row(segment) for segment in segments[: self.num_logged_samples]]
        if rows:
            log_table(trainer.loggers, f"{prefix}_{self._table}_samples{suffix}", rows, step)
            if log_dir is not None:
                path = Path(log_dir) / f"{self._table}_samples.jsonl"
                append_rows(path, rows, step, trainer.current_epoch)


def _row(segment: Segment) -> dict[str, str]:
    return {
        "source": segment.source,
        "reference": " | ".join(segment.references),
        "output": str(segment.prediction),
    }
