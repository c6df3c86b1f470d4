"""`TextDataModule`: from files or a dataset of text to packed batches of token ids."""

from __future__ import annotations

from pathlib import Path

from lightning_llm.data.argument_problems import constructor_arguments
from lightning_llm.data.corpus import Part
from lightning_llm.data.fill_in_the_middle import FillInTheMiddle
from lightning_llm.data.packing import ConcatWindows, PackedDocuments, Packing, pack
from lightning_llm.data.prepare import PreparedText
from lightning_llm.data.prepared_datamodule import PreparedDataModule
from lightning_llm.data.sources import DecodeErrors
from lightning_llm.data.store import TokenStore
from lightning_llm.data.text_arguments import check, corpora, tokenizer_spec
from lightning_llm.data.tokenizer import TokenizerSpec

_DEFAULT_TOKENIZER = TokenizerSpec()


class TextDataModule(PreparedDataModule):
    """Train a language model on text.

    Text is encoded once into memory-mapped stores, kept in the cache under its content: a run with
    the same text, tokenizer and options reuses them, one changed byte makes new ones. Batches hold
    ``input_ids`` and ``shift_labels``, both ``(B, T) int64`` with ``B = micro_batch_size`` and
    ``T = seq_len``, and with documents kept apart ``document_ids`` and ``position_ids``.

    Args:
        train_files: Paths, globs or folders of text, ``.jsonl``, ``.csv``, ``.tsv`` and
            ``.parquet``, compressed or not; see `lightning_llm.data.sources.expand_files`.
        exclude_folders: Names of folders to leave out below a folder or a glob's fixed part.
        val_files: Files that validate.
        test_files: Files that test.
        dataset: A Hugging Face dataset instead of files: its name on the hub or its folder.
        dataset_name: Its configuration.
        dataset_split: Its split to train on.
        dataset_revision: Branch, tag or commit on the hub.
        val_split: Its split that validates.
        test_split: Its split that tests.
        streaming: Read the dataset over the network while encoding, without a copy on disk.
        text_field: Key or column of the text, where documents are rows; ``meta.text`` is a field
            of a field.
        max_documents: Train on the first so many documents only.
        errors: For files whose text is not valid Unicode: ``strict`` stops, ``replace`` puts
            U+FFFD in its place, ``skip`` leaves the document out, and files that are no text.
        tokenizer: What to train on the training text, or to load; also a mapping of its fields, or
            the path or name of a pretrained one.
        seq_len: Tokens in a row (T).
        micro_batch_size: Rows in a batch of one rank (B).
        val_micro_batch_size: The same for validation, test and prediction; by default equal.
        packing: ``concat``: windows over the stream of all documents. ``best_fit``: whole
            documents side by side. ``pad``: one document a row.
        mask_documents: Keep the documents of a row apart. By default not with ``concat``, where
            a mask costs attention its fastest kernels and hardly changes the model; always with
            ``best_fit``; ``pad`` has nothing to keep apart.
        val_fraction: Share of the training text that validates if no validation data is given: by
            document, or the end of the longest document where documents are few. 0 for none.
        fim_rate: Share of the training documents that are rearranged so that the model learns to
            fill in the middle; see `lightning_llm.data.fill_in_the_middle.FillInTheMiddle`. The
            tokenizer gets ``<|fim_prefix|>``, ``<|fim_middle|>`` and ``<|fim_suffix|>``; a
            pretrained one must have them, or those of a known code model.
        fim_spm_rate: Share of these whose suffix comes before the prefix.
        drop_last: Leave out the last, incomplete micro-step of an epoch instead of filling it up
            with rows that have no targets. Our loss is exact with such rows; one that divides by
            the number of targets of a micro-batch may divide by zero where a rank has none left.
        seed: Of the order of samples, the validation split and what ``fim_rate`` draws.
        num_workers: Processes that build batches; 0 is the fastest here.
        strict_resume: Refuse a checkpoint that was trained on other data.
        cache_dir: Folder of prepared data; by default ``$XDG_CACHE_HOME/lightning_llm`` or
            ``~/.cache/lightning_llm``.

    Attributes:
        seq_len: As given.
        micro_batch_size: As given.
        train_store: The encoded training text, after ``setup``; likewise ``val_store`` and
            ``test_store``, None where there is none.

    Example:
        >>> data = TextDataModule(train_files=["books/*.txt"], seq_len=512)     # doctest: +SKIP
        >>> data.vocab_size                                                     # doctest: +SKIP

    Raises:
        ValueError: One error that lists every problem with the arguments.
        FileNotFoundError: A path or pattern stands for no file.
    """

    def __init__(
        self,
        *,
        train_files: str | Path | list[str | Path] | None = None,
        exclude_folders: list[str] | None = None,
        val_files: str | Path | list[str | Path] | None = None,
        test_files: str | Path | list[str | Path] | None = None,
        dataset: str | Path | None = None,
        dataset_name: str | None = None,
        dataset_split: str = "train",
        dataset_revision: str | None = None,
        val_split: str | None = None,
        test_split: str | None = None,
        streaming: bool = False,
        text_field: str = "text",
        max_documents: int | None = None,
        errors: DecodeErrors = "strict",
        tokenizer: TokenizerSpec = _DEFAULT_TOKENIZER,
        seq_len: int = 512,
        micro_batch_size: int = 8,
        val_micro_batch_size: int | None = None,
        packing: Packing = "concat",
        mask_documents: bool | None = None,
        val_fraction: float = 0.0,
        fim_rate: float = 0.0,
        fim_spm_rate: float = 0.5,
        drop_last: bool = False,
        seed: int = 0,
        num_workers: int = 0,
        strict_resume: bool = True,
        cache_dir: str | Path | None = None,
    ) -> None:
        arguments = constructor_arguments(locals())
        check(arguments)
        given = corpora(arguments)
        prepared = PreparedText(
            train=given.get("train"),
            val=given.get("val"),
            test=given.get("test"),
            tokenizer_spec=tokenizer_spec(tokenizer),
            val_fraction=0.0 if "val" in given else val_fraction,
            seed=seed,
            cache_dir=cache_dir,
            fim=FillInTheMiddle(fim_rate, fim_spm_rate, seed) if fim_rate > 0 else None,
        )
        super().__init__(arguments, prepared)
        self.packing = packing
        self.mask_documents = packing == "best_fit" if mask_documents is None else mask_documents

    def _open(self) -> dict[Part, TokenStore]:
        assert isinstance(self._prepared, PreparedText)
        return self._prepared.prepare()

    def _pack(self, part: Part) -> ConcatWindows | PackedDocuments:
        return pack(
            self._stores[part],
            self.packing,
            self.seq_len,
            mask_documents=self.mask_documents,
            pad_id=self.tokenizer.pad_token_id,
        )
