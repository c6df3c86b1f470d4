"""Examples with targets: what a task makes of a row, and its token ids.

An example is a sequence of pieces of which some are targets: the answer to a prompt, or every
assistant turn of a conversation. Prompt and target are encoded separately, so that the prompt's
ids in training are those that generation starts from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from lightning_llm.data.rows import Row
from lightning_llm.data.special_frame import special_frame
from lightning_llm.data.tokenizer import TokenizerSpec, encode_texts
from lightning_llm.errors import InvalidValueError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Piece(NamedTuple):
    """A part of an example.

    Attributes:
        text: The text.
        is_target: Whether its tokens are predicted.
        is_markup: Whether the names of special tokens in it stand for these tokens; in what users
            write they are plain text.
    """

    text: str
    is_target: bool = False
    is_markup: bool = False


class Rendered(NamedTuple):
    """A text that is encoded as a whole, as the tokenizer does it, and what of it is learned.

    Attributes:
        text: The text; names of special tokens in it stand for these tokens.
        targets: Start and end of the parts whose tokens are predicted.
        literal: Start and end of names of special tokens that are plain text.
    """

    text: str
    targets: tuple[tuple[int, int], ...]
    literal: tuple[tuple[int, int], ...] = ()


class Example(NamedTuple):
    """What one row becomes.

    Attributes:
        pieces: In order; the special tokens that the tokenizer puts in front of a text come first.
        prompt: What generation starts from.
        references: What it should give: one text or several.
        rendered: What takes the place of pieces where boundaries are not to cut tokens. It begins
            as the chat template has it.
    """

    pieces: tuple[Piece, ...]
    prompt: str
    references: str | list[str]
    rendered: Rendered | None = None


RowErrors = Literal["raise", "skip"]


class Task(Protocol):
    """From rows to examples."""

    def options(self) -> dict[str, Any]:
        """Return plain data that changes whenever the same rows would give other examples."""

    def adapted(self, spec: TokenizerSpec) -> TokenizerSpec:
        """Return the specification with the special tokens that the task needs."""

    def equip(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Give a loaded or trained tokenizer what the task needs."""

    def texts(self, row: Row) -> Iterable[str]:
        """Return the texts of a row that a tokenizer learns from."""

    def example(self, row: Row, tokenizer: PreTrainedTokenizerFast) -> Example | None:
        """Return the example of a row, None for a row that is left out."""

    def remarks(self) -> list[str]:
        """Return what is worth a warning once all rows are read."""


