"""A tokenizer survives the way through a checkpoint as text."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from lightning_llm.data import TokenizerSpec
from lightning_llm.data.tokenizer_training import train_tokenizer
from lightning_llm.interop.hf import pack_tokenizer, unpack_tokenizer

TEXTS = [
    "def f(x):\n    return x + 1\n",
    "Hello world, 你好 世界! naïve café  two  spaces 🙂\n",
    "<|endoftext|> inside a text",
] * 40
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
SIZES = {"bpe": 300, "unigram": 270, "wordpiece": 80, "word": 20, "char": None, "byte": None}


def trained(algorithm: str) -> PreTrainedTokenizerFast:
    size = SIZES[algorithm]
    spec = TokenizerSpec(algorithm) if size is None else TokenizerSpec(algorithm, vocab_size=size)
    return train_tokenizer(spec, iter(TEXTS))


@pytest.mark.parametrize("algorithm", SIZES)
def test_ids_special_tokens_and_template_come_back(algorithm: str) -> None:
    tokenizer = trained(algorithm)
    tokenizer.chat_template = TEMPLATE
    files = pack_tokenizer(tokenizer)
    again = unpack_tokenizer(files)
    for text in [*TEXTS[:3], "never seen: äöü ½", ""]:
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.special_tokens_map == tokenizer.special_tokens_map
    assert len(again) == len(tokenizer)
    assert again.chat_template == TEMPLATE
    messages = [{"role": "user", "content": "hello"}]
    assert again.apply_chat_template(messages, tokenize=False) == "user: hello\n"
    assert pack_tokenizer(again) == files


def test_what_a_call_leaves_behind_is_not_packed() -> None:
    tokenizer = trained("byte")
    before = pack_tokenizer(tokenizer)
    tokenizer(["a", "longer"], padding=True, truncation=True, max_length=3)
    assert pack_tokenizer(tokenizer) == before


def test_packed_tokenizer_loads_with_weights_only() -> None:
    buffer = io.BytesIO()
    files = pack_tokenizer(trained("char"))
    torch.save({"tokenizer": files}, buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True)["tokenizer"] == files


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"../evil.json": "{}"}, r"'\.\./evil\.json' is not a plain file name"),
        ({"sub/evil.json": "{}"}, "is not a plain file name"),
        ({"c:evil.json": "{}"}, "is not a plain file name"),
        ({".hidden": "{}"}, "is not a plain file name"),
        ({"": "{}"}, "is not a plain file name"),
        ({"vocab.txt": b"bytes"}, "must map a file name to text"),
        ({"tokenizer.json": "{"}, r"tokenizer\.json is not JSON"),
    ],
)
def test_untrusted_files_are_checked(change: dict[str, Any], message: str) -> None:
    files = {**pack_tokenizer(trained("byte")), **change}
    with pytest.raises(ValueError, match=message):
        unpack_tokenizer(files)


def test_missing_tokenizer_json_is_named() -> None:
    files = pack_tokenizer(trained("byte"))
    del files["tokenizer.json"]
    with pytest.raises(ValueError, match=r"no tokenizer\.json among \['tokenizer_config\.json'\]"):
        unpack_tokenizer(files)


def test_code_named_by_a_tokenizer_is_not_run() -> None:
    files = pack_tokenizer(trained("byte"))
    settings = json.loads(files["tokenizer_config.json"])
    settings["auto_map"] = {"AutoTokenizer": ["evil.Tokenizer", None]}
    files["tokenizer_config.json"] = json.dumps(settings)
    files["evil.py"] = "raise RuntimeError('this was run')"
    tokenizer = unpack_tokenizer(files)
    assert tokenizer("a")["input_ids"]


def test_slow_tokenizers_are_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(TypeError, match=r"Slow, which has no tokenizer\.json"):
        pack_tokenizer(Slow())  # type: ignore[arg-type]
