"""The share of generated Python that parses."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator, Sequence

from torch import Tensor

from lightning_llm.errors import InvalidTypeError
from lightning_llm.metrics._sums import RatioOfSums

MAX_CHARACTERS = 100_000
"""Longer texts count as invalid: the time and memory of one text stay bounded."""

# What decides where a logical line ends: comments, strings, joined lines, brackets.
_TOKEN = re.compile(
    r"""#[^\n]*"""
    r"""|(?P<quote>\"{3}|'{3})(?:\\[\s\S]|[^\\])*?(?:(?P=quote)|\Z)"""
    r"""|"(?:\\[\s\S]|[^"\\\n])*"?|'(?:\\[\s\S]|[^'\\\n])*'?"""
    r"""|\\\n|(?P<open>[(\[{])|(?P<close>[)\]}])|(?P<end>\n)"""
)
# Lines that cannot be inside an expression, and so show that a bracket was forgotten.
_STATEMENT = re.compile(
    r"^[ \t]*(?:(?:def|class|import|return|while|with|try|raise|except|finally)\b|@)", re.MULTILINE
)
_HANDLERS = ("except", "finally")
_STUB = "class _: pass\n"  # also what a decorator may stand in front of


def is_valid_python(text: str) -> bool:
    """Tell whether ``text`` is Python, but for its end if that was cut off.

    The text is parsed (`ast.parse`), never executed. Where that fails, its last statement, if it
    does not end, is cut off: the last logical line without a line end behind it or with an open
    bracket or string. Statements around it that lack a body or a handler then are completed.
    Everything before the cut has to parse. A text that is nothing but an unfinished statement is
    not valid.

    Args:
        text: At most ``MAX_CHARACTERS``; a longer one is not valid.
    """
    if len(text) > MAX_CHARACTERS:
        return False
    return _parses(text) or any(map(_parses, _completed(text)))


def _parses(text: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes and comparisons, which are valid
            ast.parse(text)
    # Null bytes and lone surrogates; nesting that the parser's stack does not hold.
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return False
    return True


def _completed(text: str) -> Iterator[str]:
    """Yield what may stand for a text whose end is missing; each has a statement of the text."""
    kept, rest = _cut(text)
    code = _TOKEN.sub(lambda token: token[0] if token[0] in "()[]{}\n" else "_", rest)
    if _STATEMENT.search(code, code.find("\n") + 1 or len(code)):
        return
    lines = [line for line in kept.splitlines() if line.strip() and line.lstrip()[0] != "#"]
    if not lines:
        return
    indent = _indent(rest if rest.strip() else lines[-1])
    if _without_comment(lines[-1]).endswith(":"):
        indent = _indent(lines[-1]) + "    "
    word = re.match(r"\w*", rest.lstrip(" \t"))
    handled = word is not None and any(handler.startswith(word[0]) for handler in _HANDLERS)
    handlers = "".join(f"{i}finally: pass\n" for i in _open_tries(lines, indent, handled))
    for stub in ("", indent + _STUB):
        yield kept + stub
        if handlers:
            yield kept + stub + handlers


def _cut(text: str) -> tuple[str, str]:
    """Split before the last logical line, if that is not finished; else behind the text."""
    depth = boundary = 0
    for token in _TOKEN.finditer(text):
        if token["open"]:
            depth += 1
        elif token["close"]:
            depth = max(0, depth - 1)
        elif token["end"] and depth == 0:
            boundary = token.end()
    return text[:boundary], text[boundary:]


def _open_tries(lines: list[str], indent: str, handled: bool) -> Iterator[str]:
    """Yield the indentation of each ``try`` around the end that has no handler, inside out."""
    width = len(indent) + handled  # a handler that was cut off, perhaps, stands where its try does
    for line in reversed(lines):
        own = _indent(line)
        if len(own) < width:
            width = len(own)
            if re.match(r"try\s*:", line.lstrip(" \t")):
                yield own


def _indent(line: str) -> str:
    return line[: len(line) - len(line.lstrip(" \t"))]


def _without_comment(line: str) -> str:
    found = next((t for t in _TOKEN.finditer(line) if t[0].startswith("#")), None)
    return (line if found is None else line[: found.start()]).rstrip()


class SyntaxValidity(RatioOfSums):
    """The share of texts that are valid Python, 0 to 100; see `is_valid_python`.

    Nothing is executed.

    Example::

        validity = SyntaxValidity()
        validity.update(["x = 1\\n", "def f(:\\n"])
        validity.compute()    # 50.0
    """

    higher_is_better = True

    def update(self, texts: Sequence[str]) -> None:
        """Add texts: prompts with their continuations.

        Args:
            texts: Python source.

        Raises:
            TypeError: ``texts`` is a single string.
        """
        if isinstance(texts, str):
            raise InvalidTypeError("texts must be a list of strings, not a string")
        self._accumulate(sum(map(is_valid_python, texts)), len(texts))

    def compute(self) -> Tensor:
        """The share, 0 to 100, as a 0-dim float64 tensor; NaN if there was no text."""
        return 100 * self.numerator / self.denominator
