"""`QADataModule`: from questions on a context to packed batches of prompts and answers."""

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
from lightning_llm.data.qa_examples import QATask
from lightning_llm.data.tokenizer import TokenizerSpec

_DEFAULT_TOKENIZER = TokenizerSpec()


class QADataModule(ExampleDataModule):
    """Train a decoder-only model to answer questions on a context.

    A row becomes the prompt ``template`` with context and question in it, then the first answer
    and the end of text. Only the latter two are predicted. Batches are those of
    `lightning_llm.data.TranslationDataModule`; in validation and test, ``references`` holds the
    list of all answers of each question: what `lightning_llm.callbacks.AnswerMonitor` reads.

    Args:
        train_files: ``.jsonl``, ``.parquet``, ``.csv`` or ``.tsv`` files of rows, or SQuAD's
            ``.json``; paths, globs or folders.
        val_files: Files that validate.
        test_files: Files that test.
        dataset: A Hugging Face dataset instead of files: its name on the hub or its folder.
        dataset_name: Its configuration.
        dataset_split: Its split to train on.
        dataset_revision: Branch, tag or commit on the hub.
        val_split: Its split that validates.
        test_split: Its split that tests.
        streaming: Read the dataset over the network while encoding, without a copy on disk.
        context_field: Name of the context in rows.
        question_field: Name of the question.
        answers_field: Name of the answers: a text, a list of texts, or ``{"text": [...]}``.
        template: The prompt; ``{context}`` and ``{question}`` stand for the texts.
        no_answer: What to answer where a row has no answer; by default such a row is an error.
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
        >>> data = QADataModule(train_files="train.jsonl", seq_len=512)         # doctest: +SKIP

    Raises:
        ValueError: One error that lists every problem with the arguments.
        FileNotFoundError: A path or pattern stands for no file.
    """

    def __init__(
        self,
        *,
        train_files: str | Path | list[str | Path] | None = None,
        val_files: str | Path | list[str | Path] | None = None,
        test_files: str | Path | list[str | Path] | None = None,
        dataset: str | Path | None = None,
        dataset_name: str | None = None,
        dataset_split: str = "train",
        dataset_revision: str | None = None,
        val_split: str | None = None,
        test_split: str | None = None,
        streaming: bool = False,
        context_field: str = "context",
        question_field: str = "question",
        answers_field: str = "answers",
        template: str = "{context}\n\nQuestion: {question}\nAnswer:\n",
        no_answer: str | None = None,
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
        problems = template_problems(template, ["context", "question"])
        check_examples(type(self).__name__, arguments, problems)
        super().__init__(
            arguments,
            row_sources(
                arguments, squad=True, needed=(context_field, question_field, answers_field)
            ),
            QATask(context_field, question_field, answers_field, template, no_answer),
        )
