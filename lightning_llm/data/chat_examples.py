"""Conversations to examples: every assistant turn is a target, found through the chat template."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lightning_llm.data.chat_rendering import ChatRenderer, template_text
from lightning_llm.data.chat_rows import Conversation, read_conversation, strings
from lightning_llm.data.examples import Example
from lightning_llm.data.rows import Row
from lightning_llm.data.tokenizer import TokenizerSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


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
    _renderers: list[ChatRenderer] = field(default_factory=list, compare=False, repr=False)
    _unused: dict[str, str] = field(default_factory=dict, compare=False, repr=False)

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
        """Return the texts of the messages and of what the template is given beside them."""
        conversation = self._conversation(row, self._template or CHATML)
        return [*strings(conversation.messages), *strings(conversation.options)]

    def example(self, row: Row, tokenizer: PreTrainedTokenizerFast) -> Example:
        """Return the example of a conversation.

        Raises:
            ValueError: It has no messages or no assistant turn, a field has a value that cannot be
                used or is not shown by the template, or the template cannot be followed.
        """
        renderer = self._renderer(tokenizer)
        return renderer.example(self._conversation(row, renderer.template))

    def remarks(self) -> list[str]:
        """Return what is worth a warning once all rows are read."""
        notes = [
            f"{what} ({count} times, first at {first})"
            for renderer in self._renderers
            for what, (count, first) in renderer.notes.items()
        ]
        if self._unused:
            names = ", ".join(sorted(self._unused))
            first = next(iter(self._unused.values()))
            notes.append(f"fields of rows that are not read: {names} (first at {first})")
        return notes

    def _conversation(self, row: Row, template: str) -> Conversation:
        conversation = read_conversation(row, self.messages_field, template)
        for name in conversation.unused:
            self._unused.setdefault(name, conversation.where)
        return conversation

    def _renderer(self, tokenizer: PreTrainedTokenizerFast) -> ChatRenderer:
        if not self._renderers or self._renderers[-1].tokenizer is not tokenizer:
            self._renderers.append(ChatRenderer(tokenizer))
        return self._renderers[-1]


def uses_chatml(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the tokenizer's chat template is our ChatML."""
    return bool(template_text(tokenizer.chat_template) == CHATML)
