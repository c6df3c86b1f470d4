"""Byte-level BPE through tiktoken: the same ids in a fraction of the time, or a reason why not."""

from __future__ import annotations

import itertools
import json
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_llm.data.safe_cuts import GPT2_SPLIT
from lightning_llm.data.tokenizer_encoding import BYTE_OF_CHARACTER, encode_texts, reserved_ids

if TYPE_CHECKING:
    import numpy.typing as npt
    from tiktoken import Encoding
    from transformers import PreTrainedTokenizerFast

Encode = Callable[[Sequence[str]], "list[npt.NDArray[np.int32]]"]

# Short texts go through tiktoken side by side, up to so many characters, with this between them.
_JOINED_CHARACTERS = 1 << 14
_BORDER = "\x00<|border of texts|>\x00"

# Each costs one search in every text.
_MOST_ADDED_TOKENS = 64
# Planes with characters; of the large ideographic and syllabic blocks, all alike, every 64th.
_CODE_POINTS = itertools.chain(
    range(0x3400),
    range(0x3400, 0xA000, 64),
    range(0xA000, 0xAC00),
    range(0xAC00, 0xD800, 64),
    range(0xE000, 0x17000),
    range(0x17000, 0x19000, 64),
    range(0x1A000, 0x20000),
    range(0x20000, 0x34000, 64),
    range(0xE0000, 0xE0200),
)
HARD_TEXTS = (
    "I'm you're he'll WE'VE it's I'd don't 'S o'clock ''s",
    "a  b   c    d\t\te \t f\n\n\ng\r\n\r\n  h\n \n\t\n   ",
    " \n \r \x0b \x0c \x1c\x1d \x85 \xa0 \u1680 \u2003\u2028\u2029 \u202f \u205f \u3000 \ufeff x",
    "1 12 123 1234 12345678901234567890 3.14 1,000 \u0661\u0662\u0663\u0664 \u2177 \xbd \xb2",
    "def f(x):\n    return x\n\n\n\tif not x != y:\n\t\tpass  # ---- ////\n",
    "日本語のテキスト。中文分词。한국어 ไทย हिन्दी עברית العربية",
    "e\u0301 n\u0303 a\u0308\u0323 A\u030a \u1e9b\u0323 \ufb01 \u212b \u2126",
    "👩\u200d👩\u200d👧 🇩🇪🇫🇷 👍🏽 \u263a\ufe0f 1\ufe0f\u20e3 \U0001d518\U0001d52b \U0001f9ff",
    "<|endoftext|> <|im_start|>user<|im_end|> <s></s> [UNK] <pad> <|endoftext|><|endoftext|>",
    "\x00\x01\x7f\x80\u200b\u200d\ufffd\uffff\U0010ffff \ue000",
    "a" * 700 + " " * 300 + "=" * 300 + "\n" * 300 + "\r\n" * 50 + "x",
    "".join(f"a{chr(point)} " for point in _CODE_POINTS),
)


class UnsuitableError(Exception):
    """Why tiktoken is not used."""


def tiktoken_encoder(tokenizer: PreTrainedTokenizerFast) -> Encode:
    """Return the function from texts to the ids of each (int32), to be called from many threads.

    The merges are proved equal, the pre-tokens are not: compare the ids of some texts. A text that
    tiktoken cannot do, or with the name of an added token that is not special, goes through the
    tokenizer itself.

    Raises:
        UnsuitableError: tiktoken is not installed, or the tokenizer does something it cannot do.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    pattern = _pattern(backend)
    ranks = _ranks(backend["model"])
    if set(reserved_ids(tokenizer).tolist()) & set(ranks.values()):
        raise UnsuitableError("text can spell a special token of this tokenizer")
    added = [token["content"] for token in backend["added_tokens"] if not token["special"]]
    if len(added) > _MOST_ADDED_TOKENS:
        raise UnsuitableError(f"the tokenizer has {len(added)} added tokens that are not special")
    normalized = _normalizer(tokenizer, backend)
    border = max(ranks.values()) + 1
    encoding = _encoding(pattern, ranks, border)

    alone = Lock()  # encode_texts switches the tokenizer to another mode and back

    def by_tokenizer(text: str) -> npt.NDArray[np.int32]:
        with alone:
            return encode_texts(tokenizer, [text])[0]

    def encode_run(run: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        normal = list(map(normalized, run))
        if any(name in text for text in (*run, *normal) for name in (_BORDER, *added)):
            return apart(run)
        joined = _BORDER.join(normal)
        try:
            ids = encoding.encode_to_numpy(
                joined, allowed_special={_BORDER}, disallowed_special=()
            ).view(np.int32)
        except ValueError:  # a run of a million spaces is too much for its regular expressions
            return apart(run)
        stops = [*np.flatnonzero(ids == border).tolist(), len(ids)]
        starts = [0, *(stop + 1 for stop in stops[:-1])]
        return [ids[start:stop] for start, stop in zip(starts, stops, strict=True)]

    def apart(run: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """The texts of a run that one call cannot do, and in the end the one text."""
        if len(run) == 1:
            return [by_tokenizer(run[0])]
        return [encode_run([text])[0] for text in run]

    return lambda texts: [ids for run in _runs(texts) for ids in encode_run(run)]


def _runs(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Neighbours that are encoded by one call: what it costs is more than a short text does."""
    start = size = 0
    for place, text in enumerate(texts):
        if size and size + len(text) > _JOINED_CHARACTERS:
            yield texts[start:place]
            start, size = place, 0
        size += len(text)
    if start < len(texts):
        yield texts[start:]


