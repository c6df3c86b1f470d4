"""What ends a text: one set of token ids for a model, wherever text is generated or exported.

Three places say it, and published models use all of them: the tokenizer's end-of-text token,
``eos_token_id`` of ``generation_config.json`` (an id or a list), and the chat template, which
closes a turn of the assistant with a token of its own (``<|im_end|>``, ``<end_of_turn>``).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from numbers import Integral
from typing import Any

from lightning_llm.errors import InvalidTypeError

_ANSWER = "\ue000answer\ue001"
_NAME = "lookup\ue002name"
_QUESTION = {"role": "user", "content": "question"}
# Fields of a generation configuration that hold ids of one vocabulary.
_OF_A_VOCABULARY = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "sequence_bias",
    "token_healing",
)


def text_ends(tokenizer: Any, generation_config: Mapping[str, Any] | None = None) -> list[int]:
    """Return the ids that end a text.

    Args:
        tokenizer: A Hugging Face tokenizer, or None.
        generation_config: The contents of a ``generation_config.json``, or None.

    Returns:
        The ids of the configuration in their order, then the tokenizer's, then those that close a
        turn of its chat template; each once. Empty where nothing ends a text.
    """
    ends = id_list((generation_config or {}).get("eos_token_id"))
    ends += id_list(getattr(tokenizer, "eos_token_id", None))
    ends += turn_ends(tokenizer)
    return list(dict.fromkeys(ends))


def id_list(ids: Any) -> list[int]:
    """Return a list of ids from one id, several or None.

    Raises:
        TypeError: There is something else than whole numbers.
    """
    if ids is None:
        return []
    if hasattr(ids, "tolist"):  # a tensor or an array, also of one number
        ids = ids.tolist()
    several = list(ids) if isinstance(ids, Sequence | Set) and not isinstance(ids, str) else [ids]
    for one in several:
        if isinstance(one, bool) or not isinstance(one, Integral):
            raise InvalidTypeError(
                f"eos_token_id={ids!r} must be a token id or a list of them, as "
                "tokenizer.convert_tokens_to_ids gives them; the text of a token, such as "
                "'<|im_end|>', goes into stop"
            )
    return [int(one) for one in several]


def turn_ends(tokenizer: Any) -> list[int]:
    """Return the ids that close the assistant's turn in the tokenizer's chat template.

    The template is rendered with a mark as the answer, and what follows the mark is looked at. A
    template that closes the last turn with nothing lets the head of the next one end it, as
    ``<|user|>`` does for GLM.
    """
    if not getattr(tokenizer, "chat_template", None):
        return []
    if not hasattr(tokenizer, "apply_chat_template"):
        return []
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = {token.content: index for index, token in added.items() if token.special}
    others = {token.content: index for index, token in added.items() if not token.special}
    tail = _after_answer(tokenizer)
    if tail is None:
        return []
    closing = turn_closing(tokenizer) or list(_found(special, tail))[:1]
    found = special[closing[-1]] if closing else None
    if found is None:
        found = _leading(others, tail)
    if found is None:
        following = [_QUESTION, {"role": "tool", "content": "result"}]
        tails = [_after_answer(tokenizer, one) for one in following]
        heads = [_leading(special, one or "") for one in tails]
        return list(dict.fromkeys(index for index in heads if index is not None))
    call = _call_end(tokenizer, special)
    return list(dict.fromkeys([found] if call is None else [found, call]))


def turn_closing(tokenizer: Any) -> list[str]:
    """Return the special tokens that close a turn of the assistant, last or not, in order.

    Most templates have one. Empty where the last turn is closed otherwise than those before it.
    """
    special = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
    tokens = dict.fromkeys(special, 0)
    last, inner = (
        list(_found(tokens, tail or ""))
        for tail in (_after_answer(tokenizer), _after_answer(tokenizer, _QUESTION))
    )
    common = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(last, inner))
    return [name for name, _ in common]


def of_another_vocabulary(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that stay true when the ids stand for other tokens."""
    return {k: v for k, v in generation_config.items() if k not in _OF_A_VOCABULARY}


def same_ends(before: Any, after: Any, generation_config: Mapping[str, Any]) -> bool:
    """Whether the ids of a configuration stand for the same tokens in two tokenizers."""
    ids = [i for name in _OF_A_VOCABULARY[:3] for i in id_list(generation_config.get(name))]
    if before is None or before is after or not ids:
        return True
    if not all(hasattr(one, "convert_ids_to_tokens") for one in (before, after)):
        return True
    sizes = [len(one) for one in (before, after)]
    known = [i for i in ids if i < sizes[0]]
    if any(i >= sizes[1] for i in known):
        return False
    return bool(before.convert_ids_to_tokens(known) == after.convert_ids_to_tokens(known))


def _after_answer(tokenizer: Any, *following: Mapping[str, Any]) -> str | None:
    """What the template writes after the assistant's answer; None if it does not show it."""
    for answer in (_ANSWER, [{"type": "text", "text": _ANSWER}]):
        turn: dict[str, Any] = {"role": "assistant", "content": answer}
        messages = [_QUESTION, turn, *following]
        rendered = _rendered(tokenizer, messages)
        if rendered is not None and rendered.count(_ANSWER) == 1:
            return rendered.partition(_ANSWER)[2]
    return None


def _call_end(tokenizer: Any, special: Mapping[str, int]) -> int | None:
    """The special token that closes a turn which calls a tool, if the template renders calls."""
    for arguments in ({"query": "x"}, '{"query": "x"}'):
        function = {"name": _NAME, "arguments": arguments}
        call = {"id": "call00001", "type": "function", "function": function}
        turn = {"role": "assistant", "content": "", "tool_calls": [call]}
        rendered = _rendered(tokenizer, [_QUESTION, turn])
        if rendered is None or _NAME not in rendered:
            continue
        closing = list(_found(special, rendered.rpartition(_NAME)[2]))
        if closing and rendered.rstrip().endswith(closing[-1]):
            return special[closing[-1]]
    return None


def _rendered(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> str | None:
    try:
        return str(tokenizer.apply_chat_template([dict(m) for m in messages], tokenize=False))
    except Exception:  # a template raises what it likes, and this is only a question
        return None


def _leading(tokens: Mapping[str, int], text: str) -> int | None:
    """The token that a text begins with, white space aside."""
    names = [name for name in tokens if text.lstrip().startswith(name)]
    return tokens[max(names, key=len)] if names else None


def _found(tokens: Mapping[str, int], text: str) -> Iterator[str]:
    names = sorted(tokens, key=len, reverse=True)
    pattern = "|".join(map(re.escape, names)) or r"(?!)"
    return (match[0] for match in re.finditer(pattern, text))
