"""Where the assistant speaks in what a chat template makes of a conversation.

What is trained on is always the template's rendering of the whole conversation. Templates do as
they like: they drop the reasoning of earlier turns, move messages, write a turn's head with the
message before it. So nothing is assumed of them. The conversation is rendered again with one
message changed, and what differs is where that message stands. A turn begins behind what
generation would start from, and ends with the special token that closes it. Where a template has
``{% generation %}`` marks, these decide what is learned.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning_llm.data.chat_rows import (
    ESSENTIAL,
    OTHER_ROLES,
    REASONING,
    Conversation,
    Message,
    strings,
)
from lightning_llm.data.examples import Example, Rendered, leading_ids, special_tokens_pattern
from lightning_llm.errors import InvalidValueError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_MARK = "\ue000"
_EDGE = 6  # characters that tell where a prompt ends
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
# Switches of published templates that change what generation starts from.
_SWITCHES = ("enable_thinking", "thinking")
_REMEDY = "Give another one as chat_template, such as 'chatml'."


class Span(NamedTuple):
    """A part of the rendering."""

    start: int
    end: int


class ChatRenderer:
    """From conversations to examples, by the template of a tokenizer.

    Args:
        tokenizer: With a chat template.

    Attributes:
        notes: What templates leave out that may be meant so: how often, and the first place.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        from lightning_llm.generation.ends import text_ends, turn_closing

        self.tokenizer = tokenizer
        self.notes: dict[str, tuple[int, str]] = {}
        self.special = special_tokens_pattern(tokenizer)
        added: Mapping[int, Any] = tokenizer.added_tokens_decoder
        self.others = sorted((t.content for t in added.values() if not t.special), key=len)[::-1]
        ends = text_ends(tokenizer)
        self.ends = {str(token) for token in tokenizer.convert_ids_to_tokens(ends)}
        self.closing = turn_closing(tokenizer)
        self.template = template_text(tokenizer.chat_template)
        self.marks_generation = _GENERATION.search(self.template) is not None
        self.leading = leading_ids(tokenizer)
        self.knows_parts = re.search(r"""\btype['"]?\]? *==|\.type\b""", self.template) is not None
        self._shown: set[str] = set()  # fields of messages that the template is known to show

    def example(self, conversation: Conversation) -> Example:
        """Return the example of a conversation.

        Raises:
            ValueError: The template refuses the conversation, does not show a message or a field,
                or does not close the assistant's turns; the place is named.
        """
        return _Reading(self, conversation).example()

    def note(self, what: str, where: str) -> None:
        """Count something that is worth a warning."""
        count, first = self.notes.get(what, (0, where))
        self.notes[what] = (count + 1, first)

    def render(
        self, messages: Sequence[Message], options: Mapping[str, Any], *, prompt: bool = False
    ) -> str:
        """Return what the template makes of messages; raises what the template raises."""
        return str(
            self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=prompt,
                **options,
            )
        )

    def generation_spans(
        self, messages: Sequence[Message], options: Mapping[str, Any], whole: str
    ) -> list[Span]:
        """Return the parts between ``{% generation %}`` and ``{% endgeneration %}``."""
        template = self.tokenizer.get_chat_template(None, options.get("tools"))
        if _GENERATION.search(template) is None:
            return []
        from transformers.utils.chat_template_utils import render_jinja_template

        options = dict(options)
        tools = options.pop("tools", None)
        rendered: Any = render_jinja_template(
            conversations=[[dict(message) for message in messages]],
            tools=tools,
            documents=options.pop("documents", None),
            chat_template=template,
            return_assistant_tokens_mask=True,
            add_generation_prompt=False,
            **{**self.tokenizer.special_tokens_map, **options},
        )
        texts, spans = rendered
        return [Span(*span) for span in spans[0]] if texts[0] == whole else []


def template_text(template: Any) -> str:
    """Return the text of a template, or of all of several named ones."""
    if isinstance(template, Mapping):
        return "\n".join(map(str, template.values()))
    return str(template or "")


