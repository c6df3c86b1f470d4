"""Text to ids at full speed, and how many bytes of text each id stands for."""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_llm.errors import InvalidTypeError, InvalidValueError

if TYPE_CHECKING:
    import numpy.typing as npt
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

_BATCH_CHARACTERS_PER_CORE = 1 << 19
_CHARACTERS = {"type": "Split", "pattern": {"Regex": "[\\s\\S]"}, "behavior": "Isolated"}
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's way to write a byte as a visible character.

    Bytes that print as Latin-1 stand for themselves; the others follow from U+0100 on.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    alphabet = {chr(byte): byte for byte in visible}
    alphabet |= {chr(0x100 + index): byte for index, byte in enumerate(hidden)}
    return alphabet


BYTE_OF_CHARACTER = _byte_alphabet()


def encode_texts(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]
) -> list[npt.NDArray[np.int32]]:
    """Encode texts as they stand, on all cores.

    Nothing is added, truncated or padded, and the name of a special token within a text is text:
    its id never comes out (only the unknown token's may, where the vocabulary has a gap).

    Returns:
        One int32 array for each text.

    Raises:
        ValueError: A text is no valid Unicode, or the vocabulary has no way to write the name of a
            special token but its id.
    """
    backend = tokenizer.backend_tokenizer
    by_table = _table_encoder(backend)
    if by_table is not None:
        return [by_table(text) for text in _checked(texts)]
    before = backend.encode_special_tokens
    backend.encode_special_tokens = True  # "encode them as text", in spite of its name
    try:
        reserved = reserved_ids(tokenizer)
        return [ids for batch in _batches(texts) for ids in _encode(backend, batch, reserved)]
    except TypeError:  # "TextInputSequence must be str" says neither which text nor why
        list(_checked(texts))
        raise
    finally:
        backend.encode_special_tokens = before


