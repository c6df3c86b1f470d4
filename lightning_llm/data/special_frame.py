"""The special tokens that a tokenizer puts around every text: which they are, and setting them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightning_llm.errors import InvalidValueError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def special_frame(tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """Return the ids that the tokenizer, when called, puts before and after every text."""
    backend = tokenizer.backend_tokenizer
    if backend.post_processor is None:
        return [], []
    plain = backend.encode("a", add_special_tokens=False)
    whole = backend.post_process(plain, None, True)
    ids, added = whole.ids, whole.special_tokens_mask
    before = next((i for i, is_added in enumerate(added) if not is_added), len(ids))
    after = len(ids) - next((i for i, is_added in enumerate(added[::-1]) if not is_added), 0)
    return ids[:before], ids[max(before, after) :]


def document_end(tokenizer: PreTrainedTokenizerFast, trailing: Sequence[int]) -> list[int]:
    """Return what ends a document: what the tokenizer puts there, and the end of text, once."""
    eos = int(tokenizer.eos_token_id)
    return list(trailing) if eos in trailing else [*trailing, eos]


def num_special_tokens(tokenizer: PreTrainedTokenizerFast) -> int:
    """Return how many special tokens a document in a store has around its text."""
    leading, trailing = special_frame(tokenizer)
    return len(leading) + len(document_end(tokenizer, trailing))


def set_bos(tokenizer: PreTrainedTokenizerFast, add_bos: bool, name: str) -> None:
    """Make a tokenizer put its BOS token before every text, or no token at all.

    Everything that encodes with it follows: stores, prompts, checkpoints, exports. Without BOS,
    chat templates leave it out as well.

    Args:
        tokenizer: Changed in place.
        add_bos: Whether a text begins with BOS.
        name: Of the tokenizer, for messages.

    Raises:
        ValueError: It shall add BOS and has none.
    """
    leading, trailing = special_frame(tokenizer)
    bos = tokenizer.bos_token
    if add_bos and bos is None:
        raise InvalidValueError(
            f"add_bos=True: the tokenizer {name!r} has no bos_token. Set it in its "
            "tokenizer_config.json, or leave add_bos out."
        )
    wanted = leading
    if not add_bos:
        wanted = []
    elif tokenizer.bos_token_id not in leading:
        wanted = [int(tokenizer.bos_token_id), *leading]
    if wanted != leading:
        _set_frame(tokenizer, wanted, trailing)
    if not add_bos:
        _silence_bos(tokenizer)


def _set_frame(tokenizer: PreTrainedTokenizerFast, leading: list[int], trailing: list[int]) -> None:
    from tokenizers import processors

    # What `transformers` builds the frame from when the tokenizer is loaded again.
    flags = {"add_bos_token": bool(leading), "add_eos_token": tokenizer.eos_token_id in trailing}
    if all(hasattr(type(tokenizer), flag) for flag in flags):
        for flag, value in flags.items():
            setattr(tokenizer, flag, value)
        if special_frame(tokenizer) == (leading, trailing):
            tokenizer.init_kwargs.update(flags)
            return
    backend = tokenizer.backend_tokenizer
    names = tokenizer.convert_ids_to_tokens
    before, after = list(names(leading)), list(names(trailing))
    special = dict(zip([*before, *after], [*leading, *trailing]))
    template = processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, *before, "$B:1", *after],
        special_tokens=list(special.items()),
    )
    kept = _byte_level_steps(backend.post_processor)
    backend.post_processor = processors.Sequence([*kept, template]) if kept else template


def _byte_level_steps(processor: Any) -> list[Any]:
    """The steps of a post-processor that only correct offsets."""
    from tokenizers import processors

    if processor is None:
        return []
    content = json.loads(processor.__getstate__())
    steps = content["processors"] if content["type"] == "Sequence" else [content]
    return [
        processors.ByteLevel(trim_offsets=step["trim_offsets"])
        for step in steps
        if step["type"] == "ByteLevel"
    ]


def _silence_bos(tokenizer: PreTrainedTokenizerFast) -> None:
    template = tokenizer.chat_template
    if isinstance(template, str):
        tokenizer.chat_template = _without_bos(template)
    elif isinstance(template, dict):
        tokenizer.chat_template = {key: _without_bos(one) for key, one in template.items()}


def _without_bos(template: str) -> str:
    silence = "{% set bos_token = '' +%}"  # "+": the line end after it stays
    return template if "bos_token" not in template else silence + template
