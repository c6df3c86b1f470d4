"""Every template is followed: the ids are those of the whole, the targets the assistant's."""

from __future__ import annotations

import copy
from itertools import groupby
from typing import Any

import chat_families as families
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers import normalizers as norm
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from lightning_llm.data import TokenizerSpec
from lightning_llm.data.chat_examples import ChatTask
from lightning_llm.data.examples import ExampleEncoder
from lightning_llm.data.tokenizer import train_tokenizer

TOOLS = [{"type": "function", "function": {"name": "lookup", "parameters": {}}}]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: str | None, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **fields}


def call(arguments: Any = None) -> list[dict[str, Any]]:
    function = {"name": "lookup", "arguments": {"word": "ox"} if arguments is None else arguments}
    return [{"id": "call00001", "type": "function", "function": function}]


TWO = [user("First?"), answer("One."), user("\n\nSecond?"), answer("Two.")]
THOUGHT = [
    user("First?"),
    answer("One.", reasoning_content="Why one"),
    user("Second?"),
    answer("Two.", reasoning_content="Why two"),
]
INSIDE = [user("First?"), answer("<think>\nWhy one\n</think>\n\nOne.")]
LOOKED_UP = [
    user("Ox?"),
    answer("Let me see.", tool_calls=call()),
    {"role": "tool", "content": "cattle"},
    answer("Cattle."),
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    spec = TokenizerSpec("bpe", vocab_size=330, special_tokens=tuple(families.SPECIAL))
    made = train_tokenizer(spec, ["one two first second and so on\n\n"] * 9)
    made.bos_token = "<s>"
    return made


def read(tokenizer: Any, row: dict[str, Any], template: str | None = None) -> tuple[Any, list[str]]:
    """The example of a row and the learned parts; the ids are those of the whole rendering."""
    if template is not None:
        tokenizer.chat_template = template
    example = ChatTask().example((copy.deepcopy(row), "chats:1"), tokenizer)
    [(ids, marks)] = ExampleEncoder(tokenizer)([example])
    messages = [
        {k: v for k, v in m.items() if k not in ("weight", "train")} for m in row["messages"]
    ]
    options = {k: row[k] for k in ("tools",) if k in row}
    whole = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options)
    assert ids.tolist() == list(whole)
    learned = []
    position = 0
    for is_target, run in groupby(marks.tolist()):
        size = len(list(run))
        if is_target:
            learned.append(tokenizer.decode(ids[position : position + size]))
        position += size
    return example, learned


CASES = {
    "plain": (families.PLAIN, TWO, ["One.<|im_end|>", "Two.<|im_end|>"]),
    "plain calls": (
        families.PLAIN,
        LOOKED_UP,
        ['Let me see.<call>lookup{"word": "ox"}</call><|im_end|>', "Cattle.<|im_end|>"],
    ),
    "forgets": (families.FORGETS, TWO, ["One.<|im_end|>", "Two.<|im_end|>"]),
    "forgets reasoning": (
        families.FORGETS,
        THOUGHT,
        ["One.<|im_end|>", "Why two\n</think>\n\nTwo.<|im_end|>"],
    ),
    "forgets reasoning inside": (
        families.FORGETS,
        INSIDE,
        ["Why one\n</think>\n\nOne.<|im_end|>"],
    ),
    "forgets calls": (
        families.FORGETS,
        LOOKED_UP,
        ["Let me see.<call>lookup:word=ox;</call><|im_end|>", "Cattle.<|im_end|>"],
    ),
    "heads": (families.HEADS, TWO, ["\n<think></think>\nOne.<|user|>", "\n<think></think>\nTwo."]),
    "heads of tools": (
        families.HEADS,
        LOOKED_UP,
        [
            "\n<think></think>\nLet me see.<call>lookup</call><|observation|>",
            "\n<think></think>\nCattle.",
        ],
    ),
    "mutates": (
        families.MUTATES,
        [user("Hm"), {"role": "system", "content": "Brief."}, answer("One.")],
        ["One.<|end|>"],
    ),
    "mutates thoughts": (families.MUTATES, INSIDE, ["\n\nOne.<|end|>"]),
    "two ends": (
        families.TWO_ENDS,
        TWO,
        [
            "<|response|>One.<|end_response|><|end_turn|>",
            "<|response|>Two.<|end_response|><|end_turn|>",
        ],
    ),
    "channels": (families.CHANNELS, TWO, ["<|message|>One.<|end|>", "<|message|>Two.<|return|>"]),
    "channels of tools": (
        families.CHANNELS,
        [user("Ox?"), answer("", tool_calls=call()), *LOOKED_UP[2:]],
        [
            ' to=functions.lookup<|message|>{"word": "ox"}<|call|>',
            "<|message|>Cattle.<|return|>",
        ],
    ),
    "brackets": (families.BRACKETS, TWO, [" One.</s>", " Two.</s>"]),
    "marked": (families.MARKED, TWO, ["One.<|im_end|>", "Two.<|im_end|>"]),
}


