"""Pairs of texts to examples: a prompt made of the source, and the target."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from lightning_llm.data.examples import Example, PlainTask, completion
from lightning_llm.data.rows import Row, field_of
from lightning_llm.errors import InvalidValueError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Empty = Literal["error", "skip"]


@dataclass(frozen=True)
class TranslationTask(PlainTask):
    """What a source and a target text become.

    Attributes:
        source_field: Name of the source text in a row.
        target_field: Name of the target text.
        template: The prompt; ``{source}`` stands for the source text.
        empty: What to do with a pair of which a side is empty.
    """

    source_field: str = "source"
    target_field: str = "target"
    template: str = "{source}\n"
    empty: Empty = "error"

    def options(self) -> dict[str, Any]:
        """Return the fields, as plain data."""
        return asdict(self)

    def texts(self, row: Row) -> Iterable[str]:
        """Return both sides: the vocabulary is shared."""
        source, target = self._sides(row)
        return self._prompt(source), target

    def example(self, row: Row, tokenizer: PreTrainedTokenizerFast) -> Example | None:
        """Return the example of a pair.

        Raises:
            ValueError: A side is missing, no text, or empty (with ``empty="error"``).
        """
        source, target = self._sides(row)
        if not (source.strip() and target.strip()):
            if self.empty == "skip":
                return None
            side = self.target_field if source.strip() else self.source_field
            raise InvalidValueError(
                f'{row[1]}: {side} is empty. Use empty="skip" to leave such pairs out.'
            )
        return completion(self._prompt(source), target, target, tokenizer)

    def _prompt(self, source: str) -> str:
        return self.template.replace("{source}", source)

    def _sides(self, row: Row) -> tuple[str, str]:
        fields, where = row
        sides = []
        for argument in ("source_field", "target_field"):
            name = getattr(self, argument)
            text = field_of(fields, name, where, argument)
            if not isinstance(text, str):
                raise InvalidValueError(f"{where}: {name!r}: expected a string, got {text!r:.60}.")
            sides.append(text)
        return sides[0], sides[1]