class PlainTask:
    """The tokenizer's part of tasks that need nothing of it but an end of text."""

    def adapted(self, spec: TokenizerSpec) -> TokenizerSpec:
        """Return the specification as it is."""
        return spec

    def equip(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Change nothing."""

    def remarks(self) -> list[str]:
        """Return nothing: every field that is read is used."""
        return []


def check_text(example: Example, where: str) -> None:
    """Check that an example can be written as UTF-8.

    Raises:
        ValueError: Half of a surrogate pair stands alone, as ``"\\ud83d"`` in JSON does; the row's
            place is named.
    """
    pieces = [piece.text for piece in example.pieces]
    for text in [*pieces, example.rendered.text if example.rendered else ""]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidValueError(
                f"{where}: {text[error.start]!a} is half of a surrogate pair, which is no text."
            ) from None


def completion(
    prompt: str, target: str, references: str | list[str], tokenizer: PreTrainedTokenizerFast
) -> Example:
    """Return the example of a prompt and what follows, up to the end of text.

    A space goes in front of the target where the prompt does not end in white space: tokenizers
    that attach spaces to words know words by their space.
    """
    space = "" if prompt[-1:].isspace() else " "
    pieces = (
        Piece(prompt),
        Piece(space + target, is_target=True),
        Piece(str(tokenizer.eos_token), is_target=True, is_markup=True),
    )
    return Example(pieces, prompt, references)


def leading_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Return the special tokens that the tokenizer puts in front of every text."""
    return special_frame(tokenizer)[0]


def special_tokens_pattern(tokenizer: PreTrainedTokenizerFast) -> re.Pattern[str]:
    """Return what finds special tokens in markup, with the white space that they swallow."""
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder().values()
    special = sorted((t for t in added if t.special), key=lambda t: -len(t.content))
    names = [
        (r"\s*" if token.lstrip else "")
        + f"(?:{re.escape(token.content)})"
        + (r"\s*" if token.rstrip else "")
        for token in special
    ]
    return re.compile("|".join(names) if names else r"(?!)")


class _Run(NamedTuple):
    text: str
    is_target: bool
    special: int | None  # its id, of a special token


class ExampleEncoder:
    """Encode examples into ids and which of them are targets.

    Text between two special tokens is encoded as one, as the tokenizer would do with the whole,
    except that a cut lies where targets begin or end.

    Args:
        tokenizer: A fast tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self._pattern = special_tokens_pattern(tokenizer)
        self._leading = np.array(leading_ids(tokenizer), dtype=np.int32)
        self._whole = WholeEncoder(tokenizer)

    def __call__(
        self, examples: Sequence[Example]
    ) -> list[tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]]:
        """Return for each example its ids and, aligned with them, 1 for each that is a target."""
        whole = iter(self._whole([one.rendered for one in examples if one.rendered is not None]))
        pieces = iter(self._of_pieces([one for one in examples if one.rendered is None]))
        return [next(pieces if one.rendered is None else whole) for one in examples]

    def _of_pieces(
        self, examples: Sequence[Example]
    ) -> list[tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]]:
        runs = [list(self._runs(example.pieces)) for example in examples]
        texts = [run.text for one in runs for run in one if run.special is None]
        arrays = iter(encode_texts(self.tokenizer, texts) if texts else [])
        encoded = []
        for one in runs:
            parts = [self._leading]
            marks = [np.zeros(len(self._leading), dtype=np.uint8)]
            for run in one:
                ids = next(arrays) if run.special is None else np.array([run.special], np.int32)
                parts.append(ids)
                marks.append(np.full(len(ids), run.is_target, dtype=np.uint8))
            encoded.append((np.concatenate(parts), np.concatenate(marks)))
        return encoded

    def _runs(self, pieces: Sequence[Piece]) -> Iterator[_Run]:
        text, is_target = "", False
        for part in self._parts(pieces):
            if text and (part.special is not None or part.is_target != is_target):
                yield _Run(text, is_target, None)
                text = ""
            if part.special is not None:
                yield part
            else:
                text, is_target = text + part.text, part.is_target
        if text:
            yield _Run(text, is_target, None)

    def _parts(self, pieces: Sequence[Piece]) -> Iterator[_Run]:
        """Cut markup at its special tokens."""
        for piece in pieces:
            start = 0
            for found in self._pattern.finditer(piece.text) if piece.is_markup else ():
                if start < found.start():
                    yield _Run(piece.text[start : found.start()], piece.is_target, None)
                token: Any = self.tokenizer.convert_tokens_to_ids(found[0].strip())
                yield _Run("", piece.is_target, token)
                start = found.end()
            if start < len(piece.text):
                yield _Run(piece.text[start:], piece.is_target, None)


class WholeEncoder:
    """Encode rendered texts exactly as the tokenizer does, and find the tokens of their targets.

    A token is a target if any of it is: where the tokenizer joins the end of a prompt and the
    start of an answer, that token is learned. A special token counts by its name, not by the white
    space it swallows.

    Args:
        tokenizer: A fast tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
        self._special = {index: token.content for index, token in added.items() if token.special}
        # One that takes nothing from its neighbours, to put in front of what begins within a text.
        fences = [
            (index, token.content)
            for index, token in added.items()
            if token.special and not (token.lstrip or token.rstrip or token.single_word)
        ]
        self._fence = fences[0] if fences else None
        self._made: Any = None

    def __call__(
        self, texts: Sequence[Rendered]
    ) -> list[tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]]:
        """Return for each text its ids and, aligned with them, 1 for each that is a target."""
        if not texts:
            return []
        parts = [list(self._parts(one)) for one in texts]
        flat = [fence + one.text[a:b] for one, cuts in zip(texts, parts) for a, b, fence in cuts]
        encodings = iter(self._backend.encode_batch(flat, add_special_tokens=False))
        found = []
        for one, cuts in zip(texts, parts):
            ids: list[int] = []
            marks: list[int] = []
            for start, _, fence in cuts:
                encoding = next(encodings)
                skipped = 1 if fence else 0
                offset = start - len(fence)
                ids += encoding.ids[skipped:]
                for index, (a, b) in zip(encoding.ids[skipped:], encoding.offsets[skipped:]):
                    marks.append(self._is_target(one, index, a + offset, b + offset))
            found.append((np.array(ids, np.int32), np.array(marks, np.uint8)))
        return found

    def _parts(self, one: Rendered) -> Iterator[tuple[int, int, str]]:
        """Cut a text within the names that are plain text, so that none is left."""
        fence = "" if self._fence is None else self._fence[1]
        start = 0
        for first, last in one.literal:
            middle = (first + last + 1) // 2
            yield start, middle, fence if start else ""
            start = middle
        yield start, len(one.text), fence if start else ""

    def _is_target(self, one: Rendered, index: int, start: int, end: int) -> int:
        name = self._special.get(index)
        if name is not None:
            start = max(one.text.find(name, start, end), start)
            end = start + 1
        return int(any(start < b and (end > a or start >= a) for a, b in one.targets))

    @property
    def _backend(self) -> Any:
        """A tokenizer whose offsets have all of a token; some leave out spaces at its edges."""
        if self._made is None:
            backend: Any = self.tokenizer.backend_tokenizer
            if '"trim_offsets":true' in backend.to_str():
                from tokenizers import Tokenizer, processors

                backend = Tokenizer.from_str(backend.to_str())
                backend.post_processor = processors.ByteLevel(trim_offsets=False)
            self._made = backend
        return self._made
