"""Finds a font that has the letters of a text: names of runs are in any script."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

# Files that Pillow looks for in the system's folders of fonts. Pillow's own font has the letters of
# English; the first here those of European languages, the others also Chinese, Japanese and Korean.
FONT_FILES = (
    "DejaVuSans.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKsc-Regular.otf",
    "NotoSansSC-Regular.otf",
    "SourceHanSans-Regular.ttc",
    "SourceHanSansSC-Regular.otf",
    "wqy-microhei.ttc",
    "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf",
    "DroidSansFallback.ttf",
    "msyh.ttc",  # Microsoft YaHei
    "simhei.ttf",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "STHeiti Medium.ttc",
    "Arial Unicode.ttf",
)
_NO_LETTER = "\uffff"  # what every font draws its box for


def missing_letters(text: str, font: Any) -> set[str]:
    """Letters of ``text`` in whose place ``font`` draws the box of an unknown one."""
    box = bytes(font.getmask(_NO_LETTER))
    return {
        letter
        for letter in set(text)
        if letter.isprintable() and not letter.isspace()
        if bytes(font.getmask(letter)) == box
    }


def choose_font(text: str, fonts: Iterable[Any]) -> tuple[Any, set[str]]:
    """The first font that has all letters of ``text``, else one that lacks the fewest.

    Args:
        text: What is to be drawn.
        fonts: At least one, in the order of preference; those after the first that fits are not
            asked for.

    Returns:
        The font, and the letters it lacks.
    """
    best: tuple[Any, set[str]] | None = None
    for font in fonts:
        missing = missing_letters(text, font)
        if best is None or len(missing) < len(best[1]):
            best = font, missing
        if not missing:
            break
    assert best is not None
    return best


class Fonts:
    """Fonts for the texts of some pictures, and what they lacked.

    Args:
        load: Returns a font by the name of its file and its size, Pillow's own for ``None``, and
            raises ``OSError`` where it is not installed.
    """

    def __init__(self, load: Callable[[str | None, int], Any] | None = None) -> None:
        self._load = cache(load or _load)
        self._missing: set[str] = set()
        self._known: dict[tuple[str, int], Any] = {}  # the same names stand in every picture

    def of(self, text: str, size: int) -> Any:
        """The font to draw ``text`` with."""
        if (text, size) not in self._known:
            self._known[text, size], missing = choose_font(text, self._installed(size))
            self._missing |= missing
        return self._known[text, size]

    def _installed(self, size: int) -> Iterator[Any]:
        for name in (None, *FONT_FILES):
            try:
                yield self._load(name, size)
            except OSError:
                continue

    def warn(self) -> None:
        """Say once what no font had, and what to install."""
        if self._missing:
            letters = "".join(sorted(self._missing))
            shown = letters if len(letters) <= 12 else letters[:12] + "…"
            warnings.warn(
                f"no font here has {shown!r}, drawn as boxes in the PNGs; install one, such as "
                f"Noto Sans CJK for Chinese, Japanese and Korean (apt install fonts-noto-cjk, "
                f"dnf install google-noto-sans-cjk-fonts). The HTML page needs none",
                stacklevel=2,
            )


def _load(name: str | None, size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size=size) if name is None else ImageFont.truetype(name, size)
