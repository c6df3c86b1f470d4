"""`WordVectors`: a run whose embedding starts from pretrained word vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from typing_extensions import override

from lightning_llm.errors import InvalidTypeError, InvalidValueError
from lightning_llm.interop.word_vectors.initial import Coverage, load_word_vectors

_COUNTED_TOKENS = 10_000_000


class WordVectors(Callback):
    """Starts the embedding of any LightningModule from GloVe's or word2vec's vectors.

    Works on what ``get_input_embeddings()`` of the module or its ``model`` returns, else on
    ``model.embedding`` or ``embedding``. What the vectors become is told by
    `lightning_llm.interop.word_vectors.load_word_vectors`; the log says how much of vocabulary and
    corpus they cover. A resumed run reads the file too, before it gets the weights of its
    checkpoint, which may hold adapters alone.

    With a tied head (``tie_embeddings``, the default of our models) the vectors are its weights
    too, and freezing holds both.

    Args:
        path: GloVe text, word2vec text or word2vec binary, perhaps ``.gz``.
        freeze_steps: Optimizer steps before the embedding is trained. It gets no gradient until
            then, and so neither decay nor optimizer state.
        std: Standard deviation of the new rows; that of the initial weights if not given.
        seed: See `lightning_llm.interop.word_vectors.load_word_vectors`.
        embedding: Dotted name of the embedding in the module, where it has another place.

    Attributes:
        coverage: Of the vocabulary and corpus, once the run has begun.

    Raises:
        ValueError: ``freeze_steps`` is negative, or the file is malformed.
        TypeError: There is no embedding or tokenizer to be found.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        freeze_steps: int = 0,
        std: float | None = None,
        seed: int = 0,
        embedding: str | None = None,
    ) -> None:
        super().__init__()
        if freeze_steps < 0:
            raise InvalidValueError(f"WordVectors: freeze_steps={freeze_steps} must be at least 0")
        self.path, self.freeze_steps = path, freeze_steps
        self.std, self.seed, self.embedding = std, seed, embedding
        self.coverage: Coverage | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Before checkpoints are loaded and optimizers and strategies take copies of the weights;
        # unless the model is built later.
        found = _embedding(pl_module, self.embedding)
        weight = getattr(found, "weight", None)
        if stage == "fit" and weight is not None and not weight.is_meta:
            self._start(trainer, pl_module)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(trainer, pl_module)

    def _start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.coverage is not None or trainer.ckpt_path is not None:
            return
        weight = self._weight(pl_module)
        if hasattr(weight, "full_tensor"):
            raise InvalidTypeError(
                "WordVectors writes whole embeddings, and this one is sharded: begin with a "
                "strategy that does not shard, and continue from its checkpoint."
            )
        self.coverage = load_word_vectors(
            weight.data,
            self.path,
            _tokenizer(trainer, pl_module),
            std=self.std,
            seed=self.seed,
            token_counts=_token_counts(trainer),
        )
        rank_zero_info(f"word vectors of {self.path}: {self.coverage}")

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step < self.freeze_steps:
            self._weight(pl_module).grad = None

    def _weight(self, pl_module: LightningModule) -> Tensor:
        found = _embedding(pl_module, self.embedding)
        weight = getattr(found, "weight", None)
        if not isinstance(weight, Tensor) or weight.dim() != 2:
            raise InvalidTypeError(
                f"WordVectors: no embedding found in {type(pl_module).__name__}; say where it is, "
                "such as WordVectors(embedding='net.embedding')."
            )
        return weight


def _embedding(pl_module: LightningModule, name: str | None) -> Any:
    if name is not None:
        return dict(pl_module.named_modules()).get(name)
    for holder in (pl_module, getattr(pl_module, "model", None)):
        method = getattr(holder, "get_input_embeddings", None)
        if callable(method):
            return method()
    for holder in (getattr(pl_module, "model", None), pl_module):
        if isinstance(found := getattr(holder, "embedding", None), nn.Module):
            return found
    return None


def _tokenizer(trainer: Trainer, pl_module: LightningModule) -> Any:
    for holder in (getattr(trainer, "datamodule", None), pl_module):
        if (tokenizer := getattr(holder, "tokenizer", None)) is not None:
            return tokenizer
    raise InvalidTypeError(
        "WordVectors needs a tokenizer: neither the datamodule nor the module has the attribute "
        "`tokenizer`."
    )


def _token_counts(trainer: Trainer) -> np.ndarray | None:
    store = getattr(getattr(trainer, "datamodule", None), "train_store", None)
    if store is None:
        return None
    tokens = store.tokens(0, min(store.num_tokens, _COUNTED_TOKENS))
    return np.bincount(np.asarray(tokens, np.int64))
