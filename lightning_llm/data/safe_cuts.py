"""Where a text may be cut so that the ids of its parts, in their order, are those of the whole.

What a tokenizer does at a cut follows from its parts: added tokens are found, each text between
them is normalised, cut into pre-tokens, and each of these is encoded by itself. Two kinds of places
are looked at, because texts have many of them:

- after the line end between two characters that are not white space;
- before the one space between two such characters.

A kind is safe if no added token and no step of the normalizer reaches across the place or depends
on what lies beyond it, and if the pre-tokenizer always begins a pre-token there, or else no
token of the vocabulary has the two characters side by side that meet there. A space put in front of
each text (Llama, Mistral, RoBERTa) is no obstacle to the second kind: it is not put before a space,
or takes the place of the one that is left out at the cut. Whatever is not understood is not safe.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lightning_llm.data.pattern_positions import (
    NONSPACE,
    Pattern,
    UnknownPatternError,
    parse_pattern,
)
from lightning_llm.data.tokenizer_encoding import encodes_by_table

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# What the `tokenizers` library means by ByteLevel(use_regex=True): GPT-2's pre-tokens.
GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ASCII = "!-~"
# Characters that no Unicode normal form, change of case or loss of accents turns into space or
# nothing: ASCII, Cyrillic, Hebrew, Arabic, Devanagari, Thai, kana, Han, Hangul.
_STEADY = (
    "!-~\u0400-\u0481\u048a-\u052f\u05d0-\u05ea\u0620-\u064a\u0904-\u0939\u0e01-\u0e30"
    "\u3041-\u3096\u30a1-\u30fa\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3"
)
# Normalizers that leave white space as it is.
_SPARING = {"NFC", "NFD", "Lowercase", "StripAccents"}
_MOST_EXCEPTIONS = 2000


class _UnsafeError(Exception):
    """Why a kind of places is not safe."""


@dataclass(frozen=True)
class Cuts:
    """Where texts may be cut.

    Attributes:
        places: Finds them; None where there are none. What the group ``line`` matches belongs to
            the part before the cut, ``space`` to the part after it, ``gap`` to neither.
    """

    places: re.Pattern[str] | None

    def find(self, text: str, start: int) -> tuple[int, int] | None:
        """Return the end of one part and the start of the next, at or after a place in a text."""
        found = self.places.search(text, start) if self.places is not None else None
        if found is None:
            return None
        if found.lastgroup == "line":
            return found.end(), found.end()
        return found.start(), found.end() if found.lastgroup == "gap" else found.start()

    def chunks(self, pieces: Iterable[str], size: int) -> Iterator[str]:
        """Yield a text that comes in any pieces, in parts of about ``size`` characters or more.

        Only what reaches to the next place is held; where there is none, that is the whole text.
        """
        held: list[str] = []  # the beginning of a part, in which there is no place
        count = 0  # its characters
        text = ""
        for piece in pieces:
            text, start = text + piece, 0
            while cut := self.find(text, start + max(not held, size - count - 1)):
                yield "".join([*held, text[start : cut[0]]])
                held, count, start = [], 0, cut[1]
            if len(text) - start > 2:
                # A place shows by three characters, so the next piece may complete one.
                held.append(text[start:-2])
                count, start = count + len(held[-1]), len(text) - 2
            text = text[start:]
        yield "".join([*held, text])


ANYWHERE = Cuts(re.compile(r"(?s)(?<=.)(?=.)"))


@dataclass
class _Place:
    """A kind of places while a tokenizer's parts are gone through.

    Attributes:
        name: ``line`` or ``space``.
        left: The character on its left; `NONSPACE` for any that is not white space.
        right: The one on its right.
        characters: Which characters stand around the line end or space, as a class.
        excluded: Characters that must not stand there.
        closed: Whether a pre-token is known to begin there.
        prepended: What the normalizer puts in front of a text.
        stripped: Whether it takes white space off the ends of a text.
        rewritten: Whether other characters than the space may have become others.
        spelled: Whether characters stand for themselves, rather than for bytes.
    """

    name: str
    left: str
    right: str
    characters: str = r"\S"
    excluded: set[str] = field(default_factory=set)
    closed: bool = False
    prepended: str | None = None
    stripped: bool = False
    rewritten: bool = False
    spelled: bool = True

    @property
    def is_line(self) -> bool:
        return self.name == "line"

    @property
    def symbol(self) -> str:
        """What has become of the line end or space."""
        return self.left if self.is_line else self.right

    def become(self, symbol: str) -> None:
        if len(symbol) != 1:
            raise _UnsafeError("the space becomes several characters")
        if self.is_line:
            self.left = symbol
        else:
            self.right = symbol

    def only(self, characters: str) -> None:
        if self.characters != _ASCII:
            self.characters = characters

    def expression(self) -> str:
        """Return the regular expression that finds the places."""
        around = self.characters if self.characters == r"\S" else f"[{self.characters}]"
        none = "".join(map(re.escape, sorted(self.excluded)))
        if self.is_line:
            return rf"(?P<line>(?<={around})\n(?={around}){f'(?![{none}])' if none else ''})"
        name = "space" if self.prepended is None else "gap"
        not_after = f"(?<![{none}])" if none else ""
        return rf"(?P<{name}>(?<={around}){not_after} (?={around}))"


def safe_cuts(tokenizer: PreTrainedTokenizerFast) -> Cuts:
    """Return where texts may be cut without changing their ids.

    What is encoded character by character may be cut anywhere. The proof is of texts in which the
    names of special tokens are text, see `encode_texts`.

    Args:
        tokenizer: What will encode the parts.
    """
    if encodes_by_table(tokenizer):
        return ANYWHERE
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    expressions = []
    for place in (_Place("line", "\n", NONSPACE), _Place("space", NONSPACE, " ")):
        try:
            _added_tokens(place, backend)
            _normalizer(place, backend["normalizer"])
            if place.stripped and not _removes_space(backend["pre_tokenizer"]):
                raise _UnsafeError("the ends of a text lose their space")
            _pre_tokenizer(place, backend["pre_tokenizer"])
            if not place.closed:
                _model(place, backend["model"])
        except (_UnsafeError, UnknownPatternError):
            continue
        expressions.append(place.expression())
    return Cuts(re.compile("|".join(expressions)) if expressions else None)


def _added_tokens(place: _Place, backend: dict[str, Any]) -> None:
    """Check that ordinary added tokens, which are looked for before all else, stay on one side."""
    ordinary = [token for token in backend["added_tokens"] if not token["special"]]
    kinds = {step["type"] for step in _steps(backend["normalizer"])}
    for token in ordinary:
        if token["lstrip"] or token["rstrip"]:
            raise _UnsafeError("an added token takes the space beside it")
        spaces = [character.isspace() or character == "▁" for character in token["content"]]
        across = (True, False) if place.is_line else (False, True)
        if across in itertools.pairwise(spaces):
            raise _UnsafeError("an added token reaches across")
        if any(spaces) and token["normalized"] and kinds - _SPARING:
            raise _UnsafeError("an added token of spaces is normalised")
    if ordinary and kinds & {"Prepend", "Strip"}:
        raise _UnsafeError("texts between added tokens have ends of their own")


def _steps(step: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, sequences within sequences taken apart."""
    if step is None:
        return
    if step["type"] == "Sequence":
        for one in step.get("normalizers") or step.get("pretokenizers") or ():
            yield from _steps(one)
    else:
        yield step


