"""`ChatDataModule`: from conversations to packed batches in which the assistant is learned."""

from __future__ import annotations

from pathlib import Path

from lightning_llm.data.argument_problems import constructor_arguments
from lightning_llm.data.chat_examples import TURN_END, TURN_START, ChatTask, uses_chatml
from lightning_llm.data.example_arguments import (
    ExamplePacking,
    check_examples,
    row_sources,
)
from lightning_llm.data.example_datamodule import ExampleDataModule
from lightning_llm.data.examples import RowErrors
from lightning_llm.data.packed_examples import TooLong
from lightning_llm.data.tokenizer import TokenizerSpec
from lightning_llm.errors import InvalidValueError

_DEFAULT_TOKENIZER = TokenizerSpec()


class ChatDataModule(ExampleDataModule):
    """Fine-tune a model on conversations, or train one from nothing.

    Every assistant turn is a target, from its first token to the token that ends the turn; what
    system and user say is read only. What is trained on is what the chat template makes of the
    whole conversation: the same ids as ``tokenizer.apply_chat_template``. Only names of special
    tokens within a content are plain text. Turns are found by rendering the template with and
    without them, so any template works that closes the assistant's turns with a special token.

    Messages may have ``weight`` (0 or 1) or ``train``: a turn of weight 0 is read and not learned.
    ``tool_calls``, ``reasoning_content``, parts of text and other fields are given to the template,
    and so are ``tools``, ``documents``, ``system`` and ``chat_template_kwargs`` of a row. What the
    template does not show is an error that names the field, or, where the template means it so, a
    warning once.

    Without a chat template of its own, the tokenizer gets ChatML's: ``<|im_start|>`` and
    ``<|im_end|>`` become special tokens if it does not have them, and the latter ends generation.
    A pretrained model then needs rows for two more ids; if it has none to spare, choose a tokenizer
    with a chat template, or give one written with tokens that are there.

    Batches hold ``input_ids`` and ``shift_labels`` (-100 where the assistant does not speak), both
    ``(B, T) int64``, and with ``packing="best_fit"`` ``document_ids`` and ``position_ids``. Those
    of validation and test also hold ``prompts``, each a conversation up to its last assistant
    turn, and ``references``, the contents of these turns.

    Args:
        train_files: ``.jsonl`` or ``.parquet`` files of rows; paths, globs or folders. A row is
            ``{"messages": [{"role", "content"}, …]}`` or ShareGPT's
            ``{"conversations": [{"from", "value"}, …]}``.
        val_files: Files that validate.
        test_files: Files that test.
        dataset: A Hugging Face dataset instead of files: its name on the hub or its folder.
        dataset_name: Its configuration.
        dataset_split: Its split to train on.
        dataset_revision: Branch, tag or commit on the hub.
        val_split: Its split that validates.
        test_split: Its split that tests.
        streaming: Read the dataset over the network while encoding, without a copy on disk.
        messages_field: Name of the messages in rows.
        chat_template: ``chatml``, or the text of a Jinja template; by default the tokenizer's own,
            and ChatML where it has none.
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
        >>> data = ChatDataModule(train_files="chats.jsonl", seq_len=1024)      # doctest: +SKIP

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
        messages_field: str = "messages",
        chat_template: str | None = None,
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
        check_examples(type(self).__name__, arguments)
        super().__init__(arguments, row_sources(arguments), ChatTask(messages_field, chat_template))

    def setup(self, stage: str | None = None) -> None:
        """Open the stores.

        Raises:
            ValueError: ChatML's tokens were added to a pretrained tokenizer, and the model has no
                rows for them; or there is no validation data to validate on.
        """
        super().setup(stage)
        model = getattr(self.trainer, "lightning_module", None)
        size_limits = getattr(model, "size_limits", None)
        spec = self._prepared.tokenizer_spec
        if size_limits is None or spec.pretrained is None or not uses_chatml(self.tokenizer):
            return
        rows = size_limits()[0]
        if self.vocab_size > rows:
            raise InvalidValueError(
                f"the tokenizer {spec.pretrained!r} gets ChatML's tokens {TURN_START} and "
                f"{TURN_END}, which makes {self.vocab_size} ids, but the model's embedding has "
                f"{rows} rows. Use a tokenizer and model that have them, or give a chat_template "
                "written with special tokens that this tokenizer has."
            )
