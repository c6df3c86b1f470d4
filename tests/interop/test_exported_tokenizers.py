"""Exported tokenizers: ``AutoTokenizer`` gives the ids and the texts of training."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from reference_models import CASES, randomised, reference_model, token_ids
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Tokenizer

from lightning_llm import CausalLM
from lightning_llm.data import TokenizerSpec
from lightning_llm.data.tokenizer_training import train_tokenizer
from lightning_llm.interop.hf import check_export, from_hf_config, load_pretrained
from lightning_llm.interop.hf.comparison import tokenizer_difference
from lightning_llm.models import TransformerConfig

ALGORITHMS = ("bpe", "unigram", "wordpiece", "word", "char", "byte")
LINES = [f"In {1900 + i} they didn't train {i * 12345} models, 语言 café.\n" for i in range(60)]
UNSEEN = [
    "Don't train 777 models!",
    "  of 1234\n\n\tspaces ",
    "CAFÉ cafe\u0301 语言x 🙂",
    "a_b(c)=1",
]
BIASED = TransformerConfig(
    vocab_size=512,
    n_layers=2,
    dim=32,
    n_heads=2,
    max_seq_len=64,
    attention_bias=True,
    attention_out_bias=False,
)


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Any]:
    sizes = {"bpe": 300, "unigram": 280, "wordpiece": 90, "word": 30}
    return {
        name: train_tokenizer(
            TokenizerSpec(name, vocab_size=sizes[name]) if name in sizes else TokenizerSpec(name),
            iter(LINES),
        )
        for name in ALGORITHMS
    }


def assert_same(theirs: Any, ours: Any) -> None:
    for text in (*UNSEEN, *LINES[:3]):
        ids = ours(text)["input_ids"]
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == ours.decode(ids)


FAMILY_CASES = {model_type: case for case, (model_type, _) in reversed(CASES.items())}


@pytest.mark.filterwarnings("ignore::UserWarning:transformers.*")
@pytest.mark.parametrize("case", FAMILY_CASES.values(), ids=list(FAMILY_CASES))
def test_every_architecture_keeps_every_algorithm(
    case: str, tokenizers: dict[str, Any], tmp_path: Path
) -> None:
    config = from_hf_config(reference_model(case).config.to_dict())
    for tokenizer in tokenizers.values():
        check_export(config, tmp_path, tokenizer)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_class_that_an_architecture_forces_is_avoided(
    algorithm: str, tokenizers: dict[str, Any], tmp_path: Path
) -> None:
    """AutoTokenizer builds Qwen2's own tokenizer for it, whatever the files say."""
    module = CausalLM(BIASED)
    randomised(module.model)
    module.tokenizer = tokenizers[algorithm]
    module.save_pretrained(tmp_path)
    assert_same(AutoTokenizer.from_pretrained(tmp_path), module.tokenizer)
    ids = token_ids(512)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    again = load_pretrained(tmp_path).model.eval()
    with torch.no_grad():
        wanted = module.eval().model(ids)
        torch.testing.assert_close(theirs(ids).logits, wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(again(ids), wanted, rtol=1e-4, atol=1e-4)


def test_the_tokenizer_of_an_architecture_goes_with_it(tmp_path: Path) -> None:
    module = CausalLM(BIASED)
    module.tokenizer = Qwen2Tokenizer(
        vocab={"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}, merges=[("a", "b")]
    )
    module.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "qwen2"
    assert AutoTokenizer.from_pretrained(tmp_path)("abb")["input_ids"] == [2, 1]
    module.tokenizer = None
    module.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "qwen2"


def test_what_no_architecture_keeps_is_refused_before_training(
    tokenizers: dict[str, Any], tmp_path: Path
) -> None:
    windows = {"sliding_window": 8, "sliding_window_pattern": 2}
    module = CausalLM(TransformerConfig(**{**vars(BIASED), **windows}))
    module.tokenizer = tokenizers["bpe"]
    for refuses in (module.check_export, module.save_pretrained):
        with pytest.raises(
            ValueError, match=r"model_type=qwen2.* loads as Qwen2Tokenizer, encodes"
        ):
            refuses(tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("slip", ["vocabulary", "normalizer", "eos", "template"])
def test_a_difference_is_seen(slip: str, tokenizers: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = tokenizers["bpe"]
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_difference(tokenizer, tmp_path) is None
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    if slip == "vocabulary":
        vocab = content["model"]["vocab"]
        one, two = list(vocab)[:2]
        vocab[one], vocab[two] = vocab[two], vocab[one]
    elif slip == "normalizer":
        content["normalizer"] = {"type": "NFC"}
    elif slip == "eos":
        settings["eos_token"] = "a"
    else:
        settings["chat_template"] = "{{ messages }}"
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert tokenizer_difference(tokenizer, tmp_path) is not None


def test_loading_a_mistral_warns_of_nothing(
    tokenizers: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = from_hf_config(reference_model("mistral").config.to_dict())
    module = CausalLM(TransformerConfig(**{**vars(config), "vocab_size": 512}))
    module.tokenizer = tokenizers["bpe"]
    module.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, logger="transformers"):
        logging.getLogger("transformers").propagate = True
        try:
            AutoTokenizer.from_pretrained(tmp_path)
        finally:
            logging.getLogger("transformers").propagate = False
    assert not caplog.records