class _Reading:
    """One conversation through the template."""

    def __init__(self, renderer: ChatRenderer, conversation: Conversation) -> None:
        self.renderer, self.given = renderer, conversation
        self.options = conversation.options
        self.messages = list(conversation.messages)
        self.whole = self._settle()
        self._check_fields()
        self._check_options()
        self.regions = self._aligned() or [self._region(i) for i in range(len(self.messages))]
        self._check_shown()
        self.marked: list[Span] = []
        if renderer.marks_generation:
            self.marked = renderer.generation_spans(self.messages, self.options, self.whole)

    def example(self) -> Example:
        turns = [self._turn(number) for number in self.given.learned]
        targets = [span for turn in turns for span in turn.spans]
        if not targets:
            raise self._error("marks nothing of the conversation as generated")
        from lightning_llm.generation.text import BarePrompt

        last = turns[-1]
        prompt = last.prompt
        bos = self.renderer.tokenizer.bos_token
        if self.renderer.leading:  # encoding a prompt adds BOS
            has_bos = bos is not None and prompt.startswith(bos)
            prompt = prompt.removeprefix(bos) if has_bos else BarePrompt(prompt)
        rendered = Rendered(self.whole, tuple(targets), tuple(self._literal_names()))
        return Example((), prompt, last.answer, rendered=rendered)

    # ------------------------------------------------------------------ rendering

    def _settle(self) -> str:
        """Render the conversation, in the spelling of it that the template can show."""
        messages, problem = self.messages, None
        spellings: tuple[Callable[[list[Message]], list[Message] | None], ...] = (
            _as_given,
            _with_empty_contents,
            _with_plain_texts,
            _with_parts,
            _with_arguments_as_objects,
            _with_arguments_as_text,
            self._with_known_roles,
        )
        for spell in spellings:
            spelled = spell(messages)
            if spelled is None:
                continue
            whole, error = self._try(spelled)
            problem = error or problem
            if whole is not None and self._shows_contents(spelled, whole):
                shown = self._with_known_roles(spelled, whole)
                if shown is not None and (better := self._try(shown)[0]) is not None:
                    spelled, whole = shown, better
                self.messages = spelled
                return whole
            if spell not in (_with_parts, _with_plain_texts):
                messages = spelled
        if problem is None:
            parts = [i for i, m in enumerate(messages) if isinstance(m.get("content"), list)]
            if not parts:
                return self._try(messages)[0] or ""  # what is not shown is named later
            raise InvalidValueError(
                f"{self.given.place(parts[0])}: content: the chat template does not show a list of "
                "parts as text. Write the content as one text."
            )
        culprit = self._culprit(messages)
        raise InvalidValueError(
            f"{self.given.where}: the chat template refuses the conversation: {problem}{culprit}"
        ) from problem

    def _culprit(self, messages: Sequence[Message]) -> str:
        """Name the field without which the template would take the conversation."""
        names = dict.fromkeys(key for m in messages for key in m if key not in ("role", "content"))
        for name in names:
            if self._try([{k: v for k, v in m.items() if k != name} for m in messages])[0]:
                number = next(i for i, message in enumerate(messages) if name in message)
                return f" (it would take it without {self.given.name(number)}: {name})"
        for number, message in enumerate(messages):
            if isinstance(message.get("content"), str):
                continue
            plain = {**message, "content": _MARK}
            if self._try([*messages[:number], plain, *messages[number + 1 :]])[0]:
                return f" (it would take a text as content of {self.given.name(number)})"
        for name in self.options:
            try:
                self.renderer.render(messages, {k: v for k, v in self.options.items() if k != name})
            except Exception:
                continue
            return f" (it would take it without {name})"
        for number, message in enumerate(messages):
            role = message["role"]
            if role in ("user", "assistant"):
                continue
            others = [{**message, "role": other} for other in ("user", "assistant")]
            for instead in ([], *([other] for other in others)):
                if self._try([*messages[:number], *instead, *messages[number + 1 :]])[0]:
                    return f" (it does not take {self.given.name(number)} of role {role!r})"
        return ""

    def _try(self, messages: Sequence[Message], **more: Any) -> tuple[str | None, Exception | None]:
        try:
            return self.renderer.render(messages, {**self.options, **more}), None
        except Exception as error:  # Jinja's, or what the template raises
            return None, error

    def _shows_contents(self, messages: Sequence[Message], whole: str) -> bool:
        """Whether the template takes contents of the kind they are: texts, or lists of parts.

        Others are left out, or written with the quotes and braces of the programming language.
        """
        kind = list if any(isinstance(m.get("content"), list) for m in messages) else str
        if kind is str and ("text" in self.renderer._shown or not self.renderer.knows_parts):
            return True
        mark = "text of the part"  # which looks the same within quotes
        marked = [
            _with_content(m, mark) if isinstance(m.get("content"), kind) else m for m in messages
        ]
        shown = self._try(marked)[0] or ""
        if kind is str:
            if mark in shown:
                self.renderer._shown.add("text")
            return mark in shown
        wanted = sum(len(m["content"]) for m in messages if isinstance(m.get("content"), list))
        quoted = re.search(f"""['"]text['"]: ?['"]{mark}""", shown) is not None
        return not quoted and shown.count(mark) >= wanted

    def _with_known_roles(
        self, messages: list[Message], whole: str | None = None
    ) -> list[Message] | None:
        """Give messages the usual role where the template does not show theirs.

        Args:
            messages: The messages.
            whole: What the template makes of them; None if it refuses them.
        """
        changed = False
        spelled = list(messages)
        for number, message in enumerate(messages):
            other = OTHER_ROLES.get(message["role"])
            if other is None:
                continue
            if whole is not None:
                varied = [*messages]
                varied[number] = _varied(message)
                if self._try(varied)[0] != whole:
                    continue
            spelled[number] = {**message, "role": other}
            changed = True
        return spelled if changed else None

    # ------------------------------------------------------------------ what is shown

    def _check_fields(self) -> None:
        """See to it that no field is left out in silence."""
        names = dict.fromkeys(
            key
            for message in self.messages
            for key, value in message.items()
            if key not in ("role", "content") and value not in ("", [], {})
        )
        for name in names:
            essential = name in ESSENTIAL
            if name in self.renderer._shown and not essential:
                continue
            # transformers hands reasoning on under each of its names.
            together = REASONING if name in REASONING else (name,)
            without = [{k: v for k, v in m.items() if k not in together} for m in self.messages]
            if self._try(without)[0] != self.whole:
                self.renderer._shown.add(name)
                continue
            number = next(i for i, message in enumerate(self.messages) if name in message)
            place = self.given.place(number)
            if essential and not (name in REASONING and _mentions(self.renderer.template, name)):
                raise InvalidValueError(
                    f"{place}: {name}: the chat template does not show this field, so it would be "
                    f"lost. Write it into content, remove it, or give a chat_template that has it."
                )
            self.renderer.note(f"field {name!r} of messages is not shown by the template", place)
        for number, message in enumerate(self.messages):
            self._check_calls(number, message)

    def _check_calls(self, number: int, message: Message) -> None:
        calls = message.get("tool_calls")
        if not calls:
            return
        place = self.given.place(number)
        if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
            raise InvalidValueError(
                f"{place}: tool_calls: expected a list of objects, got {calls!r:.60}."
            )
        if len(calls) > 1:
            for index, call in enumerate(calls):
                varied = [*calls[:index], _varied_call(call), *calls[index + 1 :]]
                if self._is_same(number, {**message, "tool_calls": varied}):
                    raise InvalidValueError(
                        f"{place}: tool_calls[{index}]: the chat template does not show this call."
                    )
        arguments = [one for one in map(_arguments, calls) if one and one != "{}"]
        if arguments and "arguments" not in self.renderer._shown:
            varied = [_varied_call(call, name=False) for call in calls]
            if self._is_same(number, {**message, "tool_calls": varied}):
                what = "arguments of tool_calls are not shown by the template"
                self.renderer.note(what, place)
            else:
                self.renderer._shown.add("arguments")
        for one in arguments:
            if isinstance(one, str) and json.dumps(one, ensure_ascii=False) in self.whole:
                what = (
                    "arguments of tool_calls are texts, which the template writes within quotes; "
                    "objects are written as JSON"
                )
                self.renderer.note(what, place)

    def _check_options(self) -> None:
        where, options = self.given.where, self.options
        for name in ("tools", "documents"):
            if name not in options:
                continue
            rest = {key: value for key, value in options.items() if key != name}
            try:
                same = self.renderer.render(self.messages, rest) == self.whole
            except Exception:  # without them the template fails: they are used
                continue
            if same:
                raise InvalidValueError(
                    f"{where}: {name}: the chat template does not show them, so they would be "
                    "lost. Remove the field, or give a chat_template that has them."
                )
        for name in options:
            if name not in ("tools", "documents") and not _mentions(self.renderer.template, name):
                raise InvalidValueError(
                    f"{where}: chat_template_kwargs: the chat template does not know {name!r}."
                )

    def _check_shown(self) -> None:
        for number, (message, region) in enumerate(zip(self.messages, self.regions)):
            if region is not None or not any(strings(message)):
                continue
            raise InvalidValueError(
                f"{self.given.where}: the chat template does not show message {number} "
                f"({message['role']}), which is {self.given.name(number)}. Give it another role, "
                "or another template as chat_template, such as 'chatml'."
            )
        for number, message in enumerate(self.messages):
            content = message.get("content")
            if not message.get("tool_calls") or not content or "called" in self.renderer._shown:
                continue
            rest = {**message, "content": _varied({"content": content})["content"]}
            if self._is_same(number, rest):
                self.renderer.note(
                    "field 'content' of messages with tool_calls is not shown by the template",
                    self.given.place(number),
                )
            else:
                self.renderer._shown.add("called")

    # ------------------------------------------------------------------ where messages stand

    def _is_same(self, number: int, message: Message) -> bool:
        """Whether another message in one's place makes no difference."""
        return self._try(self._replaced(number, message))[0] == self.whole

    def _replaced(self, number: int, message: Message) -> list[Message]:
        return [*self.messages[:number], message, *self.messages[number + 1 :]]

    def _aligned(self) -> list[Span | None] | None:
        """Find all messages with one rendering, where each is a text that is shown as it is."""
        contents = [message.get("content") for message in self.messages]
        plain = all(isinstance(content, str) and content.strip() for content in contents)
        if not plain or any(m.keys() & set(ESSENTIAL) for m in self.messages):
            return None
        marks = [f"{_MARK}{number}\ue001" for number in range(len(contents))]
        marked = self._try([{**m, "content": one} for m, one in zip(self.messages, marks)])[0]
        if marked is None or any(marked.count(mark) != 1 for mark in marks):
            return None
        markup, rest = [], marked
        for mark in marks:
            before, separator, rest = rest.partition(mark)
            if not separator:
                return None
            markup.append(before)
        markup.append(rest)
        spans: list[Span | None] = []
        position = len(markup[0])
        for content, after in zip(map(str, contents), markup[1:]):
            # What templates of published models do, some for one role and not for another.
            shown = [content, content.strip(), content.strip("\n"), content.lstrip("\n")]
            shown.append(content.rstrip())
            found = next((s for s in shown if self.whole.startswith(s + after, position)), None)
            if found is None:
                return None
            spans.append(Span(position, position + len(found)))
            position += len(found) + len(after)
        fits = self.whole.startswith(markup[0]) and position == len(self.whole)
        return spans if fits else None

    def _region(self, number: int) -> Span | None:
        """Find a message by changing it: what differs then is what it says."""
        message = self.messages[number]
        found = None
        for varied in (_varied(message), _varied(message, calls=False)):
            other = self._try(self._replaced(number, varied))[0]
            if other is not None and other != self.whole:
                found = _difference(self.whole, other)
                break
        if found is None or not message.get("tool_calls"):
            return found
        # The name of a function may stand in its result as well.
        calls = [_varied_call(call, name=False) for call in message["tool_calls"]]
        other = self._try(self._replaced(number, {**message, "tool_calls": calls}))[0]
        if other is None or other == self.whole:
            return found
        return Span(found.start, _difference(self.whole, other).end)

    # ------------------------------------------------------------------ turns

    def _turn(self, number: int) -> _Turn:
        region = self.regions[number]
        assert region is not None
        starts = [r.start for r in self.regions[number + 1 :] if r and r.start >= region.end]
        limit = min(starts, default=len(self.whole))
        ends = [r.end for r in self.regions if r is not None and r.end <= region.start]
        floor = max(ends, default=0)
        self._check_content(number, region)
        end = self._end(number, region, limit)
        start, prompt = self._start(number, region, floor)
        spans = [Span(start, end)]
        if self.marked:
            spans = self._marked(number, spans[0])
        return _Turn(spans, prompt, self._answer(number, region, Span(start, end)))

    def _marked(self, number: int, turn: Span) -> list[Span]:
        """Return what the template itself marks of a turn, and the turn's end."""
        spans = [s for s in self.marked if s.start < turn.end and turn.start < s.end]
        if not spans:
            self.renderer.note(
                "turns of the assistant outside of {% generation %} are not learned",
                self.given.place(number),
            )
            return []
        last = spans[-1]
        between = self.whole[last.end : turn.end]
        if last.end < turn.end and self.renderer.special.fullmatch(between.strip()):
            spans[-1] = Span(last.start, turn.end)
        return spans

    def _start(self, number: int, region: Span, floor: int) -> tuple[int, str]:
        """Return where the assistant begins to write, and what generation starts from there."""
        before = self.messages[:number]
        if not before:
            return self._variant_start(number, region), self.whole[: region.start]
        template, given = self.renderer.template, self.options
        switches: list[dict[str, Any]] = [{}]
        for name in _SWITCHES:
            if name not in given and _mentions(template, name):
                switches += [{name: False}, {name: True}]
        prompts = [self._prompt(before, switch) for switch in switches]
        exact = [p for p in prompts if p and self.whole.startswith(p) and len(p) <= region.start]
        if exact:
            best = max(exact, key=len)
            return len(best), best
        try:
            without = self.renderer.render(before, given)
        except Exception:
            without = None
        found = -1
        prompt = next((p for p in prompts if p), self.whole[: region.start])
        for one in prompts:
            if one is None or without is None or not one.startswith(without):
                continue
            head = one[len(without) :]
            end = self._behind_head(head, floor, region.start)
            if end > found:
                found, prompt = end, one
        if found < 0:
            found = self._variant_start(number, region)
            space = len(self.whole[floor:found]) - len(self.whole[floor:found].rstrip())
            edges = range(found, found - space - 1, -1)
            # White space that generation does not start from is the assistant's.
            found = next((e for e in edges if prompt.endswith(self.whole[e - _EDGE : e])), found)
        return found, prompt

    def _prompt(self, before: Sequence[Message], switch: Mapping[str, Any]) -> str | None:
        try:
            return self.renderer.render(before, {**self.options, **switch}, prompt=True)
        except Exception:  # a template may want more than one message
            return None

    def _behind_head(self, head: str, floor: int, limit: int) -> int:
        """Return the end of the longest part of a turn's head before the turn; -1 if there is none.

        At least the head's first special token must be there: later parts may differ, as what a
        template writes of reasoning that is not there.
        """
        if not head:
            return -1
        first = self.renderer.special.search(head)
        least = len(head) if first is None else first.end()
        best, length = -1, least - 1
        place = self.whole.find(head[:least], floor, limit)
        while place >= 0:
            common = _common_prefix(head, self.whole[place:limit])
            # Where they part within a word, it is another head.
            is_head = not head[common : common + 1].isalnum()
            if is_head and common >= max(length, least):
                best, length = place + common, common
            place = self.whole.find(head[:least], place + 1, limit)
        return best

    def _variant_start(self, number: int, region: Span) -> int:
        """Return where the rendering parts from that of a plain answer in the turn's place."""
        plain = self._try(self._replaced(number, {"role": "assistant", "content": _MARK}))[0]
        if plain is None:
            return region.start
        return min(region.start, _common_prefix(self.whole, plain))

    def _end(self, number: int, region: Span, limit: int) -> int:
        """Return where a turn is closed."""
        tail = self.whole[region.end : limit]
        found = list(self.renderer.special.finditer(tail))
        closing = self.renderer.closing
        if self.messages[number].get("tool_calls") or self.messages[number].get("function_call"):
            found = self._ends_of_calls(number, tail, found)
        elif closing and [match[0].strip() for match in found[: len(closing)]] == closing:
            found = found[len(closing) - 1 :]
        if found:
            return region.end + found[0].start() + _length_to_name_end(found[0][0])
        inner = tail.lstrip()
        name = next((name for name in self.renderer.others if inner.startswith(name)), None)
        if name is not None and name in self.renderer.ends:
            return region.end + len(tail) - len(inner) + len(name)
        if self.renderer.ends and limit == len(self.whole) and self._closes_by_heads():
            self.renderer.note(
                "conversations end with a turn that the template closes with no token, so their "
                "last turn teaches no end",
                self.given.place(number),
            )
            return region.end + len(tail.rstrip())
        follows = f", what follows is {tail[:30]!r}" if tail.strip() else ""
        raise self._error(f"closes turn {number} of the assistant with no special token{follows}")

    def _ends_of_calls(
        self, number: int, tail: str, found: list[re.Match[str]]
    ) -> list[re.Match[str]]:
        """Leave out the special tokens that are part of calls."""
        closing = [match for match in found if match[0].strip() in self.renderer.ends]
        if closing:
            return closing
        alone = self._try(self.messages[: number + 1])[0]
        if alone is None or len(found) < 2:
            return found
        own = _common_prefix(tail, alone[alone.rfind(tail[: found[0].end()]) :])
        inside = [match for match in found if match.end() <= own]
        return inside[-1:] or found

    def _closes_by_heads(self) -> bool:
        """Whether the head of the next message is what ends a turn in this template."""
        from lightning_llm.generation.ends import turn_ends

        return bool(turn_ends(self.renderer.tokenizer))

    def _check_content(self, number: int, region: Span) -> None:
        """See that a turn shows its content, apart from white space and reasoning within it."""
        message, place = self.messages[number], self.given.place(number)
        shown = _squeezed(self.whole[region.start : region.end])
        content = message.get("content") or ""
        if isinstance(content, list):
            content = "".join(part["text"] for part in content)
        answer = content.rpartition("</think>")[2]
        if _squeezed(content) in shown or (message.get("tool_calls") and not answer.strip()):
            pass
        elif _squeezed(answer) in shown:
            self.renderer.note("reasoning within content is left out by the template", place)
        elif not message.get("tool_calls"):
            raise self._error("changes the contents of messages")
        for name in REASONING:
            reasoning = message.get(name)
            if isinstance(reasoning, str) and _squeezed(reasoning) not in shown:
                self.renderer.note(f"field {name!r} is left out of earlier turns", place)

    def _answer(self, number: int, region: Span, turn: Span) -> str:
        """Return the text that generation should give."""
        message = self.messages[number]
        if any(message.get(name) for name in ESSENTIAL):
            return self.renderer.special.sub("", self.whole[turn.start : turn.end]).strip()
        return self.whole[region.start : region.end]

    # ------------------------------------------------------------------ plain text

    def _literal_names(self) -> list[Span]:
        """Find names of special tokens that users wrote: they are text and no tokens.

        The names are replaced in all messages; where the rendering shows the replacement, the
        name is the users' and not the template's.
        """
        pattern = self.renderer.special
        texts = [*strings(self.messages), *strings(self.options)]
        if not any(pattern.search(text) for text in texts):
            return []
        spans = self._literals(pattern)
        if spans is None:
            known = [m[0].strip() for text in texts for m in pattern.finditer(text)]
            left = sorted({n for n in known if n not in self.renderer.template}, key=len)[::-1]
            spans = self._literals(re.compile("|".join(map(re.escape, left)) or r"(?!)"))
        if spans is None:
            raise self._error("treats names of special tokens in messages in a way of its own")
        return spans

    def _literals(self, pattern: re.Pattern[str]) -> list[Span] | None:
        names: list[str] = []

        def hide(value: Any, key: str = "") -> Any:
            if isinstance(value, str):
                if key in ("role", "type", "id"):
                    return value
                return pattern.sub(replace, value)
            if isinstance(value, Mapping):
                return {name: hide(item, name) for name, item in value.items()}
            return [hide(item) for item in value] if isinstance(value, list) else value

        def replace(match: re.Match[str]) -> str:
            names.append(match[0])
            return f"{_MARK}{len(names) - 1}\ue001"

        messages, options = hide(self.messages), hide(self.options)
        try:
            hidden = self.renderer.render(messages, options)
        except Exception:
            return None
        spans: list[Span] = []
        position = 0
        for index, part in enumerate(re.split(f"{_MARK}(\\d+)\ue001", hidden)):
            text = names[int(part)] if index % 2 else part
            if not self.whole.startswith(text, position):
                return None
            if index % 2:
                spans.append(Span(position, position + len(text)))
            position += len(text)
        return spans if position == len(self.whole) else None

    def _error(self, problem: str) -> InvalidValueError:
        return InvalidValueError(
            f"{self.given.where}: the chat template {problem}, so the assistant's turns cannot be "
            f"told apart. {_REMEDY}"
        )


