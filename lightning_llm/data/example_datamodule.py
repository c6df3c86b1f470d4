"""What the task datamodules share: rows become examples, examples become packed rows."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from lightning_llm.data.corpus import Part
from lightning_llm.data.examples import Task
from lightning_llm.data.packed_examples import PackedExamples
from lightning_llm.data.prepare_examples import PreparedExamples, StoredExamples
from lightning_llm.data.prepared_datamodule import PreparedDataModule
from lightning_llm.data.rows import RowSource
from lightning_llm.data.store import TokenStore
from lightning_llm.data.text_arguments import tokenizer_spec
from lightning_llm.errors import InvalidValueError

_LOG = logging.getLogger(__name__)


class ExampleDataModule(PreparedDataModule):
    """A datamodule of prompts and targets; see its subclasses, one for each task.

    Args:
        arguments: Of the subclass, by name, checked.
        sources: Rows by part.
        task: From rows to examples.
    """

    def __init__(
        self, arguments: Mapping[str, Any], sources: Mapping[Part, RowSource], task: Task
    ) -> None:
        self.task = task
        prepared = PreparedExamples(
            sources,
            task,
            tokenizer_spec=tokenizer_spec(arguments["tokenizer"]),
            val_fraction=arguments["val_fraction"],
            seed=arguments["seed"],
            errors=arguments["errors"],
            cache_dir=arguments["cache_dir"],
        )
        super().__init__(arguments, prepared)
        self._arguments = dict(arguments)
        self._examples: dict[Part, StoredExamples] = {}

    def _open(self) -> dict[Part, TokenStore]:
        assert isinstance(self._prepared, PreparedExamples)
        self._examples = self._prepared.prepare()
        return {part: examples.store for part, examples in self._examples.items()}

    def _pack(self, part: Part) -> PackedExamples:
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
            raise InvalidValueError(
                f"the {part} part has no example that fits seq_len={self.seq_len}: the shortest "
                f"of {len(examples.store)} has {shortest} "
                "tokens. Raise seq_len, or set too_long='truncate'."
            )
        return rows