# ---------------------------------------------------------------------------- normalizer


def _normalizer(place: _Place, normalizer: dict[str, Any] | None) -> None:
    for step in _steps(normalizer):
        kind = step["type"]
        if kind in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents"):
            place.only(_STEADY)
            place.rewritten = True
        elif kind == "BertNormalizer":
            # Control characters vanish, line ends become spaces, Han characters get some around.
            place.only(_ASCII)
            place.rewritten = True
            if place.is_line and step["clean_text"]:
                place.become(" ")
        elif kind == "Replace":
            _replace(place, step)
        elif kind == "Prepend":
            if place.is_line or place.prepended is not None:
                raise _UnsafeError("something is put in front of each text")
            place.prepended = step["prepend"]
        elif kind == "Strip":
            # Texts end in a character that stays, and may begin with the space of the cut.
            place.stripped |= place.is_line or step["strip_left"]
        elif kind in ("Precompiled", "Nmt") and not place.is_line:
            if kind == "Precompiled" and not _is_identity(step):
                raise _UnsafeError("the table of characters changes ASCII")
            if kind == "Nmt" and place.right == "▁":
                place.become(" ")
            place.only(_ASCII)
        else:
            raise _UnsafeError(f"the normalizer {kind}")
    if place.prepended is not None and place.prepended != place.right:
        raise _UnsafeError("what is put in front of each text is no space")