def _encoding(pattern: str, ranks: dict[bytes, int], border: int) -> Encoding:
    try:
        import tiktoken
    except ImportError:
        raise UnsuitableError("tiktoken is not installed") from None
    try:
        return tiktoken.Encoding(
            "lightning_llm",
            pat_str=pattern,
            mergeable_ranks=ranks,
            special_tokens={_BORDER: border},
        )
    except ValueError as error:  # a pattern for another engine of regular expressions
        raise UnsuitableError(f"tiktoken does not take the tokenizer's pattern: {error}") from None


def _normalizer(
    tokenizer: PreTrainedTokenizerFast, backend: dict[str, Any]
) -> Callable[[str], str]:
    kind = backend["normalizer"] and backend["normalizer"]["type"]
    if kind is None:
        return lambda text: text
    if kind != "NFC":
        raise UnsuitableError(f"the tokenizer has the normalizer {kind}")
    normalize = tokenizer.backend_tokenizer.normalizer.normalize_str
    return lambda text: text if unicodedata.is_normalized("NFC", text) else normalize(text)


def _pattern(backend: dict[str, Any]) -> str:
    """Return the regular expression of the pre-tokens."""
    steps = backend["pre_tokenizer"] or {"type": None}
    steps = steps["pretokenizers"] if steps["type"] == "Sequence" else [steps]
    *splits, last = steps
    if last["type"] != "ByteLevel" or last["add_prefix_space"] or len(splits) > 1:
        raise UnsuitableError("the tokenizer's pre-tokens are not those of one byte-level pattern")
    if not splits and last["use_regex"]:
        return GPT2_SPLIT
    if splits and not last["use_regex"] and splits[0]["type"] == "Split":
        split = splits[0]
        regex = split["pattern"].get("Regex")
        isolated = split["behavior"] == "Isolated" and not split["invert"]
        matches = split["behavior"] == "Removed" and split["invert"]
        if regex is not None and (isolated or matches):
            return regex
    raise UnsuitableError("the tokenizer's pre-tokens are not those of one regular expression")


def _ranks(model: dict[str, Any]) -> dict[bytes, int]:
    """Return the id of each token that text can become, if the order of ids is that of merges.

    tiktoken joins the two neighbours whose union has the lowest id; BPE takes the pair that comes
    first in its list. They agree if the list goes up in ids and each token can come about from the
    one pair only that is listed. It is so if spelling the token alone, with the merges before it,
    arrives at a listed pair: what lies between two borders that hold is spelled as if it were
    alone.
    """
    options = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    if model["type"] != "BPE" or any(model[option] for option in options):
        raise UnsuitableError("the tokenizer is no plain byte-level BPE")
    vocab: dict[str, int] = model["vocab"]
    if not BYTE_OF_CHARACTER.keys() <= vocab.keys():
        raise UnsuitableError("the vocabulary lacks single bytes")
    pairs: dict[str, set[tuple[str, str]]] = {}
    previous = -1
    for merge in model["merges"]:
        left, right = merge if isinstance(merge, list) else merge.split(" ")
        token = left + right
        if vocab[token] < previous:
            raise UnsuitableError("the order of the merges is not that of the ids")
        previous = vocab[token]
        pairs.setdefault(token, set()).add((left, right))
    ids = {token: vocab[token] for token in (*BYTE_OF_CHARACTER, *pairs)}
    reached = {token: ids[token] for token in BYTE_OF_CHARACTER}
    for token, listed in pairs.items():
        parts = _spelled(token, ids)
        if len(parts) == 2 and tuple(parts) not in listed:
            raise UnsuitableError("the vocabulary has a token with a merge that is not listed")
        # Some tokens no merge arrives at; a whole pre-token may still be one with ignore_merges.
        if len(parts) == 2 or model.get("ignore_merges"):
            reached[token] = ids[token]
    return {bytes(map(BYTE_OF_CHARACTER.__getitem__, token)): i for token, i in reached.items()}


def _spelled(token: str, ids: Mapping[str, int]) -> list[str]:
    """Join neighbours, lowest id of the union first, as long as it is below the token's own."""
    parts, limit = list(token), ids[token]
    while len(parts) > 2:
        unions = [ids.get(left + right, limit) for left, right in itertools.pairwise(parts)]
        best = min(unions)
        if best >= limit:
            break
        place = unions.index(best)
        parts[place : place + 2] = ["".join(parts[place : place + 2])]
    return parts
