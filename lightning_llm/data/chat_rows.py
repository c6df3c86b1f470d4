"""Rows to conversations: messages, what the template gets beside them, and which are learned."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from lightning_llm.data.rows import ArrowRow, Row
from lightning_llm.errors import InvalidValueError

Message = dict[str, Any]

# Other names of the assistant's role and the user's, ShareGPT's among them.
_SPELLINGS = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
# Roles that a template may know by their own name; if it does not, they are read as the other.
OTHER_ROLES = {
    "developer": "system",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
}
ROLES = ("system", "user", "assistant", "tool", *OTHER_ROLES)
# What says whether a turn is learned: weight as in OpenAI's files, the others are flags.
_LEARNED = ("weight", "train", "loss", "training", "trainable")
REASONING = ("reasoning_content", "reasoning", "thinking")
# A template that leaves these out leaves out what was said.
ESSENTIAL = (
    *REASONING,
    "tool_calls",
    "function_call",
    "refusal",
    "tools",
    "documents",
    "citations",
    "images",
    "audio",
    "mask",
    "loss_mask",
    "label",
)
_ROW_OPTIONS = ("tools", "functions", "documents", "chat_template_kwargs", "system")
_ROW_REFUSED = (
    "images",
    "image",
    "videos",
    "video",
    "audios",
    "audio",
    "chosen",
    "rejected",
    "system_prompt",
    "system_message",
    "mask",
    "loss_mask",
    "weights",
)


@dataclass(frozen=True)
class Conversation:
    """What a row says.

    Attributes:
        messages: With ``role`` and what else the row gives them; nothing that is null.
        options: What the template is given beside messages: ``tools``, ``documents``, settings.
        learned: Numbers of the assistant's turns that are targets.
        where: The row's place.
        column: The row's field of messages.
        shift: Messages in front of the field's own.
        unused: Fields of the row that nothing reads.
    """

    messages: list[Message]
    options: dict[str, Any]
    learned: tuple[int, ...]
    where: str
    column: str
    shift: int = 0
    unused: tuple[str, ...] = ()

    def name(self, number: int) -> str:
        """Return which message of the row it is."""
        return "system" if number < self.shift else f"{self.column}[{number - self.shift}]"

    def place(self, number: int) -> str:
        """Return the place of a message."""
        return f"{self.where}: {self.name(number)}"


def read_conversation(row: Row, messages_field: str, template: str) -> Conversation:
    """Return the conversation of a row.

    Args:
        row: The row.
        messages_field: Name of the messages; ``conversations`` is looked at as well.
        template: The chat template, which may know further roles.

    Raises:
        ValueError: Names the field in the way.
    """
    fields, where = row
    if isinstance(fields, ArrowRow):
        fields = {name: _without_nulls(value) for name, value in fields.items()}
    names = (messages_field, "conversations")
    name = next((name for name in names if name in fields), None)
    if name is None:
        raise InvalidValueError(
            f"{where}: no field {messages_field!r}; it has {sorted(map(str, fields))}. "
            "Set messages_field to the one that holds the messages."
        )
    given = fields[name]
    if isinstance(given, str):  # a cell of a table
        with suppress(json.JSONDecodeError):
            given = json.loads(given)
    if not isinstance(given, list) or not given:
        raise InvalidValueError(f"{where}: {name}: expected a list of messages, got {given!r:.60}.")
    messages: list[Message] = []
    learned: list[bool] = []
    for number, one in enumerate(given):
        message, is_learned = _message(one, f"{where}: {name}[{number}]", template)
        messages.append(message)
        learned.append(is_learned)
    _refuse_row_fields(fields, where)
    system = _system(fields, messages, where)
    messages = [*system, *messages]
    targets = tuple(i for i, flag in enumerate(learned, len(system)) if flag)
    if not targets:
        roles = ", ".join(message["role"] for message in messages)
        if "assistant" in roles:
            raise InvalidValueError(
                f"{where}: every assistant turn is marked as not learned (weight, train), so "
                "nothing is left to learn. Remove the conversation."
            )
        raise InvalidValueError(
            f"{where}: the conversation has no assistant turn, so nothing to learn (its roles: "
            f"{roles}). Remove it."
        )
    known = {name, *_ROW_OPTIONS, *_LEARNED}
    unused = tuple(sorted(str(key) for key in fields if key not in known))
    options = _options(fields, where)
    return Conversation(messages, options, targets, where, name, len(system), unused)


def strings(value: Any, skipped: tuple[str, ...] = ("role", "type", "id")) -> Iterator[str]:
    """Yield every text within messages or options; not those under the keys to be skipped."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if key not in skipped:
                yield from strings(item, skipped)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from strings(item, skipped)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _message(given: Any, where: str, template: str) -> tuple[Message, bool]:
    """Return a message and whether it is learned."""
    if not isinstance(given, dict):
        raise InvalidValueError(
            f"{where}: expected an object with role and content, got {given!r:.60}."
        )
    message = {key: value for key, value in given.items() if value is not None}
    for spelling, name in (("from", "role"), ("value", "content")):
        if name not in message and spelling in message:
            message[name] = message.pop(spelling)
    flags = {name: message.pop(name) for name in _LEARNED if name in message}
    role = _role(message.get("role"), where, template)
    message = {**message, "role": role}
    _check_content(message, where)
    is_learned = _is_learned(flags, role, where)
    if is_learned and not any(text.strip() for text in strings(message)):
        raise InvalidValueError(f"{where}: the assistant's turn is empty.")
    return message, is_learned