def _replace(place: _Place, step: dict[str, Any]) -> None:
    text, content = step["pattern"].get("String"), step["content"]
    if text is None:
        pattern = parse_pattern(step["pattern"]["Regex"])
        if pattern.has_lookaheads or pattern.may_match(NONSPACE) or pattern.may_match("\n"):
            raise _UnsafeError("a regular expression replaces text")
        if place.left == " ":
            raise _UnsafeError("line ends have become spaces that may be replaced")
        if not place.is_line and _alone(step, place.right):
            place.become(content)
    elif text == " ":
        if place.symbol == " ":
            place.become(content)
    elif text.isspace() and "\n" not in text and len(text) > 1:
        pass  # runs of space, which no cut touches
    elif any(c.isspace() or c == "▁" for c in text) or not content or not _is_solid(content):
        raise _UnsafeError("text is replaced")
    else:
        place.rewritten = True


def _is_solid(text: str) -> bool:
    return not any(character.isspace() or character == "▁" for character in text)


def _alone(step: dict[str, Any], character: str) -> bool:
    from tokenizers import Regex, normalizers

    mark = "\ue000"
    return (
        normalizers.Replace(Regex(step["pattern"]["Regex"]), mark).normalize_str(character) == mark
    )


def _is_identity(step: dict[str, Any]) -> bool:
    from tokenizers import Tokenizer, models

    probe = json.loads(Tokenizer(models.BPE()).to_str()) | {"normalizer": step}
    normalizer = Tokenizer.from_str(json.dumps(probe)).normalizer
    return all(normalizer.normalize_str(chr(code)) == chr(code) for code in range(0x20, 0x7F))


# ---------------------------------------------------------------------------- pre-tokenizer

_SPACE_REMOVING = ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")


def _removes_space(pre_tokenizer: dict[str, Any] | None) -> bool:
    first = next(_steps(pre_tokenizer), None)
    return first is not None and first["type"] in _SPACE_REMOVING


def _pre_tokenizer(place: _Place, pre_tokenizer: dict[str, Any] | None) -> None:
    for step in _steps(pre_tokenizer):
        kind = step["type"]
        if not (place.spelled or place.closed):
            raise _UnsafeError("bytes are cut into pre-tokens")
        if kind == "Metaspace":
            _metaspace(place, step)
        elif place.closed:
            place.spelled &= kind != "ByteLevel"  # else it works on each pre-token by itself
        elif kind in _SPACE_REMOVING:
            place.closed = place.symbol.isspace()
            if not place.closed and kind == "Whitespace":
                _split(place, parse_pattern(r"\w+|[^\w\s]+"), removed=True, invert=True)
        elif kind == "ByteLevel":
            if step["add_prefix_space"] and (place.is_line or place.right != " "):
                raise _UnsafeError("a space is put in front of each text")
            if step["use_regex"]:
                _split(place, parse_pattern(GPT2_SPLIT), removed=False, invert=False)
            place.spelled = False
        elif kind == "Split":
            _split_step(place, step)
        elif kind == "CharDelimiterSplit":
            place.closed = step["delimiter"] == place.symbol
        elif kind == "Punctuation" and step["behavior"] in ("Isolated", "Removed"):
            pass
        elif kind != "Digits":
            raise _UnsafeError(f"the pre-tokenizer {kind}")