class _Turn(NamedTuple):
    spans: list[Span]
    prompt: str
    answer: str


def _as_given(messages: list[Message]) -> list[Message]:
    return messages


def _with_empty_contents(messages: list[Message]) -> list[Message] | None:
    """Give messages that only call tools an empty content, for templates that need one."""
    if all("content" in message for message in messages):
        return None
    return [{"content": "", **message} for message in messages]


def _with_content(message: Message, text: str) -> Message:
    content = message["content"]
    if isinstance(content, list):
        return {**message, "content": [{**part, "text": text} for part in content]}
    return {**message, "content": text if content else content}


def _with_parts(messages: list[Message]) -> list[Message]:
    """Write texts as lists of one part, for templates that know only lists."""
    return [
        {**m, "content": [{"type": "text", "text": m["content"]}]}
        if isinstance(m.get("content"), str)
        else m
        for m in messages
    ]


def _with_plain_texts(messages: list[Message]) -> list[Message] | None:
    """Write a content of one part as its text, for templates that know only texts."""
    lists = [m for m in messages if isinstance(m.get("content"), list)]
    if not lists or any(len(message["content"]) > 1 for message in lists):
        return None
    return [
        {**m, "content": m["content"][0]["text"]} if isinstance(m.get("content"), list) else m
        for m in messages
    ]


