"""Questions on a context to examples: a prompt made of both, and the first answer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lightning_llm.data.examples import Example, PlainTask, completion
from lightning_llm.data.rows import Row, field_of
from lightning_llm.errors import InvalidValueError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class QATask(PlainTask):
    """What a question becomes.

    Attributes:
        context_field: Name of the context in a row.
        question_field: Name of the question.
        answers_field: Name of the answers: a text, a list of texts, or SQuAD's
            ``{"text": [...]}``.
        template: The prompt; ``{context}`` and ``{question}`` stand for the texts.
        no_answer: What to answer where a row has no answer; None refuses such rows.
    """

    context_field: str = "context"
    question_field: str = "question"
    answers_field: str = "answers"
    template: str = "{context}\n\nQuestion: {question}\nAnswer:\n"
    no_answer: str | None = None

    def options(self) -> dict[str, Any]:
        """Return the fields, as plain data."""
        return asdict(self)

    def texts(self, row: Row) -> Iterable[str]:
        """Return prompt and answers."""
        prompt, answers = self._prompt_and_answers(row)
        return prompt, *answers

    def example(self, row: Row, tokenizer: PreTrainedTokenizerFast) -> Example:
        """Return the example of a question; it learns the first answer, all are references.

        Raises:
            ValueError: A field is missing or no text, or there is no answer.
        """
        prompt, answers = self._prompt_and_answers(row)
        return completion(prompt, answers[0], answers, tokenizer)

    def _prompt_and_answers(self, row: Row) -> tuple[str, list[str]]:
        fields, where = row
        texts = {}
        for name in ("context", "question"):
            argument = f"{name}_field"
            text = field_of(fields, getattr(self, argument), where, argument)
            if not isinstance(text, str) or not text.strip():
                raise InvalidValueError(f"{where}: {name}: expected a text, got {text!r:.60}.")
            texts[name] = text
        # One pass over the template: a context that contains "{question}" stays as it is.
        before, _, after = self.template.partition("{context}")
        prompt = texts["context"].join(
            part.replace("{question}", texts["question"]) for part in (before, after)
        )
        return prompt, self._answers(fields, where)

    def _answers(self, fields: dict[str, Any], where: str) -> list[str]:
        given = field_of(fields, self.answers_field, where, "answers_field")
        if isinstance(given, dict):
            given = given.get("text")
        if isinstance(given, str):
            given = [given]
        if isinstance(given, list):  # SQuAD's file: [{"text": ..., "answer_start": ...}]
            given = [one.get("text") if isinstance(one, dict) else one for one in given]
        if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
            raise InvalidValueError(
                f"{where}: {self.answers_field}: expected a text, a list of texts or "
                f"{{'text': [...]}}, got {given!r:.60}."
            )
        answers = list(dict.fromkeys(one for one in given if one.strip()))
        if not answers:
            if self.no_answer is None:
                raise InvalidValueError(
                    f"{where}: no answer. Give no_answer, such as 'no answer', to learn to say so."
                )
            answers = [self.no_answer]
        return answers
