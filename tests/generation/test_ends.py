"""Which tokens close a turn in a chat template, and what ends a text altogether."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_llm.data import TokenizerSpec
from lightning_llm.data.tokenizer import train_tokenizer
from lightning_llm.generation.ends import id_list, same_ends, text_ends, turn_ends

LOOP = "{%% for m in messages %%}%s{%% endfor %%}"
CHATML = LOOP % "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
# What marks the families: how a turn opens and closes, not their texts.
TEMPLATES = {
    "chatml": (CHATML, ["<|im_end|>"]),
    "gemma": (
        LOOP
        % (
            "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
            "{{ m.content | trim }}<end_of_turn>\n"
        ),
        ["<end_of_turn>"],
    ),
    "llama2": (
        LOOP
        % (
            "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
            "{% else %} {{ m.content }} </s>{% endif %}"
        ),
        ["</s>"],
    ),
    # The last turn ends otherwise than those before it, and calls of tools in a third way.
    "channels": (
        LOOP
        % (
            "<|start|>{{ m.role }}<|message|>{% if m.tool_calls %}"
            "{% for c in m.tool_calls %}{{ c.function.name }}{{ c.function.arguments | tojson }}"
            "{% endfor %}<|call|>{% else %}{{ m.content }}"
            "{{ '<|return|>' if loop.last and m.role == 'assistant' else '<|end|>' }}{% endif %}"
        ),
        ["<|return|>", "<|call|>"],
    ),
    # No end of a turn: the head of the next one is where the assistant stops.
    "heads": (
        LOOP
        % (
            "{{ {'user': '<|user|>', 'tool': '<|observation|>'}.get(m.role, '<|assistant|>') }}"
            "\n{{ m.content }}"
        ),
        ["<|user|>", "<|observation|>"],
    ),
    "parts": (
        LOOP
        % (
            "<|im_start|>{{ m.role }}{% if m.content is string and m.role != 'user' %}"
            "{{ raise_exception('parts only') }}{% endif %}"
            "{% for part in m.content if m.role != 'user' %}{{ part.text }}{% endfor %}<|im_end|>"
        ),
        ["<|im_end|>"],
    ),
    "text": (LOOP % "{{ m.role }}: {{ m.content }}\n", []),
    "hidden": ("{{ messages[0].content }}<|im_end|>", []),
    "refusing": ("{{ raise_exception('no') }}", []),
}


def tokenizer_with(*special: str) -> Any:
    return train_tokenizer(TokenizerSpec("byte", special_tokens=special), [])


@pytest.mark.parametrize("family", TEMPLATES)
def test_what_closes_a_turn(family: str) -> None:
    template, ends = TEMPLATES[family]
    names = sorted({"<|im_start|>", "<|im_end|>", "<|user|>", "<|observation|>", "<|assistant|>"})
    more = ("<|end|>", "<|return|>", "<|call|>", "<|start|>", "<|message|>", "</s>")
    tokenizer = tokenizer_with(*names, *more, "<start_of_turn>", "<end_of_turn>")
    tokenizer.chat_template = template
    assert tokenizer.convert_ids_to_tokens(turn_ends(tokenizer)) == ends


def test_an_end_that_is_no_special_token() -> None:
    tokenizer = tokenizer_with("<|im_start|>")
    tokenizer.add_tokens(["<|im_end|>"])
    tokenizer.chat_template = CHATML
    assert tokenizer.convert_ids_to_tokens(turn_ends(tokenizer)) == ["<|im_end|>"]


def test_all_that_ends_a_text_is_one_set() -> None:
    tokenizer = tokenizer_with("<|im_start|>", "<|im_end|>")
    turn_end, eos = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert text_ends(tokenizer) == [eos]
    tokenizer.chat_template = CHATML
    assert text_ends(tokenizer) == [eos, turn_end]
    assert text_ends(tokenizer, {"eos_token_id": [7, turn_end]}) == [7, turn_end, eos]
    assert text_ends(None, {"eos_token_id": 7}) == [7]
    assert text_ends(None) == []
    assert id_list(torch.tensor([3, 4])) == [3, 4]
    assert id_list(torch.tensor(3)) == [3]
    assert id_list({3}) == id_list((3,)) == [3]


@pytest.mark.parametrize("ids", ["<|im_end|>", ["<|im_end|>"], "7", [[1]], 1.5, True, [None]])
def test_what_is_no_id_is_named(ids: object) -> None:
    with pytest.raises(TypeError, match=r"eos_token_id=.* must be a token id .* goes into stop"):
        id_list(ids)


def test_ids_of_another_vocabulary_are_known() -> None:
    one, other = tokenizer_with("<a>", "<b>"), tokenizer_with("<b>", "<a>")
    a, b = one.convert_tokens_to_ids(["<a>", "<b>"])
    assert same_ends(one, tokenizer_with("<a>", "<b>", "<c>"), {"eos_token_id": [a, b]})
    assert not same_ends(one, other, {"eos_token_id": [a, b]})
    assert not same_ends(one, tokenizer_with(), {"eos_token_id": a})
    assert same_ends(None, other, {"eos_token_id": a})
    assert same_ends(one, other, {})