def _varied(message: Message, *, calls: bool = True) -> Message:
    """Return a message that says something else everywhere."""
    varied = dict(message)
    content = message.get("content")
    if isinstance(content, str) and content:
        varied["content"] = _MARK
    elif isinstance(content, list):
        varied["content"] = [{**part, "text": _MARK} for part in content]
    for name in REASONING:
        if isinstance(message.get(name), str) and message[name]:
            varied[name] = _MARK
    if calls and isinstance(message.get("tool_calls"), list):
        varied["tool_calls"] = [_varied_call(call) for call in message["tool_calls"]]
    if calls and isinstance(message.get("function_call"), dict):
        varied["function_call"] = _varied_function(message["function_call"])
    return varied


def _varied_call(call: Any, *, name: bool = True) -> Any:
    if not isinstance(call, dict):
        return call
    if isinstance(call.get("function"), dict):
        return {**call, "function": _varied_function(call["function"], name=name)}
    return _varied_function(call, name=name)


def _varied_function(function: dict[str, Any], *, name: bool = True) -> dict[str, Any]:
    varied = dict(function)
    if name and isinstance(function.get("name"), str):
        varied["name"] = _MARK
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        varied["arguments"] = json.dumps({_MARK: _MARK}, ensure_ascii=False)
    elif isinstance(arguments, dict):
        varied["arguments"] = {_MARK: _MARK}
    return varied


