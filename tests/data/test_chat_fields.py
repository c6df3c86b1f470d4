"""What rows of conversations say is rendered, masked, or an error that names the field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import chat_families as families
import pytest
from task_batches import targets_as_text, write_lines

from lightning_llm.data import (
    ChatDataModule,
    QADataModule,
    TokenizerSpec,
    TranslationDataModule,
)

SPEC = TokenizerSpec("byte", special_tokens=tuple(families.SPECIAL))
ASK = {"role": "user", "content": "Ox?"}
TELL = {"role": "assistant", "content": "Cattle."}
CALL = {"id": "1", "type": "function", "function": {"name": "lookup", "arguments": {"word": "ox"}}}


def module(folder: Path, *rows: Any, kind: Any = ChatDataModule, **options: Any) -> Any:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    defaults: dict[str, Any] = {"tokenizer": SPEC, "seq_len": 400, "micro_batch_size": 1}
    if kind is ChatDataModule:
        defaults["chat_template"] = families.PLAIN
    files = write_lines(folder / "rows.jsonl", lines)
    defaults |= {"train_files": files, "cache_dir": folder / "cache"}
    return kind(**(defaults | options))


def learned(folder: Path, row: Any, **options: Any) -> str:
    """The targets of one row as text."""
    data = module(folder, row, **options)
    [text] = targets_as_text(data.tokenizer, data.train_dataloader())
    return text


def whole(folder: Path, row: Any, **options: Any) -> str:
    data = module(folder, row, **options)
    data.setup()
    return data.tokenizer.decode(data.train_store[0])


def talk(*messages: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": [ASK, *messages], **fields}


def test_turns_of_weight_zero_are_read_and_not_learned(tmp_path: Path) -> None:
    turns = [{**TELL, "content": text, "weight": i} for i, text in enumerate(("Bad", "Good"))]
    assert learned(tmp_path, talk(turns[0], ASK, turns[1])) == "Good<|im_end|>"
    assert "Bad<|im_end|>" in whole(tmp_path, talk(turns[0], ASK, turns[1]))
    shared = [
        {"from": "human", "value": "Ox?", "train": False},
        {"from": "gpt", "value": "Bad", "train": False},
        {"from": "model", "value": "Good", "loss": True},
    ]
    assert learned(tmp_path, {"conversations": shared}) == "Good<|im_end|>"


def test_calls_of_tools_are_learned(tmp_path: Path) -> None:
    shown = '<call>lookup{"word": "ox"}</call><|im_end|>'
    for turn in (
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": [CALL], "function_call": None},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
    ):
        assert learned(tmp_path, talk(turn)) == shown
    text = learned(tmp_path, talk({**TELL, "tool_calls": [CALL]}))
    assert text == f"Cattle.{shown}"


def test_a_row_s_own_system_text_and_tools(tmp_path: Path) -> None:
    assert whole(tmp_path, talk(TELL, system="Brief.")).startswith(
        "<|im_start|>system\nBrief.<|im_end|>\n<|im_start|>user\n"
    )
    same = [{"role": "system", "content": "Brief."}, ASK, TELL]
    assert whole(tmp_path, {"messages": same, "system": "Brief."}).count("Brief.") == 1
    template = "{{ tools | tojson if tools }}{{ mood }}" + families.PLAIN
    row = talk(TELL, tools=json.dumps([CALL]), chat_template_kwargs={"mood": "glad"})
    assert whole(tmp_path, row, chat_template=template).startswith('[{"id": "1"')
    assert "]glad<|im_start|>" in whole(tmp_path, row, chat_template=template)
    row = talk(TELL, functions=[{"name": "lookup"}])
    assert '{"name": "lookup"}' in whole(tmp_path, row, chat_template=template)


def test_reasoning_is_learned_where_the_template_shows_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("reasoning_content", "thinking", "reasoning"):
        row = talk({**TELL, name: "Why"})
        template = families.FORGETS.replace("m.reasoning_content", f"m.{name}")
        text = learned(tmp_path, row, chat_template=template)
        assert text == "Why\n</think>\n\nCattle.<|im_end|>"
        with pytest.raises(ValueError, match=rf"rows.jsonl:1: messages\[1\]: {name}: .* not show"):
            module(tmp_path, row).prepare_data()
    earlier = talk({**TELL, "reasoning_content": "Why"}, ASK, {**TELL, "reasoning_content": "So"})
    learned(tmp_path, earlier, chat_template=families.FORGETS)
    assert (
        "field 'reasoning_content' is left out of earlier turns (1 times, first at" in caplog.text
    )


def test_parts_of_text(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Cat"}, {"type": "text", "text": "tle."}]
    row = talk({"role": "assistant", "content": parts})
    row["messages"][0] = {"role": "user", "content": [{"type": "text", "text": "Ox?"}]}
    assert learned(tmp_path, row, chat_template=families.PARTS) == "Cattle.<|im_end|>"
    assert learned(tmp_path, talk(TELL), chat_template=families.PARTS) == "Cattle.<|im_end|>"
    with pytest.raises(ValueError, match=r"messages\[0\]: content: .* list of parts"):
        module(tmp_path, row).prepare_data()
    row["messages"][1]["content"] = parts[:1]
    assert learned(tmp_path, row) == "Cat<|im_end|>"  # PLAIN would write the list itself
    assert "{" not in whole(tmp_path, row)
    row["messages"][0]["content"] = [{"type": "image_url", "image_url": "x.png"}]
    with pytest.raises(ValueError, match=r"messages\[0\]: content\[0\]: expected a part of text"):
        module(tmp_path, row).prepare_data()


@pytest.mark.parametrize("role", ["developer", "function", "observation", "ipython", "tool"])
def test_further_roles(tmp_path: Path, role: str) -> None:
    """As the template shows them; as the usual role where it does not."""
    row = talk(TELL, {"role": role, "content": "Hm."}, TELL)
    assert f"<|im_start|>{role}\nHm.<|im_end|>" in whole(tmp_path, row)
    strict = families.PLAIN.replace(
        "<|im_start|>{{",
        "{% if m.role not in ['system', 'user', 'assistant', 'tool'] %}"
        "{{ raise_exception('who?') }}{% endif %}<|im_start|>{{",
    )
    usual = "system" if role == "developer" else "tool"
    assert f"<|im_start|>{usual}\nHm.<|im_end|>" in whole(tmp_path, row, chat_template=strict)
    silent = "{% for m in messages if m.role in ['user', 'assistant'] %}" + families.PLAIN[24:]
    with pytest.raises(ValueError, match=rf"does not show message 2 \({usual}\).*messages\[2\]"):
        module(tmp_path, row, chat_template=silent).prepare_data()


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (talk({**TELL, "weight": 0.5}), r"messages\[1\]: weight: expected 0 or 1, got 0.5"),
        (talk({**TELL, "train": "no"}), r"messages\[1\]: train: expected true or false, got 'no'"),
        (talk({**TELL, "weight": 0, "train": True}), "weight, train contradict each other"),
        (talk({**TELL, "weight": 0}), "every assistant turn is marked as not learned"),
        (talk({"role": "user", "content": "a", "train": True}, TELL), "train asks for a turn of"),
        (talk(TELL, weight=0.5), "weight: 0.5 of a whole conversation"),
        (talk(TELL, system=3), "system: expected a text, got 3"),
        (
            {"messages": [{"role": "system", "content": "a"}, TELL], "system": "b"},
            "system: the messages begin with a system message of their own",
        ),
        (talk(TELL, images=["a.png"]), "images: a field that conversations are not read with"),
        (talk(TELL, tools=[CALL]), "tools: the chat template does not show them"),
        (talk(TELL, tools="{"), "tools: a text that is no JSON"),
        (talk(TELL, documents=[{"text": "a"}]), "documents: the chat template does not show"),
        (talk(TELL, chat_template_kwargs={"mood": 1}), "the chat template does not know 'mood'"),
        (talk({**TELL, "refusal": "No."}), "refusal: the chat template does not show this field"),
        (talk({**TELL, "function_call": {"name": "f"}}), "function_call: the chat template does"),
        (talk({**TELL, "mask": True}), "mask: the chat template does not show this field"),
        (talk({"from": "function_call", "value": "{}"}, TELL), "Give the call as tool_calls"),
        (talk({"role": "assistant", "content": 5}), "content: expected a text, got 5"),
        (talk({**TELL, "tool_calls": "f()"}), "tool_calls"),
    ],
)
def test_an_error_names_the_field(tmp_path: Path, row: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=rf"rows.jsonl:2: .*{problem}"):
        module(tmp_path, talk(TELL), row).prepare_data()


def test_what_else_is_left_out_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    row = talk({**TELL, "mood": "glad"}, id=7, source="farm")
    module(tmp_path, row, row).prepare_data()
    assert caplog.text.count("field 'mood' of messages is not shown by the template") == 1
    assert "fields of rows that are not read: id, source (first at" in caplog.text
    shown = families.PLAIN.replace("{{ m.content }}", "{{ m.content }}{{ m.mood }}")
    assert learned(tmp_path, talk({**TELL, "mood": "glad"}), chat_template=shown).startswith(
        "Cattle.glad"
    )
    caplog.clear()
    template = families.PLAIN.replace("{{ c.function.arguments | tojson }}", "")
    learned(tmp_path, talk({**TELL, "tool_calls": [CALL]}), chat_template=template)
    assert "arguments of tool_calls are not shown by the template (1 times" in caplog.text
    two = talk({**TELL, "tool_calls": [CALL, CALL]})
    template = families.PLAIN.replace("m.tool_calls or []", "(m.tool_calls or [])[:1]")
    with pytest.raises(ValueError, match=r"tool_calls\[1\]: the chat template does not show this"):
        module(tmp_path, two, chat_template=template).prepare_data()


GOOD = {
    ChatDataModule: talk(TELL),
    TranslationDataModule: {"source": "ox", "target": "Cattle"},
    QADataModule: {"context": "Oxen", "question": "Ox?", "answers": "Cattle"},
}


@pytest.mark.parametrize("kind", GOOD)
def test_bad_rows_are_skipped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: Any
) -> None:
    good = GOOD[kind]
    surrogate = json.dumps(good).replace("Cattle", "Cat\\ud83d")
    rows = [good, {"other": 1}, good, surrogate, "{", "[]"]
    with pytest.raises(ValueError, match=r"rows.jsonl:2: .*no field"):
        module(tmp_path, *rows, kind=kind).prepare_data()
    with pytest.raises(ValueError, match=r"rows.jsonl:2: .*half of a surrogate pair"):
        module(tmp_path, good, surrogate, kind=kind).prepare_data()
    data = module(tmp_path, *rows, kind=kind, errors="skip")
    data.setup()
    assert len(data.train_store) == 2
    assert caplog.text.count("left out 4 rows that are no examples; the first: ") == 1
    assert "rows.jsonl:2: " in caplog.text
    with pytest.raises(ValueError, match=r'0 examples.*1 by errors="skip", the first .*jsonl:1'):
        module(tmp_path, {"other": 1}, kind=kind, errors="skip").prepare_data()
    with pytest.raises(ValueError, match="errors='ignore'"):
        module(tmp_path, good, kind=kind, errors="ignore")


def test_a_tokenizer_learns_from_what_can_be_read(tmp_path: Path) -> None:
    spec = TokenizerSpec("char", special_tokens=("<|im_start|>", "<|im_end|>"))
    rows = [talk(TELL), {"other": "@"}]
    data = module(tmp_path, *rows, tokenizer=spec, chat_template="chatml", errors="skip")
    assert {"C", "?"} <= data.tokenizer.get_vocab().keys()
    assert "@" not in data.tokenizer.get_vocab()


def test_lines_that_cannot_be_read_are_skipped_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"tokenizer": SPEC, "micro_batch_size": 1, "cache_dir": tmp_path / "cache"}
    table = tmp_path / "pairs.tsv"
    table.write_bytes(b"ox\tOchse\ncow\t\xff\nhen\nram\tWidder\n")
    cells = tmp_path / "cells.csv"
    cells.write_bytes(b"source,target\nox,Ochse\ncow,Kuh,Rind\nhen,\xff\nram,Widder\n")
    sides = [tmp_path / "a.en", tmp_path / "a.de"]
    sides[0].write_bytes(b"ox\ncow\xff\nram\n")
    sides[1].write_bytes(b"Ochse\nKuh\nWidder\n")
    for given, number in (
        ({"train_files": table}, 2),
        ({"train_files": cells}, 2),
        ({"train_source": sides[0], "train_target": sides[1]}, 1),
    ):
        with pytest.raises(ValueError, match=r"UTF-8|3 cells"):
            TranslationDataModule(**given, **options).prepare_data()
        data = TranslationDataModule(**given, **options, errors="skip")
        data.setup()
        assert len(data.train_store) == 2
        assert f"left out {number} rows that are no examples; the first: " in caplog.text


def test_conversations_in_a_table(tmp_path: Path) -> None:
    path = tmp_path / "chats.csv"
    cell = json.dumps(talk(TELL)["messages"]).replace('"', '""')
    path.write_text(f'id,messages\n7,"{cell}"\n', encoding="utf-8")
    assert learned(tmp_path, talk(TELL), train_files=path) == "Cattle.<|im_end|>"


def test_fields_that_arrow_fills_in_are_not_there(tmp_path: Path) -> None:
    """Objects of one column get each other's keys, as nulls."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def calling(**arguments: Any) -> dict[str, Any]:
        function = {"name": "lookup", "arguments": arguments}
        return talk({**TELL, "tool_calls": [{"type": "function", "function": function}]})

    path = tmp_path / "chats.parquet"
    rows = [calling(word="ox"), calling(number=2), talk(TELL)]
    pq.write_table(pa.Table.from_pylist(rows), path)
    data = module(tmp_path, talk(TELL), train_files=path, packing="pad", seed=1)
    texts = targets_as_text(data.tokenizer, data.train_dataloader())
    assert sorted(texts) == [
        'Cattle.<call>lookup{"number": 2}</call><|im_end|>',
        'Cattle.<call>lookup{"word": "ox"}</call><|im_end|>',
        "Cattle.<|im_end|>",
    ]
