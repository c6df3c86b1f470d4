"""Which encoding a text that is not UTF-8 may have: a guess that is put in an error message."""

from __future__ import annotations

import codecs
from typing import NamedTuple

_JUDGED_BYTES = 1 << 16


class Guess(NamedTuple):
    """An encoding that a text may have.

    Attributes:
        named: The encoding as people write it.
        iconv: Its name for ``iconv -f``.
    """

    named: str
    iconv: str


def guess_encoding(content: bytes) -> Guess | None:
    """Return the encoding that a text seems to have; None where nothing speaks for one.

    Encodings of two bytes a character mostly pass for each other, so decoding without an error
    proves little. What decides is the script that comes out: Japanese has Hiragana, Korean hardly
    anything but Hangul, and Chinese keeps to the rows of frequent characters of its encoding.

    Args:
        content: Text, from its beginning or from a line end on.
    """
    content = content[:_JUDGED_BYTES]
    for codec, guess in (
        ("cp932", Guess("Shift_JIS", "CP932")),
        ("euc_jp", Guess("EUC-JP", "EUC-JP")),
    ):
        if _share(_decoded(content, codec), 0x3041, 0x30FF) > 0.25:
            return guess
    korean = _decoded(content, "cp949")
    if _share(korean, 0xAC00, 0xD7A3) > 0.8 and len(set(_foreign(korean))) > 2:
        return Guess("EUC-KR (CP949)", "CP949")
    if _alone(content) > 0.5:  # accented letters between ASCII ones
        return None
    chinese = _decoded(content, "gb18030")
    common = _common(chinese, "gb2312", 0xA1, 0xD7)
    if common > 0.7:
        return Guess("GB18030 (GBK)", "GB18030")
    if _common(_decoded(content, "big5"), "big5", 0xA1, 0xC6) > 0.7:
        return Guess("Big5", "BIG5")
    if common > 0.3 and _share(chinese, 0x4E00, 0x9FFF) > 0.5:
        return Guess("GB18030 (GBK) or Big5", "GB18030")
    return None


def _decoded(content: bytes, codec: str) -> str | None:
    """Return the text, a character cut off at its end aside; None if it is not in this encoding."""
    try:
        return codecs.getincrementaldecoder(codec)().decode(content)
    except UnicodeDecodeError:
        return None


def _foreign(text: str | None) -> list[str]:
    return [] if text is None else [character for character in text if character > "\x7f"]


def _share(text: str | None, low: int, high: int) -> float:
    """Return the share of the letters beyond ASCII that lie in a range."""
    letters = [ord(c) for c in _foreign(text) if c.isalpha() and not "\uff00" <= c <= "\uffef"]
    half_width = sum("\uff61" <= c <= "\uff9f" for c in _foreign(text))
    return sum(low <= c <= high for c in letters) / max(1, len(letters) + half_width)


def _common(text: str | None, codec: str, low: int, high: int) -> float:
    """Return the share of characters beyond ASCII in the rows of an encoding's frequent ones."""
    foreign = _foreign(text)
    rows = (character.encode(codec, "ignore")[:1] for character in foreign)
    return sum(bytes([low]) <= row <= bytes([high]) for row in rows) / max(1, len(foreign))


def _alone(content: bytes) -> float:
    """Return the share of the runs of bytes above ASCII that are of a single byte."""
    runs = "".join("x" if byte > 0x7F else " " for byte in content).split()
    return sum(len(run) == 1 for run in runs) / max(1, len(runs))
