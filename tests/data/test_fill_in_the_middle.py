"""Filling in the middle: every character kept, in the orders of the paper, the same every time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken

from lightning_llm import TextDataModule
from lightning_llm.data import TokenizerSpec, fim_prompt
from lightning_llm.data.fill_in_the_middle import FIM_TOKENS, FillInTheMiddle, Sentinels
from lightning_llm.data.tokenizer import train_tokenizer

IDS = Sentinels(prefix=-1, middle=-2, suffix=-3)
TEXTS = [f"def f{i}(x):\n    return x + {i}  # 第{i}个\n" for i in range(400)]


def parts_of(arranged: list[str | int]) -> dict[int, str]:
    """The text behind each sentinel."""
    parts: dict[int, str] = {}
    for item in arranged:
        if isinstance(item, int):
            parts[last := item] = ""
        else:
            parts[last] += item
    return parts


def restored(arranged: list[str | int]) -> tuple[str, bool]:
    """The document that was rearranged, put together from the definition, and whether as SPM."""
    if all(isinstance(item, str) for item in arranged):
        return "".join(map(str, arranged)), False
    order = [item for item in arranged if isinstance(item, int)]
    assert order == [IDS.prefix, IDS.suffix, IDS.middle]
    parts = parts_of(arranged)
    spm = isinstance(arranged[1], int) and len(parts[IDS.prefix]) == 0
    if spm:  # prefix and middle follow each other
        return parts[IDS.middle] + parts[IDS.suffix], True
    return parts[IDS.prefix] + parts[IDS.middle] + parts[IDS.suffix], False


@pytest.mark.parametrize("spm_rate", [0.0, 0.5, 1.0])
def test_no_character_is_lost_and_the_rates_hold(spm_rate: float) -> None:
    fim = FillInTheMiddle(0.7, spm_rate, seed=3)
    arranged = [list(fim.arrange([text], IDS)) for text in TEXTS]
    found = [restored(items) for items in arranged]
    assert [text for text, _ in found] == TEXTS
    changed = sum(len(items) > 1 for items in arranged)
    assert 0.6 < changed / len(TEXTS) < 0.8
    assert abs(sum(spm for _, spm in found) / changed - spm_rate) < 0.1


def test_the_draw_depends_on_seed_and_text_alone() -> None:
    fim = FillInTheMiddle(1.0, 0.5, seed=1)
    once = [list(fim.arrange([text], IDS)) for text in TEXTS]
    again = [list(fim.arrange(iter([text]), IDS)) for text in reversed(TEXTS)]
    assert once == again[::-1]
    assert once != [list(FillInTheMiddle(1.0, 0.5, seed=2).arrange([t], IDS)) for t in TEXTS]


def test_cuts_are_uniform_over_the_characters() -> None:
    fim = FillInTheMiddle(1.0, 0.0)
    lengths = []
    for i in range(2000):
        text = f"{i:>9}"
        parts = parts_of(list(fim.arrange([text], IDS)))
        lengths.append([len(parts[IDS.prefix]), len(parts[IDS.middle]), len(parts[IDS.suffix])])
    # Of two of the numbers 0 … 9, the mean distance is 99 / 30.
    assert np.allclose(np.mean(lengths, axis=0), [2.85, 3.3, 2.85], atol=0.2)
    assert (np.min(lengths), np.max(lengths)) == (0, 9)


def test_a_document_of_several_pieces_stays_as_it_is() -> None:
    assert list(FillInTheMiddle(1.0).arrange(["a\n", "b\n", "c"], IDS)) == ["a\n", "b\n", "c"]


def data_of(tmp_path: Path, texts: list[str] = TEXTS, **options: Any) -> TextDataModule:
    path = tmp_path / "text.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    options = {"tokenizer": TokenizerSpec("bpe", vocab_size=320), **options}
    options |= {"seq_len": 64, "micro_batch_size": 2, "cache_dir": tmp_path / "cache"}
    data = TextDataModule(train_files=path, **options)
    data.prepare_data()
    data.setup("fit")
    return data


def test_the_store_holds_what_the_paper_says(tmp_path: Path) -> None:
    data = data_of(tmp_path, fim_rate=0.5, val_fraction=0.3)
    tokenizer, train, val = data.tokenizer, data.train_store, data.val_store
    assert train is not None
    assert val is not None
    ids = [tokenizer.convert_tokens_to_ids(token) for token in FIM_TOKENS]
    documents = [tokenizer.decode(train[i]) for i in range(len(train))]
    changed = [text for text in documents if text.startswith(FIM_TOKENS[0])]
    assert 0.35 < len(changed) / len(documents) < 0.65
    assert not np.isin(val.tokens(0, val.num_tokens), ids).any()  # comparable with other models
    known = set(TEXTS)
    for text in documents:
        before, _, rest = text.removesuffix("<|endoftext|>").partition(FIM_TOKENS[2])
        suffix, _, middle = rest.partition(FIM_TOKENS[1])
        assert before.removeprefix(FIM_TOKENS[0]) + middle + suffix in known
    lengths = data.token_byte_lengths
    assert lengths is not None
    assert not lengths[ids].any()


def test_names_of_sentinels_in_the_text_are_text(tmp_path: Path) -> None:
    hostile = [f"{i} {FIM_TOKENS[0]}a{FIM_TOKENS[1]}b{FIM_TOKENS[2]}" for i in range(30)]
    data = data_of(tmp_path, hostile, fim_rate=1.0)
    store = data.train_store
    assert store is not None
    for token in FIM_TOKENS:
        index = data.tokenizer.convert_tokens_to_ids(token)
        assert np.sum(store.tokens(0, store.num_tokens) == index) == len(hostile)


def test_settings_are_part_of_the_cache_and_stable(tmp_path: Path) -> None:
    def fingerprint(**options: Any) -> str:
        return data_of(tmp_path, fim_rate=0.5, **options).fingerprint

    assert fingerprint() == fingerprint()
    assert len({fingerprint(), fingerprint(fim_spm_rate=1.0), fingerprint(seed=1)}) == 3
    plain = data_of(tmp_path)
    assert FIM_TOKENS[0] not in plain.tokenizer.get_vocab()


def test_a_checkpoint_of_arguments_builds_the_same(tmp_path: Path) -> None:
    data = data_of(tmp_path, fim_rate=0.5)
    again = TextDataModule(**data.hparams)
    again.setup("fit")
    assert again.fingerprint == data.fingerprint


@pytest.mark.parametrize("special", [True, False])
def test_pretrained_tokenizers_have_their_own_names(tmp_path: Path, special: bool) -> None:
    names = ["<fim_prefix>", "<fim_middle>", "<fim_suffix>"]
    tokenizer = train_tokenizer(TokenizerSpec("byte"), iter(TEXTS))
    tokenizer.save_pretrained(tmp_path / "none")
    with pytest.raises(ValueError, match="no tokens to fill in the middle"):
        data_of(tmp_path, tokenizer=str(tmp_path / "none"), fim_rate=0.5)
    tokenizer.add_tokens([AddedToken(n, special=special, normalized=False) for n in names])
    tokenizer.save_pretrained(tmp_path / "fim")
    texts = [f"{i} <fim_prefix>" for i in range(30)]
    data = data_of(tmp_path, texts, tokenizer=str(tmp_path / "fim"), fim_rate=1.0)
    store = data.train_store
    assert store is not None
    index = data.tokenizer.convert_tokens_to_ids("<fim_prefix>")
    assert np.sum(store.tokens(0, store.num_tokens) == index) == len(texts)
    assert fim_prompt("a", "b", data.tokenizer) == "<fim_prefix>a<fim_suffix>b<fim_middle>"


def test_a_tokenizer_that_adds_spaces_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁", -1.0), ("x", -1.0)], unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.add_special_tokens([*FIM_TOKENS, "</s>"])
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>").save_pretrained(
        tmp_path / "spaces"
    )
    with pytest.raises(ValueError, match="puts a space in front"):
        data_of(tmp_path, ["x x"], tokenizer=str(tmp_path / "spaces"), fim_rate=1.0)


def test_prompts() -> None:
    assert fim_prompt("a = ", "\n") == "<|fim_prefix|>a = <|fim_suffix|>\n<|fim_middle|>"
    with pytest.raises(ValueError, match=r"contains '<\|fim_middle\|>'"):
        fim_prompt("a", "<|fim_middle|>")


def test_rates_are_shares(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"fim_rate=1\.5 must be between 0 and 1; fim_spm_rate=-1"):
        data_of(tmp_path, fim_rate=1.5, fim_spm_rate=-1)
