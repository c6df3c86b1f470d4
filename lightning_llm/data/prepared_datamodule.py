"""What all datamodules share: prepared once, opened, packed, ordered and loaded."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.combined_loader import CombinedLoader

from lightning_llm.data.cache import content_hash
from lightning_llm.data.corpus import Part
from lightning_llm.data.loader import TokenLoader, place_of
from lightning_llm.data.packing import ConcatWindows, PackedDocuments
from lightning_llm.data.prepare import PreparedText
from lightning_llm.data.prepare_examples import PreparedExamples
from lightning_llm.data.several_stores import SeveralRows
from lightning_llm.data.store import TokenStore
from lightning_llm.data.text_arguments import plain
from lightning_llm.data.tokenizer import token_byte_lengths, vocabulary_size
from lightning_llm.errors import InvalidValueError
from lightning_llm.runtime.hyperparameters import PlainHyperparameters

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_PART_NAMES: dict[Part, str] = {"train": "training", "val": "validation", "test": "test"}
_LOG = logging.getLogger(__name__)


class PreparedDataModule(PlainHyperparameters, pl.LightningDataModule):
    """Token stores in a cache, and loaders over them.

    A subclass says how stores are opened and how one of them becomes rows.

    Args:
        arguments: Of the subclass, by name, checked; among them ``seq_len``,
            ``micro_batch_size``, ``val_micro_batch_size``, ``drop_last``, ``seed``,
            ``num_workers`` and ``strict_resume``.
        prepared: Makes the tokenizer and the stores, or finds them in the cache. None where a
            subclass has both already and defines ``tokenizer`` and ``prepare_data`` itself.

    Attributes:
        give_val: Arguments that bring validation data, for messages.
        give_test: Arguments that bring test data.
    """

    give_val = "val_files or val_split"
    give_test = "test_files or test_split"

    def __init__(
        self,
        arguments: Mapping[str, Any],
        prepared: PreparedText | PreparedExamples | None,
    ) -> None:
        super().__init__()
        # Plain data only: a checkpoint then loads with weights_only=True.
        if prepared is not None:
            self._prepared = prepared
            arguments = {**arguments, "tokenizer": asdict(prepared.tokenizer_spec)}
        self.save_own_hyperparameters(plain(arguments))
        self.seq_len: int = arguments["seq_len"]
        self._micro_batch_size: int = arguments["micro_batch_size"]
        self._val_micro_batch_size: int | None = arguments["val_micro_batch_size"]
        self.drop_last: bool = arguments["drop_last"]
        self.seed: int = arguments["seed"]
        self.num_workers: int = arguments["num_workers"]
        self.strict_resume: bool = arguments["strict_resume"]
        self._limit_val_batches: int | float | None = None
        self._stores: dict[Part, TokenStore] = {}
        self._rows: dict[Part, ConcatWindows | PackedDocuments | SeveralRows] = {}

    @abstractmethod
    def _open(self) -> dict[Part, TokenStore]:
        """Prepare what is not prepared yet, and open the stores."""

    @abstractmethod
    def _pack(self, part: Part) -> ConcatWindows | PackedDocuments | SeveralRows:
        """Return the rows of a part whose store is open."""

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
    def micro_batch_size(self) -> int:
        """Rows in a training batch of one rank; loaders made after a change have the new size."""
        return self._micro_batch_size

    @micro_batch_size.setter
    def micro_batch_size(self, rows: int) -> None:
        self._micro_batch_size = _rows_of_a_batch("micro_batch_size", rows)
        self.hparams["micro_batch_size"] = rows

    @property
    def val_micro_batch_size(self) -> int:
        """The same for validation, test and prediction; `micro_batch_size` where none was given."""
        return self._val_micro_batch_size or self.micro_batch_size

    @val_micro_batch_size.setter
    def val_micro_batch_size(self, rows: int | None) -> None:
        self._val_micro_batch_size = (
            None if rows is None else _rows_of_a_batch("val_micro_batch_size", rows)
        )
        self.hparams["val_micro_batch_size"] = rows

    @property
    def batch_size(self) -> int:
        """The batch size that Lightning's `BatchSizeFinder` changes.

        It is `micro_batch_size`; where the trainer validates, tests or predicts without training,
        it is `val_micro_batch_size`.
        """
        return self.val_micro_batch_size if self._only_evaluates() else self.micro_batch_size

    @batch_size.setter
    def batch_size(self, rows: int) -> None:
        if self._only_evaluates():
            self.val_micro_batch_size = rows
        else:
            self.micro_batch_size = rows

    def _only_evaluates(self) -> bool:
        trainer = self.trainer
        return trainer is not None and trainer.state.fn not in (None, TrainerFn.FITTING)

    @property
    def train_store(self) -> TokenStore | None:
        """Token ids of the training part, after ``setup``."""
        return self._stores.get("train")

    @property
    def val_store(self) -> TokenStore | None:
        """Token ids of the validation part; None without any."""
        return self._stores.get("val")

    @property
    def test_store(self) -> TokenStore | None:
        """Token ids of the test part; None without any."""
        return self._stores.get("test")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the training rows and their order: content, packing and seed."""
        return content_hash({**self._rows_of("train").fingerprint, "seed": self.seed})

    def prepare_data(self) -> None:
        """Train the tokenizer and write the stores, if they are not in the cache."""
        self._prepared.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Open the stores.

        Raises:
            ValueError: The stage is ``"validate"`` and there is no validation data.
        """
        if not self._stores:
            self._stores = self._open()
        if self.val_store is not None:
            return
        if stage == "validate":
            raise InvalidValueError(f"no validation data: give {self.give_val}, or a val_fraction.")
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

    def val_dataloader(self) -> TokenLoader | list[TokenLoader] | CombinedLoader:
        """Return this rank's validation batches; no loader without validation data."""
        self.setup()
        if self.val_store is None:
            return [] if self._limit_val_batches is None else _NoLoaders()
        return self._loader("val", self.val_micro_batch_size)

    def test_dataloader(self) -> TokenLoader:
        """Return this rank's test batches.

        Raises:
            ValueError: There is no test data.
        """
        self.setup()
        if self.test_store is None:
            raise InvalidValueError(f"no test data: give {self.give_test}.")
        return self._loader("test", self.val_micro_batch_size)

    def predict_dataloader(self) -> TokenLoader:
        """Return this rank's batches of the test data, or of the validation data without it.

        Raises:
            ValueError: There is neither.
        """
        self.setup()
        if self.test_store is None and self.val_store is None:
            raise InvalidValueError(
                f"nothing to predict: give {self.give_test}, {self.give_val}, or a val_fraction."
            )
        return self._loader("test" if self.test_store else "val", self.val_micro_batch_size)

    def _rows_of(self, part: Part) -> ConcatWindows | PackedDocuments | SeveralRows:
        if part not in self._rows:
            self.setup()
            if part not in self._stores:
                raise InvalidValueError(f"no {_PART_NAMES[part]} data: give {part}_files.")
            rows = self._rows[part] = self._pack(part)
            _LOG.info("%s: %d rows, %.2f %% filled", part, len(rows), 100 * rows.fill_fraction)
        return self._rows[part]

    def _loader(self, part: Part, micro_batch_size: int, shuffle: bool = False) -> TokenLoader:
        return TokenLoader(
            self._rows_of(part),
            micro_batch_size=micro_batch_size,
            shuffle=shuffle,
            seed=self.seed,
            drop_last=self.drop_last and part == "train",
            num_workers=self.num_workers,
            strict_resume=self.strict_resume,
            **place_of(self.trainer),
        )


def _rows_of_a_batch(name: str, rows: Any) -> int:
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        raise InvalidValueError(f"{name}={rows!r} must be a whole number of rows, at least 1")
    return rows


class _NoLoaders(CombinedLoader):
    """What a trainer takes for no loader at all; an empty list is a loader of no length to it.

    It asks for one, although nothing is to validate, where `BatchSizeFinder` sets its own limit.
    """

    def __init__(self) -> None:
        super().__init__([], "sequential")

    @property
    def flattened(self) -> list[Any]:
        """None."""
        return []

    @flattened.setter
    def flattened(self, flattened: list[Any]) -> None:
        """Nothing to set."""
