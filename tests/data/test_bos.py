"""BOS: stores, examples, prompts and exports all begin a text as the tokenizer does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import decoders, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lightning_llm import CausalLM, TextDataModule
from lightning_llm.data import (
    ChatDataModule,
    QADataModule,
    TokenDataModule,
    TokenizerSpec,
    TranslationDataModule,
)
from lightning_llm.data.special_frame import special_frame
from lightning_llm.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from lightning_llm.generation.text import encode_prompts
from lightning_llm.models import TransformerConfig
from tests.data.assorted_tokenizers import BUILDERS

TEXTS = ["The fox.", "a\nb", "It ran 3 miles.", "the end"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '[' + m.role + ']' + m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)
FRAMES = {
    "template": ("<s>", ""), "both": ("<s>", "</s>"), "eos": ("", "</s>"), "none": ("", ""),
    "roberta": ("<s>", "</s>"), "flags": ("<s>", ""),
}  # fmt: skip


def saved(folder: Path, frame: str, *, template: str | None = None) -> str:
    """Save a tokenizer that puts special tokens around texts, in one of the ways there are."""
    tokenizer = BUILDERS["gpt2"]()
    tokenizer.bos_token = "<s>"
    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    before, after = FRAMES[frame]
    if frame == "roberta":
        made: Any = processors.RobertaProcessing(("</s>", eos), ("<s>", bos))
    else:
        made = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(
                    single=f"{before} $A {after}".strip(),
                    special_tokens=[("<s>", bos), ("</s>", eos)],
                ),
            ]
        )
    tokenizer.backend_tokenizer.post_processor = made
    tokenizer.chat_template = template
    if frame == "flags":
        tokenizer.add_bos_token = True
        tokenizer.init_kwargs["add_bos_token"] = True
    tokenizer.save_pretrained(folder)
    return str(folder)


def text_data(tmp_path: Path, tokenizer: str, **options: Any) -> TextDataModule:
    rows = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS * 4)
    (tmp_path / "text.jsonl").write_text(rows)
    add_bos = options.pop("add_bos", None)
    data = TextDataModule(
        train_files=tmp_path / "text.jsonl",
        tokenizer=TokenizerSpec(pretrained=tokenizer, add_bos=add_bos),
        cache_dir=tmp_path / "cache",
        **({"seq_len": 12, "micro_batch_size": 2} | options),
    )
    data.prepare_data()
    data.setup("fit")
    return data


def documents(data: TextDataModule) -> list[list[int]]:
    assert data.train_store is not None
    return [ids.tolist() for ids in data.train_store]


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("add_bos", [None, False, True])
def test_stores_and_prompts_begin_and_end_alike(
    frame: str, add_bos: bool | None, tmp_path: Path
) -> None:
    folder = saved(tmp_path / "tokenizer", frame)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    given = FRAMES[frame][0] != ""
    first = [bos] if (given if add_bos is None else add_bos) else []
    data = text_data(tmp_path, folder, add_bos=add_bos)
    plain = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    assert documents(data)[:4] == [[*first, *ids, eos] for ids in plain]
    if add_bos is None:
        for text, ids in zip(TEXTS, documents(data)):
            called = tokenizer(text)["input_ids"]
            assert ids == (called if called[-1] == eos else [*called, eos])
    assert encode_prompts(data.tokenizer, TEXTS) == [[*first, *ids] for ids in plain]
    data.tokenizer.save_pretrained(tmp_path / "exported")
    exported = AutoTokenizer.from_pretrained(tmp_path / "exported")
    assert exported("a")["input_ids"] == data.tokenizer("a")["input_ids"]
    assert tokenizer_fingerprint(load_tokenizer(tmp_path / "exported")) == tokenizer_fingerprint(
        data.tokenizer
    )


def test_another_choice_makes_another_store(tmp_path: Path) -> None:
    folder = saved(tmp_path / "tokenizer", "template")
    stores = [text_data(tmp_path, folder, add_bos=choice) for choice in (None, False, None, True)]
    fingerprints = [data.train_store.fingerprint for data in stores if data.train_store is not None]
    assert fingerprints[0] == fingerprints[2] == fingerprints[3] != fingerprints[1]
    # A store says which tokenizer made it; the other choice is another one.
    assert stores[1].train_store is not None
    path = stores[1].train_store.path
    spec = TokenizerSpec(pretrained=folder, add_bos=False)
    options: dict[str, Any] = {"train_store": path, "seq_len": 4, "micro_batch_size": 1}
    TokenDataModule(**options, tokenizer=spec).prepare_data()
    with pytest.raises(ValueError, match="made by another tokenizer"):
        TokenDataModule(**options, tokenizer=folder).prepare_data()


@pytest.mark.parametrize("packing", ["concat", "best_fit", "pad"])
def test_the_first_token_of_a_text_is_a_target_and_bos_is_none(
    packing: Any, tmp_path: Path
) -> None:
    folder = saved(tmp_path / "tokenizer", "template")
    data = text_data(tmp_path, folder, packing=packing, mask_documents=True)
    bos = data.tokenizer.bos_token_id
    pairs = [
        (given, target)
        for batch in data.train_dataloader()
        for given, target in zip(batch["input_ids"].flatten(), batch["shift_labels"].flatten())
    ]
    assert all(target != bos for _, target in pairs)
    firsts = [int(target) for given, target in pairs if given == bos and target != -100]
    assert sorted(firsts) == sorted(ids[1] for ids in documents(data))


def example_data(kind: str, tmp_path: Path, folder: str, add_bos: bool | None) -> Any:
    rows: dict[str, dict[str, Any]] = {
        "qa": {"context": "the fox ran", "question": "who?", "answers": "the fox"},
        "translation": {"source": "the fox", "target": "a fox"},
        "chat": {
            "messages": [
                {"role": "user", "content": "the fox?"},
                {"role": "assistant", "content": "a fox"},
            ]
        },
    }
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows[kind]) + "\n")
    makers: dict[str, Any] = {
        "qa": QADataModule, "translation": TranslationDataModule, "chat": ChatDataModule,
    }  # fmt: skip
    data = makers[kind](
        train_files=tmp_path / "rows.jsonl",
        val_files=tmp_path / "rows.jsonl",
        tokenizer=TokenizerSpec(pretrained=folder, add_bos=add_bos),
        seq_len=64,
        micro_batch_size=1,
        cache_dir=tmp_path / "cache",
    )
    data.prepare_data()
    data.setup("fit")
    return data


@pytest.mark.parametrize("kind", ["qa", "translation", "chat", "chat without bos"])
@pytest.mark.parametrize("add_bos", [None, False])
@pytest.mark.parametrize("frame", ["template", "both", "none"])
def test_examples_begin_as_their_prompts_do(
    kind: str, add_bos: bool | None, frame: str, tmp_path: Path
) -> None:
    template = TEMPLATE if kind == "chat" else TEMPLATE.replace("{{ bos_token }}", "")
    folder = saved(tmp_path / "tokenizer", frame, template=template)
    data = example_data(kind.split()[0], tmp_path, folder, add_bos)
    bos = data.tokenizer.bos_token_id
    ids = data.train_store[0].tolist()
    added = FRAMES[frame][0] != ""
    expected = {"chat": True, "chat without bos": False}.get(kind, added) and add_bos is None
    assert ids.count(bos) == expected
    assert (ids[0] == bos) == expected
    assert ids.count(data.tokenizer.eos_token_id) == 1
    (prompt,) = encode_prompts(data.tokenizer, next(iter(data.val_dataloader()))["prompts"])
    assert data.val_store[0][: len(prompt)].tolist() == prompt


def test_a_rendered_prompt_gets_no_second_bos(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(saved(tmp_path, "both"))
    bos = tokenizer.bos_token_id
    (ids,) = encode_prompts(tokenizer, ["<s>the fox"])
    assert ids == [bos, *tokenizer("the fox", add_special_tokens=False)["input_ids"]]
    assert encode_prompts(tokenizer, [""]) == [[bos]]
    off = load_tokenizer(tmp_path, add_bos=False)
    assert encode_prompts(off, [""]) == [[off.eos_token_id]]


def test_the_module_generates_from_what_it_was_trained_on(tmp_path: Path) -> None:
    folder = saved(tmp_path / "tokenizer", "template")
    config = {"n_layers": 1, "dim": 16, "n_heads": 2, "max_seq_len": 32}
    for add_bos in (None, False):
        data = text_data(tmp_path, folder, add_bos=add_bos)
        torch.manual_seed(0)
        lm = CausalLM(TransformerConfig(vocab_size=data.vocab_size, **config))
        lm.tokenizer = data.tokenizer
        start, prompt = documents(data)[0][:-1], TEXTS[0]
        assert encode_prompts(data.tokenizer, [prompt]) == [start]
        (text,) = lm.generate([prompt], max_new_tokens=4, temperature=0)
        ids = lm.generate(torch.tensor([start]), max_new_tokens=4, temperature=0)[0].tolist()
        whole = data.tokenizer.decode(ids, skip_special_tokens=True)
        assert whole == prompt + text
        lm.save_pretrained(tmp_path / f"export-{add_bos}")
        exported = AutoTokenizer.from_pretrained(tmp_path / f"export-{add_bos}")
        assert special_frame(exported) == special_frame(data.tokenizer)


def test_bos_that_is_not_there(tmp_path: Path) -> None:
    tokenizer: PreTrainedTokenizerFast = BUILDERS["gpt2"]()
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"add_bos=True: the tokenizer .* has no bos_token"):
        load_tokenizer(tmp_path, add_bos=True)
    with pytest.raises(ValueError, match="add_bos=True needs a pretrained tokenizer"):
        TokenizerSpec("bpe", add_bos=True)
