"""Conversations: which tokens are learned, what templates may do, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
from task_batches import SMALL, documents_as_text, targets_as_text, write_lines
from transformers import AutoTokenizer

from lightning_llm import CausalLM
from lightning_llm.data import ChatDataModule, TokenizerSpec
from lightning_llm.data.tokenizer import train_tokenizer
from lightning_llm.models import TransformerConfig

END = "<|im_end|>"
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What closes a turn? <|im_end|>?"},
    {"role": "assistant", "content": "The token <|im_end|> does."},
    {"role": "user", "content": "\n\n谢谢你"},
    {"role": "assistant", "content": "不客气!"},
]
# Turns in the manner of Llama 2: no header, the system's text inside the first user's turn.
INST = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] | trim + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] | trim + eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)


def chats(path: Path, *rows: Any) -> Path:
    return write_lines(path, [json.dumps(row, ensure_ascii=False) for row in rows])


def module(tmp_path: Path, *rows: Any, **options: Any) -> ChatDataModule:
    files = chats(tmp_path / "chats.jsonl", *(rows or [{"messages": CHAT}] * 3))
    defaults: dict[str, Any] = {"tokenizer": SMALL, "seq_len": 192, "micro_batch_size": 1}
    defaults |= {"train_files": files, "cache_dir": tmp_path / "cache"}
    return ChatDataModule(**(defaults | options))


@pytest.fixture
def pretrained(tmp_path: Path) -> Any:
    """Save a tokenizer with a template, special tokens and a start of text; returns its folder."""

    def save(template: str | None, *special: str, bos: bool = False) -> Path:
        spec = TokenizerSpec("bpe", vocab_size=300, special_tokens=special)
        tokenizer = train_tokenizer(spec, ["hello what is this and that"] * 9)
        if template is not None:
            tokenizer.chat_template = template
        if bos:
            from tokenizers.processors import TemplateProcessing

            tokenizer.bos_token = special[0]
            tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
                single=f"{special[0]} $A",
                special_tokens=[(special[0], tokenizer.convert_tokens_to_ids(special[0]))],
            )
        tokenizer.save_pretrained(tmp_path / "pretrained")
        return tmp_path / "pretrained"

    return save


@pytest.mark.parametrize("packing", ["best_fit", "pad"])
def test_every_assistant_turn_and_its_end_is_predicted(tmp_path: Path, packing: Any) -> None:
    data = module(tmp_path, packing=packing)
    texts = targets_as_text(data.tokenizer, data.train_dataloader())
    assert texts == [f"The token {END} does.{END}不客气!{END}"] * 3


def test_the_ids_are_those_of_the_rendered_template(tmp_path: Path) -> None:
    plain = [{**m, "content": m["content"].replace(END, "it")} for m in CHAT]
    data = module(tmp_path, {"messages": plain})
    data.setup()
    text = data.tokenizer.apply_chat_template(plain, tokenize=False)
    assert data.train_store is not None
    # The template's parts of a turn and its content are cut where targets begin; elsewhere equal.
    assert data.train_store[0].tolist() == data.tokenizer(text)["input_ids"]


def test_names_of_special_tokens_in_a_message_stay_text(tmp_path: Path) -> None:
    data = module(tmp_path)
    data.setup()
    assert data.train_store is not None
    ids = data.train_store[0].tolist()
    assert ids.count(data.tokenizer.convert_tokens_to_ids(END)) == len(CHAT)
    assert data.tokenizer.decode(ids).count(END) == len(CHAT) + 2
    batches = list(data.train_dataloader())
    assert documents_as_text(data.tokenizer, batches)[0].startswith("<|im_start|>system\nBe brief.")


def test_sharegpt_rows_are_the_same(tmp_path: Path) -> None:
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    shared = [{"from": names[m["role"]], "value": m["content"]} for m in CHAT]
    data = module(tmp_path, {"conversations": shared})
    (text,) = targets_as_text(data.tokenizer, data.train_dataloader())
    assert text == f"The token {END} does.{END}不客气!{END}"


def test_validation_prompts_end_where_the_last_answer_starts(tmp_path: Path) -> None:
    data = module(tmp_path, val_files=chats(tmp_path / "val.jsonl", {"messages": CHAT}))
    batch = next(iter(data.val_dataloader()))
    rendered = data.tokenizer.apply_chat_template(
        CHAT[:-1], tokenize=False, add_generation_prompt=True
    )
    assert batch["prompts"] == [rendered]
    assert batch["references"] == ["不客气!"]
    assert data.tokenizer.eos_token == END  # where generation stops


def test_a_prompt_that_fills_the_row_is_not_generated_from(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    turn = {"role": "user", "content": "a long question " * 10}
    answer = {"role": "assistant", "content": "short"}
    rows = [{"messages": [turn, answer] * n} for n in (1, 3)]
    data = module(tmp_path, val_files=chats(tmp_path / "val.jsonl", *rows), seq_len=230)
    batches = list(data.val_dataloader())
    assert [len(batch["prompts"]) for batch in batches] == [1, 0]
    assert [len(batch["references"]) for batch in batches] == [1, 0]
    texts = targets_as_text(data.tokenizer, batches)
    assert texts == [f"short{END}", f"short{END}"]  # of the second, what fits
    assert "val: 1 prompts fill seq_len=230" in caplog.text


def test_a_trained_tokenizer_carries_the_template(tmp_path: Path) -> None:
    data = module(tmp_path)
    data.tokenizer.save_pretrained(tmp_path / "saved")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert loaded.apply_chat_template(CHAT, tokenize=False).endswith(f"不客气!{END}\n")
    assert loaded.eos_token == END


def test_the_tokenizer_s_own_template(tmp_path: Path, pretrained: Any) -> None:
    folder = pretrained(INST, "<s>", bos=True)
    rows = {"messages": [{**m, "content": f" {m['content']} "} for m in CHAT[1:]]}
    data = module(tmp_path, rows, tokenizer=folder, val_files=chats(tmp_path / "val.jsonl", rows))
    (text,) = targets_as_text(data.tokenizer, data.train_dataloader())
    assert text == f" The token {END} does.<|endoftext|> 不客气!<|endoftext|>"
    batch = next(iter(data.val_dataloader()))
    prompt_ids = data.tokenizer(batch["prompts"][0])["input_ids"]
    assert data.val_store is not None
    assert data.val_store[0][: len(prompt_ids)].tolist() == prompt_ids  # one start of text
    with pytest.raises(ValueError, match=r"chats.jsonl:1: the chat template refuses.*only user"):
        module(tmp_path, {"messages": CHAT}, tokenizer=folder).prepare_data()


def test_a_template_that_writes_into_the_last_turn(tmp_path: Path, pretrained: Any) -> None:
    """What comes between header and content is written by the assistant; outer space may go."""
    thinking = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
        "{% if m.role == 'assistant' and loop.last %}{{ '(thought)' }}{% endif %}"
        "{{ (m.content | trim if m.role == 'user' else m.content) + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    folder = pretrained(thinking, "<|im_start|>", END)
    rows = {"messages": [{**m, "content": m["content"] + " "} for m in CHAT]}
    data = module(tmp_path, rows, tokenizer=folder)
    (text,) = targets_as_text(data.tokenizer, data.train_dataloader())
    assert text == f"The token {END} does. {END}(thought)不客气! {END}"


def test_a_pretrained_tokenizer_without_a_template_gets_chatml(
    tmp_path: Path, pretrained: Any
) -> None:
    folder = pretrained(None)
    known = len(AutoTokenizer.from_pretrained(folder))
    data = module(tmp_path, tokenizer=folder)
    assert data.vocab_size == known + 2
    assert targets_as_text(data.tokenizer, data.train_dataloader())[0].endswith(f"不客气!{END}")


def test_a_model_without_rows_for_chatml_is_refused(tmp_path: Path, pretrained: Any) -> None:
    folder = pretrained(None)
    known = len(AutoTokenizer.from_pretrained(folder))
    data = module(tmp_path, tokenizer=folder)
    trainer = L.Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    config = TransformerConfig(n_layers=1, dim=16, n_heads=1, max_seq_len=192)
    with pytest.raises(ValueError, match=rf"makes {known + 2} ids, but the .* has {known} rows"):
        trainer.fit(CausalLM(config, vocab_size=known), data)


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{ messages[0]['content'] }}", "does not show message 1"),
        ("{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}", "closes turn 2"),
        (
            "{% for m in messages %}{{ m['content'] | upper + eos_token }}{% endfor %}",
            "changes the contents",
        ),
    ],
)
def test_templates_that_cannot_be_followed(tmp_path: Path, template: str, problem: str) -> None:
    with pytest.raises(ValueError, match=rf"chats.jsonl:1: the chat template {problem}.*chatml"):
        module(tmp_path, chat_template=template).prepare_data()


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"messages": CHAT[:2]}, "no assistant turn, so nothing to learn .its roles: system, user"),
        ({"messages": []}, "expected a list of messages"),
        ({"text": "a"}, "no field 'messages'; it has .'text'."),
        ({"messages": [{"role": "judge", "content": "a"}]}, r"\[0\]: unknown role 'judge'; known"),
        ({"messages": [*CHAT[:2], {"role": "assistant", "content": " "}]}, "turn is empty"),
        ({"messages": [{"role": "user"}]}, "content: expected a text, got None"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}]},
            "tool_calls: the chat template does not show this field",
        ),
    ],
)
def test_conversations_that_are_refused(tmp_path: Path, row: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=rf"chats.jsonl:2: .*{problem}"):
        module(tmp_path, {"messages": CHAT}, row).prepare_data()