def encodes_by_table(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Tell whether ids are looked up one by one, as for vocabularies of characters or bytes."""
    return _table_encoder(tokenizer.backend_tokenizer) is not None


def _table_encoder(backend: Tokenizer) -> Callable[[str], npt.NDArray[np.int32]] | None:
    """Return the encoder for vocabularies of single characters or bytes: one table look-up each.

    Same ids as the backend's, a hundred times as fast; None where the backend is needed.
    """
    from tokenizers import models

    if backend.normalizer is not None or backend.pre_tokenizer is None:
        return None
    added = backend.get_added_tokens_decoder().values()
    if not all(token.special and len(token.content) > 1 for token in added):
        return None
    split = json.loads(backend.pre_tokenizer.__getstate__()).items()
    if isinstance(backend.model, models.WordLevel) and _CHARACTERS.items() <= split:
        vocab = backend.get_vocab()
        table = np.full(sys.maxunicode + 1, vocab[backend.model.unk_token], np.int32)
        for token, index in vocab.items():
            if len(token) == 1:
                table[ord(token)] = index
        return lambda text: table[np.frombuffer(text.encode("utf-32-le"), "<u4")]
    if isinstance(backend.model, models.BPE) and _BYTES.items() <= split:
        model = json.loads(backend.model.__getstate__())
        if not model["merges"] and BYTE_OF_CHARACTER.keys() <= model["vocab"].keys():
            order = sorted(BYTE_OF_CHARACTER, key=BYTE_OF_CHARACTER.__getitem__)
            table = np.array([model["vocab"][character] for character in order], np.int32)
            return lambda text: table[np.frombuffer(text.encode(), np.uint8)]
    return None


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    """The backend holds some 100 bytes for each token of a batch until it is done."""
    limit = _BATCH_CHARACTERS_PER_CORE * min(16, os.cpu_count() or 1)
    batch: list[str] = []
    size = 0
    for text in texts:
        if batch and size + len(text) > limit:
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text)
    if batch:
        yield batch


def reserved_ids(tokenizer: PreTrainedTokenizerFast) -> npt.NDArray[np.int32]:
    """Return the ids that no text may become, sorted: those of special tokens."""
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    ids = {index for index, token in added.items() if token.special}
    ids |= {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id} - {None}
    if tokenizer.unk_token_id != tokenizer.eos_token_id:
        ids.discard(tokenizer.unk_token_id)
    return np.array(sorted(ids), np.int32)


def _encode(
    backend: Tokenizer, texts: list[str], reserved: npt.NDArray[np.int32]
) -> list[npt.NDArray[np.int32]]:
    encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
    arrays = [np.array(encoding.ids, np.int32) for encoding in encodings]
    # A special token whose name the model's own vocabulary can spell (sentencepiece's "</s>") still
    # comes out as its id. Rare, so looked for in one pass over the batch.
    if np.isin(np.concatenate(arrays), reserved).any():
        for index, ids in enumerate(arrays):
            if np.isin(ids, reserved).any():
                arrays[index] = _encode_in_parts(backend, texts[index], reserved)
    return arrays


def _encode_in_parts(
    backend: Tokenizer, text: str, reserved: npt.NDArray[np.int32]
) -> npt.NDArray[np.int32]:
    """Cut the text within each reserved token and encode the parts, until none is left."""
    encoding = backend.encode(text, add_special_tokens=False)
    spans = [s for i, s in zip(encoding.ids, encoding.offsets) if i in reserved]
    if not spans:
        return np.array(encoding.ids, np.int32)
    if any(stop - start < 2 for start, stop in spans):
        start, stop = next(s for s in spans if s[1] - s[0] < 2)
        raise InvalidValueError(
            f"the text {text[start:stop]!r} can only be written with the id of a special token."
        )
    cuts = [0, *(start + 1 for start, _ in spans), len(text)]
    first, *others = [text[a:b] for a, b in itertools.pairwise(cuts)]
    inner = _without_prefix(backend)
    encoded = [_encode_in_parts(inner, part, reserved) for part in others]
    return np.concatenate([_encode_in_parts(backend, first, reserved), *encoded])


def _without_prefix(backend: Tokenizer) -> Tokenizer:
    """Return a tokenizer for what begins within a text: without the space put before each text."""
    from tokenizers import Tokenizer

    content = json.loads(backend.to_str())
    if not _drop_prefix(content):
        return backend
    inner = Tokenizer.from_str(json.dumps(content))
    inner.encode_special_tokens = True
    return inner


def _drop_prefix(content: dict[str, Any]) -> bool:
    """Change the parts of a tokenizer that put a space before each text; tell if there were any.

    What puts one before each word, or after each added token, stays as it is.
    """
    if not all(token["special"] for token in content["added_tokens"]):
        return False
    found = False
    normalizer = content["normalizer"] or {}
    if normalizer.get("type") == "Prepend":
        content["normalizer"], found = None, True
    steps = normalizer.get("normalizers", [])
    kept = [step for step in steps if step["type"] != "Prepend"]
    if len(kept) < len(steps):
        normalizer["normalizers"], found = kept, True
    first = content["pre_tokenizer"] or {}
    if first.get("type") == "Sequence":
        first = next(iter(first["pretokenizers"]), {})
    if first.get("type") == "Metaspace" and first["prepend_scheme"] != "never":
        first["prepend_scheme"], found = "never", True
    if first.get("type") == "ByteLevel" and first["add_prefix_space"]:
        first["add_prefix_space"], found = False, True
    return found


def _checked(texts: Sequence[str]) -> Iterator[str]:
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidTypeError(f"texts[{index}]: expected a string, got {type(text).__name__}.")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidValueError(
                f"texts[{index}]: character {error.start} is a lone surrogate, which is not text."
            ) from None
        yield text


def token_byte_lengths(tokenizer: PreTrainedTokenizerFast) -> npt.NDArray[np.int64] | None:
    """Return how many UTF-8 bytes of text each id stands for.

    Over the ids of a text they add up to its size in bytes, if nothing was unknown and no space was
    put in front (as sentencepiece does). A part of a character counts its own bytes. Special
    tokens, the unknown one too, count 0.

    Returns:
        int64 array of shape (vocabulary size,), or None where the tokens do not say, as in BERT's
        vocabulary, which forgets spaces.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    size = _size_rule(backend)
    if size is None:
        return None
    vocab = tokenizer.get_vocab()
    lengths = np.zeros(max(vocab.values()) + 1, np.int64)
    for token, index in vocab.items():
        lengths[index] = size(token)
    for index, added in tokenizer.backend_tokenizer.get_added_tokens_decoder().items():
        lengths[index] = 0 if added.special else len(added.content.encode())
    for role in ("unk", "bos", "eos", "pad"):
        index = getattr(tokenizer, f"{role}_token_id")
        if index is not None:
            lengths[index] = 0
    return lengths


def _size_rule(backend: dict[str, Any]) -> Any:
    """Return the function from a token to its bytes that the decoder implies, or None."""
    steps = _steps(backend.get("decoder"))
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return _byte_level_size
    spaced = [step for step in steps if step["type"] == "Metaspace"] or [
        step for step in steps if step["type"] == "Replace" and step["pattern"] == {"String": "▁"}
    ]
    if spaced and set(kinds) <= {"Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"}:
        return _sentencepiece_size if "ByteFallback" in kinds else _metaspace_size
    if kinds == ["Fuse"]:
        return _plain_size
    if kinds == ["Replace", "Fuse"] and steps[0]["content"] == "":
        prefix = steps[0]["pattern"]["String"]
        return lambda token: _plain_size(token.removeprefix(prefix))
    return None


def _steps(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    if decoder is None:
        return []
    return decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]


def _plain_size(token: str) -> int:
    return len(token.encode())


def _byte_level_size(token: str) -> int:
    known = all(character in BYTE_OF_CHARACTER for character in token)
    return len(token) if known else len(token.encode())


def _metaspace_size(token: str) -> int:
    return len(token.replace("▁", " ").encode())


def _sentencepiece_size(token: str) -> int:
    return 1 if re.fullmatch(r"<0x[0-9A-F]{2}>", token) else _metaspace_size(token)