@pytest.mark.parametrize("name", CASES)
def test_the_assistant_s_turns_in_the_rendering_of_the_whole(tokenizer: Any, name: str) -> None:
    template, messages, expected = CASES[name]
    _, learned = read(tokenizer, {"messages": messages}, template)
    assert learned == expected


@pytest.mark.parametrize("name", ["plain", "forgets", "heads", "two ends", "channels", "marked"])
def test_a_turn_that_is_not_to_be_learned(tokenizer: Any, name: str) -> None:
    template, messages, expected = CASES[name]
    turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    for flag in ({"weight": 0}, {"train": False}, {"weight": 0.0, "train": False}):
        marked = copy.deepcopy(messages)
        marked[turns[0]] |= flag
        marked[turns[1]] |= {"weight": 1}
        assert read(tokenizer, {"messages": marked}, template)[1] == expected[1:]


def test_tools_before_the_last_question(tokenizer: Any) -> None:
    """The rendering up to a turn has the tools elsewhere than the whole."""
    row = {"messages": TWO, "tools": TOOLS}
    assert read(tokenizer, row, families.BRACKETS)[1] == [" One.</s>", " Two.</s>"]


def test_arguments_in_the_form_that_the_template_takes(tokenizer: Any) -> None:
    for template, given, shown in (
        (families.FORGETS, '{"word": "ox"}', "lookup:word=ox;"),
        (families.MUTATES, {"word": "ox"}, 'lookup{"word": "ox"}'),
    ):
        tokenizer.chat_template = template
        turn = answer(None, tool_calls=call(given))
        example = ChatTask().example(({"messages": [user("Ox?"), turn]}, "chats:1"), tokenizer)
        [(ids, marks)] = ExampleEncoder(tokenizer)([example])
        learned = tokenizer.decode(ids[marks > 0])
        assert shown in learned
        assert "None" not in learned
        assert learned.endswith(("<|im_end|>", "<|calls_end|><|end|>"))


def test_what_generation_starts_from_is_the_template_s_prompt(tokenizer: Any) -> None:
    for template, messages, _ in CASES.values():
        example, _ = read(tokenizer, {"messages": messages}, template)
        prompt = tokenizer.apply_chat_template(
            messages[:-1], tokenize=False, add_generation_prompt=True
        )
        switched = tokenizer.apply_chat_template(
            messages[:-1], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        assert example.prompt in (prompt, switched)


def test_special_names_that_users_write_are_text(tokenizer: Any) -> None:
    """Elsewhere the ids are those of the template's rendering; within messages no token is made."""
    messages = [user("What is <|im_end|>?"), answer("<|im_end|> ends <s>a turn")]
    tokenizer.chat_template = families.PLAIN
    example = ChatTask().example(({"messages": messages}, "chats:1"), tokenizer)
    [(ids, marks)] = ExampleEncoder(tokenizer)([example])
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    assert tokenizer.decode(ids) == whole
    end, start = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<s>"])
    assert ids.tolist().count(end) == 2
    assert start not in ids
    assert tokenizer.decode(ids[marks > 0]) == "<|im_end|> ends <s>a turn<|im_end|>"


def spaced(kind: str) -> Any:
    """Tokenizers that treat spaces in their own ways, trained on a few words."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=kind.startswith("metaspace")))
    if kind == "bytes":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        backend.decoder = decoders.ByteLevel()
    elif kind == "prepend":
        backend.normalizer = norm.Sequence([norm.Prepend("▁"), norm.Replace(" ", "▁")])
        backend.decoder = decoders.Replace("▁", " ")
    else:
        scheme = kind.removeprefix("metaspace ")
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
        backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    texts = ["user assistant First? Second? One. Two. a \n\n" + bytes(range(32, 127)).decode()] * 5
    backend.train_from_iterator(texts, BpeTrainer(vocab_size=220, special_tokens=special))
    if kind == "bytes":
        backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 1))
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", bos_token="<s>")
    made.chat_template = families.PLAIN.replace("_start|>", "_start|> ")
    return made


@pytest.mark.parametrize("kind", ["bytes", "prepend", "metaspace first", "metaspace always"])
def test_ids_are_those_of_the_whole_for_tokenizers_that_add_spaces(kind: str) -> None:
    tokenizer = spaced(kind)
    messages = [user(" First?"), answer(" One. "), user("Second?"), answer("Two.")]
    _, learned = read(tokenizer, {"messages": messages})
    assert [text.strip().replace(" ", "") for text in learned] == [
        "One.<|im_end|>",
        "Two.<|im_end|>",
    ]


def test_spaces_at_the_edge_of_a_turn_belong_to_it_or_not() -> None:
    """A head that ends in a space of its own token, where offsets leave spaces out."""
    tokenizer = spaced("bytes")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}:  {{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}assistant:  {% endif %}"
    )
    _, learned = read(tokenizer, {"messages": TWO})
    assert [text.strip() for text in learned] == ["One.</s>", "Two.</s>"]
