"""What the task datamodules share: examples prepared once, packed, ordered and loaded."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt

from lightning_llm.data.corpus import Part
from lightning_llm.data.examples import Task
from lightning_llm.data.loader import TokenLoader, place_of
from lightning_llm.data.packed_examples import PackedExamples
from lightning_llm.data.prepare_examples import PreparedExamples, StoredExamples
from lightning_llm.data.rows import RowSource
from lightning_llm.data.store import TokenStore
from lightning_llm.data.text_arguments import plain, tokenizer_spec
from lightning_llm.data.tokenizer import token_byte_lengths, vocabulary_size

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_LOG = logging.getLogger(__name__)


class ExampleDataModule(pl.LightningDataModule):
    """A datamodule of prompts and targets; see its subclasses, one for each task.

    Args:
        arguments: Of the subclass, by name, checked.
        sources: Rows by part.
        task: From rows to examples.
    """

    def __init__(
        self, arguments: Mapping[str, Any], sources: Mapping[Part, RowSource], task: Task
    ) -> None:
        super().__init__()
        spec = tokenizer_spec(arguments["tokenizer"])
        # Plain data only: a checkpoint then loads with weights_only=True.
        self.save_hyperparameters(plain({**arguments, "tokenizer": asdict(spec)}))
        self.seq_len: int = arguments["seq_len"]
        self.micro_batch_size: int = arguments["micro_batch_size"]
        self.val_micro_batch_size: int = arguments["val_micro_batch_size"] or self.micro_batch_size
        self.task = task
        self._arguments = dict(arguments)
        self._prepared = PreparedExamples(
            sources,
            task,
            tokenizer_spec=spec,
            val_fraction=arguments["val_fraction"],
            seed=arguments["seed"],
            cache_dir=arguments["cache_dir"],
        )
        self._limit_val_batches: int | float | None = None
        self._examples: dict[Part, StoredExamples] = {}
        self._rows: dict[Part, PackedExamples] = {}

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer; it is trained or loaded when first asked for, by one process of a run."""
        return self._prepared.tokenizer

    @cached_property
    def vocab_size(self) -> int:
        """Number of token ids, special ones included: the rows an embedding needs."""
        return vocabulary_size(self.tokenizer)

    @cached_property
    def token_byte_lengths(self) -> npt.NDArray[np.int64] | None:
        """UTF-8 bytes of text that each id stands for (V,); None where that is unknowable."""
        return token_byte_lengths(self.tokenizer)

    @property
    def train_store(self) -> TokenStore | None:
        """Token ids of the training examples, after ``setup``."""
        return self._store("train")

    @property
    def val_store(self) -> TokenStore | None:
        """Token ids of the validation examples; None without any."""
        return self._store("val")

    @property
    def test_store(self) -> TokenStore | None:
        """Token ids of the test examples; None without any."""
        return self._store("test")

    def _store(self, part: Part) -> TokenStore | None:
        return self._examples[part].store if part in self._examples else None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the training rows and their order: content, packing and seed."""
        content = {**self._rows_of("train").fingerprint, "seed": self._arguments["seed"]}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def prepare_data(self) -> None:
        """Train the tokenizer and write the stores, if they are not in the cache."""
        self._prepared.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Open the stores.

        Raises:
            ValueError: The stage is ``"validate"`` and there is no validation data.
        """
        if not self._examples:
            self._examples = self._prepared.prepare()
        if self.val_store is not None:
            return
        if stage == "validate":
            raise ValueError("no validation data: give it as val_…, or a val_fraction.")
        if stage == "fit" and self.trainer is not None:
            # Says that nothing validates; of a loader without batches Lightning would warn.
            self._limit_val_batches = self.trainer.limit_val_batches
            self.trainer.limit_val_batches = 0

    def teardown(self, stage: str | None = None) -> None:
        """Leave the trainer as it was."""
        if self._limit_val_batches is not None and self.trainer is not None:
            self.trainer.limit_val_batches = self._limit_val_batches
            self._limit_val_batches = None

    def train_dataloader(self) -> TokenLoader:
        """Return this rank's shuffled training batches."""
        overfit = getattr(self.trainer, "overfit_batches", 0) > 0
        return self._loader("train", self.micro_batch_size, shuffle=not overfit)

    def val_dataloader(self) -> TokenLoader | list[TokenLoader]:
        """Return this rank's validation batches; an empty list without validation data."""
        self.setup()
        return self._loader("val", self.val_micro_batch_size) if self.val_store else []

    def test_dataloader(self) -> TokenLoader:
        """Return this rank's test batches.

        Raises:
            ValueError: There is no test data.
        """
        self.setup()
        if self.test_store is None:
            raise ValueError("no test data: give it as test_…")
        return self._loader("test", self.val_micro_batch_size)

    def predict_dataloader(self) -> TokenLoader:
        """Return this rank's batches of the test data, or of the validation data without it.

        Raises:
            ValueError: There is neither.
        """
        self.setup()
        if self.test_store is None and self.val_store is None:
            raise ValueError("nothing to predict: give test data, validation data or val_fraction.")
        return self._loader("test" if self.test_store else "val", self.val_micro_batch_size)

    def _rows_of(self, part: Part) -> PackedExamples:
        if part in self._rows:
            return self._rows[part]
        self.setup()
        given, examples = self._arguments, self._examples[part]
        rows = PackedExamples(
            examples.store,
            examples.targets,
            self.seq_len,
            one_per_row=given["packing"] == "pad",
            too_long=given["too_long"],
            pad_id=self.tokenizer.pad_token_id,
            texts=examples.texts,
            limit=given["max_val_samples"] if part == "val" else None,
        )
        _LOG.info("%s: %d rows, %.2f %% filled", part, len(rows), 100 * rows.fill_fraction)
        if rows.dropped or rows.truncated:
            _LOG.warning(
                "%s: of %d examples, %d are left out and %d lose their end: they have more than "
                "seq_len + 1 = %d tokens, or no target within them.",
                part,
                len(examples.store),
                rows.dropped,
                rows.truncated,
                self.seq_len + 1,
            )
        if rows.unprompted:
            _LOG.warning(
                "%s: %d prompts fill seq_len=%d: they have a loss, but no text is generated.",
                part,
                rows.unprompted,
                self.seq_len,
            )
        if len(rows) == 0:
            shortest = int(np.diff(examples.store.document_offsets).min())
            raise ValueError(
                f"the {part} part has no example that fits seq_len={self.seq_len}: the shortest "
                f"of {len(examples.store)} has {shortest} "
                "tokens. Raise seq_len, or set too_long='truncate'."
            )
        self._rows[part] = rows
        return rows

    def _loader(self, part: Part, micro_batch_size: int, shuffle: bool = False) -> TokenLoader:
        given = self._arguments
        return TokenLoader(
            self._rows_of(part),
            micro_batch_size=micro_batch_size,
            shuffle=shuffle,
            seed=given["seed"],
            drop_last=given["drop_last"] and part == "train",
            num_workers=given["num_workers"],
            strict_resume=given["strict_resume"],
            **place_of(self.trainer),
        )
