"""`TranslationDataModule`: from pairs of texts to packed batches of prompts and targets."""

from __future__ import annotations

from pathlib import Path

from lightning_llm.data.argument_problems import constructor_arguments
from lightning_llm.data.example_arguments import (
    ExamplePacking,
    check_examples,
    row_sources,
    template_problems,
)
from lightning_llm.data.example_datamodule import ExampleDataModule
from lightning_llm.data.examples import RowErrors
from lightning_llm.data.packed_examples import TooLong
from lightning_llm.data.tokenizer import TokenizerSpec
from lightning_llm.data.translation_examples import Empty, TranslationTask

_DEFAULT_TOKENIZER = TokenizerSpec()


class TranslationDataModule(ExampleDataModule):
    """Train a decoder-only model to translate, or to map any text to another one.

    A row becomes the prompt ``template`` with the source in it, then the target and the end of
    text. Only the latter two are predicted; the template's end is where generation starts, so the
    ids of prompts in training and in generation are the same. Rows are encoded once and cached.

    Batches hold ``input_ids`` and ``shift_labels`` (-100 on prompts), both ``(B, T) int64``, and
    with ``packing="best_fit"`` ``document_ids`` and ``position_ids``. Those of validation and test
    also hold ``prompts`` and ``references``, lists of texts with one entry for each example that
    begins in the batch: what `lightning_llm.callbacks.BLEUMonitor` reads.

    Args:
        train_source: Files of which line i is the source of a pair, plain text, compressed or not.
        train_target: As many files, line by line the targets.
        train_files: Instead, files of rows: ``.jsonl``, ``.parquet``, ``.csv`` or ``.tsv`` whose
            first line names the columns, or ``.tsv`` with two columns, source and target, in which
            quotes are text; paths, globs or folders.
        source_field: Name of the source in rows; ``translation.en`` is a field of a field.
        target_field: Name of the target in rows.
        val_source: Files that validate, likewise.
        val_target: Files that validate, likewise.
        val_files: Files that validate, likewise.
        test_source: Files that test, likewise.
        test_target: Files that test, likewise.
        test_files: Files that test, likewise.
        dataset: A Hugging Face dataset instead of files: its name on the hub or its folder.
        dataset_name: Its configuration.
        dataset_split: Its split to train on.
        dataset_revision: Branch, tag or commit on the hub.
        val_split: Its split that validates.
        test_split: Its split that tests.
        streaming: Read the dataset over the network while encoding, without a copy on disk.
        template: The prompt; ``{source}`` stands for the source.
        empty: What to do with pairs of which a side is empty: ``error`` or ``skip``.
        tokenizer: What to train on the training rows, or to load; also a mapping of its fields, or
            the path or name of a pretrained one.
        seq_len: Tokens in a row (T).
        micro_batch_size: Rows in a batch of one rank (B).
        val_micro_batch_size: The same for validation, test and prediction; by default equal.
        packing: ``best_fit``: whole examples side by side, kept apart by ``document_ids``.
            ``pad``: one example a row.
        too_long: ``drop`` or ``truncate`` training examples of more than ``seq_len + 1`` tokens;
            how many there were is logged. In evaluation they lose their end in any case.
        errors: ``raise`` an error at the first row that is no example, with its file and line, or
            ``skip`` such rows: the log tells how many there were, and what is wrong with the first.
        val_fraction: Share of the training rows that validates if no validation data is given.
        max_train_samples: Train on the first so many rows only.
        max_val_samples: Validate on the first so many only.
        drop_last: Leave out the last, incomplete micro-step of an epoch.
        seed: Of the order of samples and of the validation split.
        num_workers: Processes that build batches; 0 is the fastest here.
        strict_resume: Refuse a checkpoint that was trained on other data.
        cache_dir: Folder of prepared data; by default ``$XDG_CACHE_HOME/lightning_llm`` or
            ``~/.cache/lightning_llm``.

    Example:
        >>> data = TranslationDataModule(                                       # doctest: +SKIP
        ...     train_source="train.en", train_target="train.de", seq_len=256
        ... )

    Raises:
        ValueError: One error that lists every problem with the arguments.
        FileNotFoundError: A path or pattern stands for no file.
    """

    give_val = "val_source and val_target, val_files or val_split"
    give_test = "test_source and test_target, test_files or test_split"

    def __init__(
        self,
        *,
        train_source: str | Path | list[str | Path] | None = None,
        train_target: str | Path | list[str | Path] | None = None,
        train_files: str | Path | list[str | Path] | None = None,
        source_field: str = "source",
        target_field: str = "target",
        val_source: str | Path | list[str | Path] | None = None,
        val_target: str | Path | list[str | Path] | None = None,
        val_files: str | Path | list[str | Path] | None = None,
        test_source: str | Path | list[str | Path] | None = None,
        test_target: str | Path | list[str | Path] | None = None,
        test_files: str | Path | list[str | Path] | None = None,
        dataset: str | Path | None = None,
        dataset_name: str | None = None,
        dataset_split: str = "train",
        dataset_revision: str | None = None,
        val_split: str | None = None,
        test_split: str | None = None,
        streaming: bool = False,
        template: str = "{source}\n",
        empty: Empty = "error",
        tokenizer: TokenizerSpec = _DEFAULT_TOKENIZER,
        seq_len: int = 512,
        micro_batch_size: int = 8,
        val_micro_batch_size: int | None = None,
        packing: ExamplePacking = "best_fit",
        too_long: TooLong = "drop",
        errors: RowErrors = "raise",
        val_fraction: float = 0.0,
        max_train_samples: int | None = None,
        max_val_samples: int | None = None,
        drop_last: bool = False,
        seed: int = 0,
        num_workers: int = 0,
        strict_resume: bool = True,
        cache_dir: str | Path | None = None,
    ) -> None:
        arguments = constructor_arguments(locals())
        problems = template_problems(template, ["source"])
        if empty not in ("error", "skip"):
            problems.append(f"empty={empty!r} must be one of error, skip")
        check_examples(type(self).__name__, arguments, problems)
        super().__init__(
            arguments,
            row_sources(arguments, columns=(source_field, target_field)),
            TranslationTask(source_field, target_field, template, empty),
        )