def _arguments(call: Any) -> Any:
    function = call.get("function", call)
    return function.get("arguments") if isinstance(function, dict) else None


def _with_arguments_as_objects(messages: list[Message]) -> list[Message] | None:
    """Read the arguments of calls, for templates that go through them one by one."""

    def read(arguments: Any) -> Any:
        try:
            found = json.loads(arguments) if isinstance(arguments, str) else arguments
        except json.JSONDecodeError:
            return arguments
        return found if isinstance(found, dict) else arguments

    return _with_arguments(messages, read)


def _with_arguments_as_text(messages: list[Message]) -> list[Message] | None:
    """Write the arguments of calls as JSON, for templates that join texts."""

    def write(arguments: Any) -> Any:
        if isinstance(arguments, dict):
            return json.dumps(arguments, ensure_ascii=False)
        return arguments

    return _with_arguments(messages, write)


def _with_arguments(messages: list[Message], change: Callable[[Any], Any]) -> list[Message] | None:
    def changed(call: Any) -> Any:
        if not isinstance(call, dict):
            return call
        if isinstance(call.get("function"), dict):
            return {**call, "function": changed(call["function"])}
        return {**call, "arguments": change(call["arguments"])} if "arguments" in call else call

    found = [
        {**m, "tool_calls": [changed(call) for call in m["tool_calls"]]}
        if isinstance(m.get("tool_calls"), list)
        else m
        for m in messages
    ]
    return None if found == messages else found


def _difference(text: str, other: str) -> Span:
    """Return the part of a text that another one has otherwise."""
    start = _common_prefix(text, other)
    rest = min(len(text), len(other)) - start
    end = _common_prefix(text[::-1][:rest], other[::-1][:rest])
    return Span(start, len(text) - end)


def _common_prefix(one: str, other: str) -> int:
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _squeezed(text: str) -> str:
    return re.sub(r"\s+|</?think>", "", text)


def _mentions(template: str, name: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", template) is not None


def _length_to_name_end(match: str) -> int:
    """White space that a token swallows behind its name is not what closes the turn."""
    return len(match.rstrip())