def _metaspace(place: _Place, step: dict[str, Any]) -> None:
    scheme, mark = step["prepend_scheme"], step["replacement"]
    if place.is_line:
        # "first" looks at the place in the text, "always" at each text or pre-token.
        if scheme == "first" or (scheme == "always" and not place.closed):
            raise _UnsafeError("a space is put in front of each text")
        if place.left == " ":
            place.become(mark)
        return
    if place.closed:
        if scheme == "first" and not place.spelled:
            raise _UnsafeError("a space is put in front of each text")
        return  # the first pre-token begins with the space, or does not begin the text
    if place.right not in (" ", mark):
        raise _UnsafeError("the space has become another character")
    place.become(mark)
    place.closed = bool(step["split"])


def _split_step(place: _Place, step: dict[str, Any]) -> None:
    text = step["pattern"].get("String")
    source = step["pattern"]["Regex"] if text is None else _escaped(text)
    pattern = parse_pattern(source)
    behavior = step["behavior"]
    if behavior not in ("Isolated", "Removed"):
        if pattern.may_match(place.left) or pattern.may_match(place.right):
            raise _UnsafeError(f"pre-tokens are {behavior}")
        return
    _split(place, pattern, removed=behavior == "Removed", invert=step["invert"])


def _escaped(text: str) -> str:
    return "".join(c if c in " \t\r\n" else f"\\x{{{ord(c):X}}}" for c in text)


def _split(place: _Place, pattern: Pattern, *, removed: bool, invert: bool) -> None:
    """Close the place if the matches of an expression always end or begin there.

    Matches are found from left to right, each where the last one ended. None runs across the
    place. So those on its left are the same whether the text ends there or not, unless a lookahead
    at the place decides: then the match is of the line end alone, which nothing but white space can
    precede in it, and it is a match of that one character either way.
    """
    if pattern.crosses(place.left, place.right):
        raise _UnsafeError("a pre-token can reach across")
    always = pattern.always_matches(place.symbol)
    for position in pattern.looks(place.left, place.right):
        if not (place.is_line and always) or pattern.may_precede(position, NONSPACE):
            raise _UnsafeError("a lookahead can tell whether the text goes on")
    unmatched_is_dropped = removed and invert and not pattern.may_match(place.symbol)
    place.closed = always or unmatched_is_dropped


# ---------------------------------------------------------------------------- model


def _model(place: _Place, model: dict[str, Any]) -> None:
    """Close the place if no token has the two characters side by side.

    That holds for BPE, whose merges on either side do not depend on each other. Unigram compares
    sums over the whole text, which rounding makes depend on all of it.
    """
    options = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
    if model["type"] != "BPE" or any(model.get(option) for option in options):
        raise _UnsafeError("the model works on the whole text")
    vocab: dict[str, int] = model["vocab"]
    if not model["merges"] and not model.get("fuse_unk"):
        place.closed = True  # character by character
        return
    symbol = place.symbol
    known = symbol in vocab or (model.get("byte_fallback") and _has_bytes(symbol, vocab))
    if not place.spelled or place.rewritten or not known:
        raise _UnsafeError("the characters of the vocabulary are not those of the text")
    for token in vocab:
        if symbol not in token:
            continue
        for left, right in itertools.pairwise(token):
            if place.is_line and left == symbol:
                place.excluded.add(right)
            elif not place.is_line and right == symbol:
                place.excluded.add(left)
    if len(place.excluded) > _MOST_EXCEPTIONS:
        raise _UnsafeError("many tokens reach across")
    place.closed = True


def _has_bytes(character: str, vocab: dict[str, int]) -> bool:
    return all(f"<0x{byte:02X}>" in vocab for byte in character.encode())
