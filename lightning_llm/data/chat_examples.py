"""Conversations to examples: every assistant turn is a target, found through the chat template."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from lightning_llm.data.examples import Example, Piece, leading_ids, special_tokens_pattern
from lightning_llm.data.rows import Row
from lightning_llm.data.tokenizer import TokenizerSpec
from lightning_llm.errors import InvalidValueError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Roles of the ShareGPT layout, and our names for them.
_SHARED_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
}
_ROLES = ("system", "user", "assistant", "tool")

Message = dict[str, str]


@dataclass(frozen=True)
class ChatTask:
    """What a conversation becomes.

    Attributes:
        messages_field: Name of the messages in a row; ``conversations`` is looked at as well.
        chat_template: ``chatml``, the text of a Jinja template, or None for the tokenizer's own,
            which is ChatML where it has none.
    """

    messages_field: str = "messages"
    chat_template: str | None = None

    def options(self) -> dict[str, Any]:
        """Return what examples depend on: the field, and the text of the template."""
        return {"messages_field": self.messages_field, "template": self._template or CHATML}

    @property
    def _template(self) -> str | None:
        return CHATML if self.chat_template == "chatml" else self.chat_template

    def adapted(self, spec: TokenizerSpec) -> TokenizerSpec:
        """Return the specification with ChatML's special tokens, if that template is used."""
        if spec.pretrained is not None or (self._template or CHATML) != CHATML:
            return spec
        tokens = dict.fromkeys((*spec.special_tokens, TURN_START, TURN_END))
        return replace(spec, special_tokens=tuple(tokens))

    def equip(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Give the tokenizer a chat template, and ChatML's tokens where that is used.

        The end of a turn then is the end of the text, at which generation stops.
        """
        template = self._template or tokenizer.chat_template or CHATML
        tokenizer.chat_template = template
        if template != CHATML:
            return
        vocab = tokenizer.get_vocab()
        missing = [token for token in (TURN_START, TURN_END) if token not in vocab]
        if missing:
            tokenizer.add_tokens(missing, special_tokens=True)
        tokenizer.eos_token = TURN_END

    def texts(self, row: Row) -> Iterable[str]:
        """Return the contents of the messages."""
        return [message["content"] for message in self._messages(row)]

    def example(self, row: Row, tokenizer: PreTrainedTokenizerFast) -> Example:
        """Return the example of a conversation.

        Raises:
            ValueError: It has no messages or no assistant turn, a role is unknown, a content is
                no text, or the template cannot be followed turn by turn.
        """
        return _Rendering(tokenizer, self._messages(row), row[1]).example()

    def _messages(self, row: Row) -> list[Message]:
        fields, where = row
        names = (self.messages_field, "conversations")
        name = next((name for name in names if name in fields), None)
        if name is None:
            raise InvalidValueError(
                f"{where}: no field {self.messages_field!r}; it has {sorted(map(str, fields))}. "
                "Set messages_field to the one that holds the messages."
            )
        given = fields[name]
        if not isinstance(given, list) or not given:
            raise InvalidValueError(
                f"{where}: {name}: expected a list of messages, got {given!r:.60}."
            )
        messages = [_message(one, f"{where}: {name}[{i}]") for i, one in enumerate(given)]
        if not any(message["role"] == "assistant" for message in messages):
            roles = ", ".join(message["role"] for message in messages)
            raise InvalidValueError(
                f"{where}: the conversation has no assistant turn, so nothing to learn (its roles: "
                f"{roles}). Remove it."
            )
        return messages


def uses_chatml(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the tokenizer's chat template is our ChatML."""
    return bool(tokenizer.chat_template == CHATML)


def _message(given: Any, where: str) -> Message:
    if not isinstance(given, dict):
        raise InvalidValueError(
            f"{where}: expected an object with role and content, got {given!r:.60}."
        )
    role = given.get("role", given.get("from"))
    content = given.get("content", given.get("value"))
    role = _SHARED_ROLES.get(role, role) if isinstance(role, str) else role
    if role not in _ROLES:
        known = ", ".join([*_ROLES, *_SHARED_ROLES])
        raise InvalidValueError(f"{where}: unknown role {role!r}; known are {known}.")
    if not isinstance(content, str):
        hint = ""
        if given.get("tool_calls"):
            hint = " Calls of tools are learned as text: write them into content."
        raise InvalidValueError(f"{where}: content: expected a text, got {content!r:.60}.{hint}")
    if role == "assistant" and not content.strip():
        raise InvalidValueError(f"{where}: the assistant's turn is empty.")
    return {"role": role, "content": content}


class _Rendering:
    """A conversation through the tokenizer's template, with the place of every content known.

    The template is rendered with a mark in place of each content. So markup and content are told
    apart whatever the contents are, and special tokens' names in a content stay plain text. That
    marks and contents are treated alike is checked against the rendering of the contents.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message], where: str
    ) -> None:
        self.tokenizer, self.where = tokenizer, where
        self.messages = messages
        self.special_tokens = special_tokens_pattern(tokenizer)
        marks = [f"\ue000{number}\ue001" for number in range(len(messages))]
        self.marked = [{**m, "content": mark} for m, mark in zip(messages, marks)]
        self.whole = self._render(self.marked)
        self.starts: list[int] = []
        self.ends: list[int] = []
        for number, mark in enumerate(marks):
            start = self.whole.find(mark, self.ends[-1] if self.ends else 0)
            if start < 0 or self.whole.count(mark) != 1:
                role = messages[number]["role"]
                raise self._error(f"does not show message {number} ({role}) once and in order")
            self.starts.append(start)
            self.ends.append(start + len(mark))
        self.contents = self._contents()

    def example(self) -> Example:
        spans = [self._target(i) for i, m in enumerate(self.messages) if m["role"] == "assistant"]
        content_at = dict(zip(self.starts, self.contents))
        edges = {0, len(self.whole), *self.starts, *self.ends}
        cuts = sorted(edges.union(*spans))
        pieces = []
        for start, end in pairwise(cuts):
            is_target = any(first <= start and end <= last for first, last in spans)
            if start in content_at:
                pieces.append(Piece(content_at[start], is_target))
            else:
                pieces.append(Piece(self.whole[start:end], is_target, is_markup=True))
        last = max(i for i, m in enumerate(self.messages) if m["role"] == "assistant")
        prompt = self._filled(spans[-1][0])
        bos = self.tokenizer.bos_token
        if bos and prompt.startswith(bos) and leading_ids(self.tokenizer):
            prompt = prompt.removeprefix(bos)  # encoding a prompt adds it again
        return Example(tuple(pieces), prompt, self.contents[last], starts_text=False)

    def _target(self, number: int) -> tuple[int, int]:
        """Return the part of the whole that the assistant writes in a turn, its end included."""
        start = self.starts[number]
        if number > 0:
            before = self._render(self.marked[:number], add_generation_prompt=True)
            start = len(before)
            if not self.whole.startswith(before) or start > self.starts[number]:
                raise self._error(
                    f"renders the messages before turn {number} differently than within the whole"
                )
        limit = self.starts[number + 1] if number + 1 < len(self.starts) else len(self.whole)
        ends = self.special_tokens.search(self.whole, self.ends[number], limit)
        if ends is None:
            raise self._error(f"closes turn {number} of the assistant with no special token")
        return start, ends.start() + len(ends[0].rstrip())

    def _contents(self) -> list[str]:
        """Return the contents as the template shows them: as they are, or without outer space."""
        real = self._render(self.messages)
        contents: list[str] = []
        markup = [
            self.whole[end:start]
            for end, start in zip([0, *self.ends], [*self.starts, len(self.whole)])
        ]
        position = len(markup[0])
        for message, after in zip(self.messages, markup[1:]):
            given = message["content"]
            # What templates of published models do, some for one role and not for another.
            shown = (given, given.strip(), given.strip("\n"), given.lstrip("\n"), given.rstrip())
            found = next((one for one in shown if real.startswith(one + after, position)), None)
            if found is None:
                raise self._error("changes the contents of messages")
            contents.append(found)
            position += len(found) + len(after)
        if real[: len(markup[0])] != markup[0] or position != len(real):
            raise self._error("changes the contents of messages")
        return contents

    def _filled(self, end: int) -> str:
        """Return the whole up to a place, with contents instead of marks."""
        parts, position = [], 0
        for start, stop, content in zip(self.starts, self.ends, self.contents):
            if stop > end:
                break
            parts += [self.whole[position:start], content]
            position = stop
        return "".join([*parts, self.whole[position:end]])

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except Exception as error:  # Jinja's, or what the template raises
            raise InvalidValueError(
                f"{self.where}: the chat template refuses the conversation: {error}"
            ) from error
        return str(text)

    def _error(self, problem: str) -> ValueError:
        return ValueError(
            f"{self.where}: the chat template {problem}, so the assistant's turns cannot be told "
            "apart. Give another one as chat_template, such as 'chatml'."
        )