def _role(given: Any, where: str, template: str) -> str:
    role = _SPELLINGS.get(given, given) if isinstance(given, str) else given
    if role in ROLES:
        return str(role)
    if isinstance(role, str) and (f"'{role}'" in template or f'"{role}"' in template):
        return role
    hint = ""
    if role == "function_call":
        hint = " Give the call as tool_calls of an assistant's message."
    known = ", ".join([*ROLES, *_SPELLINGS])
    raise InvalidValueError(f"{where}: unknown role {role!r}; known are {known}.{hint}")


def _check_content(message: Message, where: str) -> None:
    content = message.get("content")
    if isinstance(content, list):
        for number, part in enumerate(content):
            kind = part.get("type") if isinstance(part, dict) else None
            if kind != "text" or not isinstance(part.get("text"), str):
                raise InvalidValueError(
                    f"{where}: content[{number}]: expected a part of text, "
                    f'{{"type": "text", "text": …}}, got {part!r:.60}.'
                )
        if content:
            return
    is_missing = content is None and any(message.get(name) for name in ESSENTIAL)
    if isinstance(content, str) or is_missing:
        return
    raise InvalidValueError(f"{where}: content: expected a text, got {content!r:.60}.")


def _is_learned(flags: Mapping[str, Any], role: str, where: str) -> bool:
    values: dict[str, bool] = {}
    for name, value in flags.items():
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            expected = "0 or 1" if name == "weight" else "true or false"
            raise InvalidValueError(
                f"{where}: {name}: expected {expected}, got {value!r:.60}; a turn is learned or "
                "it is not."
            )
        values[name] = bool(value)
    if len(set(values.values())) > 1:
        raise InvalidValueError(f"{where}: {', '.join(values)} contradict each other.")
    wanted = next(iter(values.values()), None)
    if role != "assistant":
        if wanted:
            raise InvalidValueError(
                f"{where}: {next(iter(values))} asks for a turn of role {role!r} to be learned; "
                "only the assistant's turns are. Remove the field."
            )
        return False
    return wanted is not False


def _refuse_row_fields(fields: Mapping[str, Any], where: str) -> None:
    for name in _ROW_REFUSED:
        if fields.get(name):
            raise InvalidValueError(
                f"{where}: {name}: a field that conversations are not read with; only text is "
                "learned, from messages, system, tools and documents. Remove it, or put what it "
                "says into a message."
            )
    for name in _LEARNED:
        if fields.get(name) is not None and fields[name] not in (True, 1):
            raise InvalidValueError(
                f"{where}: {name}: {fields[name]!r:.60} of a whole conversation is not supported; "
                "give it to messages, or remove the conversation."
            )


def _system(fields: Mapping[str, Any], messages: list[Message], where: str) -> list[Message]:
    """Return the message of a row's own ``system`` text, if it has one."""
    text = fields.get("system")
    if text is None or text == "":
        return []
    if not isinstance(text, str):
        raise InvalidValueError(f"{where}: system: expected a text, got {text!r:.60}.")
    if messages[0]["role"] == "system":
        if messages[0].get("content") == text:
            return []
        raise InvalidValueError(
            f"{where}: system: the messages begin with a system message of their own that says "
            "something else. Keep one of them."
        )
    return [{"role": "system", "content": text}]


def _options(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    settings = fields.get("chat_template_kwargs")
    if settings:
        if not isinstance(settings, dict):
            raise InvalidValueError(
                f"{where}: chat_template_kwargs: expected an object, got {settings!r:.60}."
            )
        options |= {key: value for key, value in settings.items() if value is not None}
    for name in ("tools", "functions", "documents"):
        given = fields.get(name)
        if isinstance(given, str) and given.strip():
            try:
                given = json.loads(given)
            except json.JSONDecodeError as error:
                raise InvalidValueError(
                    f"{where}: {name}: a text that is no JSON: {error}"
                ) from None
        if not given:
            continue
        if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
            raise InvalidValueError(
                f"{where}: {name}: expected a list of objects, got {given!r:.60}."
            )
        if name == "functions":
            if "tools" in options:
                raise InvalidValueError(f"{where}: functions and tools: give one of them.")
            given = [{"type": "function", "function": one} for one in given]
        options["documents" if name == "documents" else "tools"] = given
    return options
