"""Which tokenizer a run uses, how one is loaded, and what identifies it."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from lightning_llm.data.special_frame import set_bos
from lightning_llm.data.tokenizer_encoding import encode_texts, token_byte_lengths
from lightning_llm.data.tokenizer_training import EOS_TOKEN, UNK_TOKEN, train_tokenizer
from lightning_llm.errors import InvalidTypeError, InvalidValueError, MissingFileError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = [
    "EOS_TOKEN",
    "UNK_TOKEN",
    "TokenizerSpec",
    "encode_texts",
    "load_tokenizer",
    "token_byte_lengths",
    "tokenizer_fingerprint",
    "train_tokenizer",
    "vocabulary_size",
]

Algorithm = Literal["bpe", "unigram", "wordpiece", "word", "char", "byte"]
Normalization = Literal["nfc", "nfkc"]

_ALGORITHMS = get_args(Algorithm)
_SIZED = ("bpe", "unigram", "wordpiece", "word")
_BYTE_LEVEL = ("bpe", "unigram", "byte")
_DEFAULT_VOCAB_SIZE = 32_000
_OF_A_TOKENIZER = re.compile(r"^tokenizer|^vocab|\.model$")  # names of files
# End-of-text tokens of published tokenizers whose bare tokenizer.json does not say which it is.
_KNOWN_EOS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "<|eos|>", "[EOS]")


@dataclass(frozen=True)
class TokenizerSpec:
    """A tokenizer to be trained on the corpus, or a pretrained one to be loaded.

    ``bpe``, ``unigram`` and ``byte`` work on UTF-8 bytes: they encode any text and decode it back
    exactly. ``wordpiece``, ``word`` and ``char`` turn what the corpus did not show into
    ``<|unk|>``, and decode everything else exactly. Each has the end-of-text token
    ``<|endoftext|>``, which is also the padding token.

    Attributes:
        algorithm: How text is cut; not looked at with ``pretrained``.
        vocab_size: Number of ids, special tokens included; fewer if the corpus has not enough to
            learn from. Default 32,000; ``char`` takes every character of the corpus unless it is
            given, and ``byte`` has its fixed size.
        pretrained: A name on the Hugging Face hub, a directory, a ``tokenizer.json``, or a
            checkpoint of this package, whose tokenizer it is.
        min_frequency: How often a merge or a word must occur to enter the vocabulary
            (``bpe``, ``wordpiece``, ``word``).
        special_tokens: Further special tokens, beside the end of text.
        normalization: Unicode normal form applied before everything else; decoding gives the
            normalised text.
        add_bos: Whether every text begins with the BOS token, in stores, examples, prompts and
            exports alike. Default: what the pretrained tokenizer does when it is called. A trained
            one has no BOS.
        max_training_bytes: Bound of the text learned from, sampled evenly over the corpus;
            ``char`` counts all of it.

    Raises:
        ValueError: One error that lists every problem.
        TypeError: ``special_tokens`` is a single string.
    """

    algorithm: Algorithm = "bpe"
    vocab_size: int | None = None
    pretrained: str | None = None
    min_frequency: int = 2
    special_tokens: Sequence[str] = ()
    normalization: Normalization | None = None
    max_training_bytes: int = 100_000_000
    add_bos: bool | None = None

    def __post_init__(self) -> None:
        if isinstance(self.special_tokens, str):
            raise InvalidTypeError(
                f"special_tokens={self.special_tokens!r} must be a list of strings, not a string."
            )
        object.__setattr__(self, "special_tokens", tuple(self.special_tokens))
        problems = self._problems()
        if problems:
            raise InvalidValueError("TokenizerSpec: " + "; ".join(problems))

    @property
    def max_vocab_size(self) -> int:
        """``vocab_size``, or what stands for it where it is not given."""
        # Kept out of the field: a default written into a parser's configuration would come back
        # as if the user had set it, and clash with `pretrained` or algorithm="byte".
        if self.vocab_size is not None:
            return self.vocab_size
        return _DEFAULT_VOCAB_SIZE if self.algorithm in _SIZED else sys.maxsize

    def _problems(self) -> list[str]:
        problems = []
        if self.algorithm not in _ALGORITHMS:
            problems.append(f"algorithm={self.algorithm!r} must be one of {', '.join(_ALGORITHMS)}")
        if self.normalization not in (None, "nfc", "nfkc"):
            problems.append(f"normalization={self.normalization!r} must be 'nfc', 'nfkc' or None")
        if self.add_bos and self.pretrained is None:
            problems.append(
                "add_bos=True needs a pretrained tokenizer with a bos_token; a trained one has none"
            )
        if self.min_frequency < 1:
            problems.append(f"min_frequency={self.min_frequency} must be at least 1")
        if self.max_training_bytes < 1:
            problems.append(f"max_training_bytes={self.max_training_bytes} must be at least 1")
        if len(set(self.special_tokens)) < len(self.special_tokens):
            problems.append(f"special_tokens={list(self.special_tokens)} has duplicates")
        for token in self.special_tokens:
            if not isinstance(token, str) or len(token.strip()) < 2:
                problems.append(
                    f"special token {token!r} must be a string of at least 2 characters"
                )
            elif token in (EOS_TOKEN, UNK_TOKEN):
                problems.append(f"special token {token!r} is always there; leave it out")
        name = self.pretrained
        if name is not None and name in _ALGORITHMS and not os.path.exists(name):
            problems.append(
                f"{name!r} is no pretrained tokenizer but an algorithm: "
                f"TokenizerSpec(algorithm={name!r}), in a recipe tokenizer: {{algorithm: {name}}}"
            )
        return problems + self._vocab_size_problems()

    def _vocab_size_problems(self) -> list[str]:
        size = self.vocab_size
        if size is None:
            return []
        if self.pretrained is not None:
            return [f"vocab_size={size} is set by pretrained={self.pretrained!r}: set it to null"]
        if self.algorithm == "byte":
            return [f"vocab_size={size} is fixed by algorithm='byte': set it to null"]
        specials = len(self.special_tokens) + (1 if self.algorithm in _BYTE_LEVEL else 2)
        least = specials + (256 if self.algorithm in _BYTE_LEVEL else 1)
        if size < least:
            return [
                f"vocab_size={size} must be at least {least} for algorithm={self.algorithm!r}: "
                f"{specials} special tokens and {least - specials} to start from"
            ]
        return []

    def fingerprint(self) -> str:
        """Return a SHA-256 of the fields and, if ``pretrained`` is local, of its JSON files."""
        total = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode())
        if self.pretrained is not None:
            path = Path(self.pretrained).expanduser()
            files = sorted(path.glob("*.json")) if path.is_dir() else [path]
            for file in files:
                if file.is_file():
                    total.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
        return total.hexdigest()


def load_tokenizer(
    path_or_name: str | Path, *, add_bos: bool | None = None
) -> PreTrainedTokenizerFast:
    """Load a tokenizer that encodes whole texts and decodes them unchanged.

    Truncation, padding and the clean-up of spaces are off; padding falls back to the end of text.

    Args:
        path_or_name: A directory with ``tokenizer.json``, that file, a checkpoint of this package
            that holds a tokenizer, or a name on the hub.
        add_bos: Whether a text begins with the BOS token; None leaves that to the tokenizer.

    Raises:
        FileNotFoundError: A path that does not exist.
        ValueError: It cannot be loaded, is a slow (pure Python) one, has no end-of-text token, or
            no BOS token to add.
    """
    name = os.path.expanduser(os.fspath(path_or_name))
    tokenizer = _of_checkpoint(name) if name.endswith(".ckpt") else _load(name)
    if not getattr(tokenizer, "is_fast", False):
        raise InvalidValueError(
            f"tokenizer {name!r}: {type(tokenizer).__name__} has no tokenizer.json. Only fast "
            "tokenizers (those of the `tokenizers` library) are used; convert it first."
        )
    if tokenizer.eos_token is None:
        known = tokenizer.get_vocab()
        eos = next((token for token in _KNOWN_EOS if token in known), None)
        if eos is None:
            raise InvalidValueError(
                f"tokenizer {name!r} has no end-of-text token. Set eos_token in its "
                "tokenizer_config.json."
            )
        tokenizer.eos_token = eos
    unknown = getattr(tokenizer.backend_tokenizer.model, "unk_token", None)
    if tokenizer.unk_token is None and unknown is not None:
        tokenizer.unk_token = unknown
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.clean_up_tokenization_spaces = False
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    if add_bos is not None:
        set_bos(tokenizer, add_bos, name)
    return tokenizer


def _of_checkpoint(name: str) -> Any:
    """Return the tokenizer that a checkpoint of this package carries."""
    import torch

    from lightning_llm.interop.hf.tokenizer import unpack_tokenizer

    file = os.path.join(name, "meta.pt") if os.path.isdir(name) else name
    if not os.path.isfile(file):
        raise MissingFileError(f"tokenizer {name!r}: no such checkpoint.")
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        files = saved["lightning_llm"]["tokenizer"]
    except (OSError, RuntimeError, pickle.UnpicklingError, KeyError, TypeError) as error:
        raise InvalidValueError(
            f"tokenizer {name!r} is no checkpoint of CausalLM or HFCausalLM ({error!r:.80})."
        ) from error
    if files is None:
        raise InvalidValueError(f"tokenizer {name!r}: the checkpoint holds no tokenizer.")
    return unpack_tokenizer(files)


def _load(name: str) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    local = os.path.exists(name)
    if not local and (name.startswith((".", os.sep)) or name.count("/") > 1 or not name):
        raise MissingFileError(f"tokenizer {name!r}: no such file or directory.")
    if os.path.isdir(name) and not any(_OF_A_TOKENIZER.search(file) for file in os.listdir(name)):
        raise MissingFileError(f"tokenizer {name!r}: the folder holds no tokenizer.json.")
    try:
        if os.path.isfile(name) and os.path.basename(name) != "tokenizer.json":
            return PreTrainedTokenizerFast(tokenizer_file=name)
        # The folder of a tokenizer.json may also say which token ends a text.
        folder = os.path.dirname(name) or "." if os.path.isfile(name) else name
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # `tokenizers` raises bare Exception on a damaged file
        where = "" if local else " (it is no local path, so it was looked up on the hub)"
        raise InvalidValueError(f"tokenizer {name!r} cannot be loaded{where}: {error}") from error


def vocabulary_size(tokenizer: PreTrainedTokenizerFast) -> int:
    """Return the highest id plus one: how many rows an embedding needs, gaps included."""
    return max(tokenizer.get_vocab().values()) + 1


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return a SHA-256 of all that decides ids and text: it does not depend on the path."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend.pop("truncation", None)
    backend.pop("padding", None)
    roles = {role: getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad", "unk")}
    content = json.dumps([backend, roles], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(content.encode()).hexdigest()
