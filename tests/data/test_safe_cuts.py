"""Documents in parts: the ids are those of one call, for tokenizers of every make."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, processors

from lightning_llm import TextDataModule
from lightning_llm.data import TokenizerSpec, encoding
from lightning_llm.data.pattern_positions import NONSPACE, UnknownPatternError, parse_pattern
from lightning_llm.data.safe_cuts import ANYWHERE, safe_cuts
from lightning_llm.data.tiktoken_encoding import GPT2_SPLIT
from lightning_llm.data.tokenizer import encode_texts
from tests.data.assorted_tokenizers import BUILDERS, LLAMA3, O200K, hard_text, wrapped
from tests.data.trained_tokenizers import ALGORITHMS, ENGLISH, trained

# Whose long documents have to be encoded whole.
WHOLE = {
    "bloom", "words and gaps", "behind", "anchored", "line starts", "ahead", "contiguous",
    "bytes alone", "byte-level normalizer", "strip gpt2", "llama legacy, added", "t5 unsplit",
    "lstrip", "rstrip", "across", "replaced",
}  # fmt: skip


def in_pieces(text: str, generator: random.Random) -> Iterator[str]:
    start = 0
    while start < len(text):
        stop = start + generator.randrange(1, 12)
        yield text[start:stop]
        start = stop


@pytest.mark.parametrize("name", BUILDERS)
def test_parts_have_the_ids_of_the_whole(name: str) -> None:
    tokenizer = BUILDERS[name]()
    cuts = safe_cuts(tokenizer)
    assert (cuts.places is None) == (name in WHOLE)
    generator = random.Random(name)
    texts = [hard_text(generator, generator.randrange(1, 60)) for _ in range(80)]
    parts = [list(cuts.chunks(in_pieces(text, generator), 1)) for text in texts]
    flat = iter(encode_texts(tokenizer, [part for one in parts for part in one]))
    for text, whole, one in zip(texts, encode_texts(tokenizer, texts), parts):
        assert np.concatenate([next(flat) for _ in one]).tolist() == whole.tolist(), (text, one)
    if name in WHOLE:
        assert [one for (one,) in parts] == texts
    else:
        assert sum(map(len, parts)) > 1.1 * len(texts)  # so that this shows something


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_our_tokenizers_take_long_documents_in_parts(algorithm: str) -> None:
    cuts = safe_cuts(trained(algorithm))
    assert (cuts == ANYWHERE) == (algorithm in ("char", "byte"))
    for text in (ENGLISH, ENGLISH.replace("\n", "\r\n"), "one line of words " * 50):
        assert max(map(len, cuts.chunks([text], 1))) < 40


def test_only_what_reaches_to_the_next_cut_is_held() -> None:
    cuts = safe_cuts(trained("bpe"))
    pieces = ("some words that follow each other " * 10 for _ in range(50))
    for read, chunk in enumerate(cuts.chunks(pieces, 100), 1):
        assert 100 <= len(chunk) < 140 or read > 100


@pytest.mark.parametrize(
    ("source", "line", "space"),
    [
        (GPT2_SPLIT, False, False),
        (LLAMA3, False, False),
        (O200K, True, False),  # "\n/" is one pre-token
        (r"[^\n]+\n?", False, True),
        (r"(?:a|\s)+", True, True),
        (r"[\s&&[^\n]]|\p{L}+", False, False),
    ],
)
def test_what_a_match_can_contain(source: str, line: bool, space: bool) -> None:
    pattern = parse_pattern(source)
    assert pattern.crosses("\n", NONSPACE) == line
    assert pattern.crosses(NONSPACE, " ") == space


@pytest.mark.parametrize(
    "source", [r"\s+$", r"(?<=a)b", r"(a)\1", r"\bx", r"a*", r"(?!a)|\s", r"(?=a)x?", r"[]a]"]
)
def test_patterns_that_are_not_analysed(source: str) -> None:
    with pytest.raises(UnknownPatternError):
        parse_pattern(source)


TEXTS = [
    "One line.",
    "  two\nlines ",
    "x\n\ny \n z",
    "a" * 90,
    "naïve 中文。\n中\r\n",
    "\n",
    "e\n\u0301",
]


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet", "dataset"])
@pytest.mark.parametrize("name", ["gpt2", "roberta", "llama", "llama legacy", "t5", "strip gpt2"])
def test_a_stored_document_is_what_the_tokenizer_gives(
    kind: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("readers_text", "readers_rows"):
        monkeypatch.setattr(f"lightning_llm.data.{module}.PIECE_BYTES", 40)
    monkeypatch.setattr(encoding, "_CHUNK_CHARACTERS", 5)
    tokenizer = BUILDERS[name]()
    bos, eos = tokenizer.convert_tokens_to_ids(["<s>", "</s>"])
    if name != "roberta":
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>" if name == "t5" else "<s> $A",
            special_tokens=[("<s>", bos), ("</s>", eos)],
        )
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    texts = [*TEXTS, ENGLISH, "the fox\n" * 40]
    source: dict[str, Any] = {"train_files": tmp_path / "text"}
    (tmp_path / "text").mkdir()
    if kind == "txt":
        for number, text in enumerate(texts):
            (tmp_path / "text" / f"{number:02}.txt").write_bytes(text.encode())
    elif kind == "jsonl":
        rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / "text" / "a.jsonl").write_text(rows)
    else:
        import datasets

        rows = datasets.Dataset.from_dict({"text": texts})
        if kind == "parquet":
            rows.to_parquet(tmp_path / "text" / "a.parquet")
        else:
            rows.save_to_disk(tmp_path / "rows")
            source = {"dataset": str(tmp_path / "rows")}
    data = TextDataModule(
        **source,
        tokenizer=TokenizerSpec(pretrained=str(tmp_path / "tokenizer")),
        seq_len=16,
        micro_batch_size=1,
        cache_dir=tmp_path / "cache",
    )
    data.prepare_data()
    data.setup("fit")
    expected = [tokenizer(text)["input_ids"] for text in texts]
    expected = [ids if name == "t5" else [*ids, eos] for ids in expected]
    assert data.train_store is not None
    assert [ids.tolist() for ids in data.train_store] == expected


@pytest.mark.parametrize(
    "name", ["llama", "llama always", "llama legacy", "mistral split", "gemma"]
)
def test_the_name_of_a_special_token_within_a_text_gets_no_space(name: str) -> None:
    """The vocabulary of sentencepiece spells its own special tokens, so that the text is cut."""
    tokenizer = BUILDERS[name]()
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model = state["model"]
    for left, right in (("</", "s"), ("</s", ">")):
        model["vocab"].setdefault(left, len(model["vocab"]))
        model["vocab"].setdefault(left + right, len(model["vocab"]))
    model["merges"] = [["<", "/"], ["</", "s"], ["</s", ">"], *model["merges"]]
    rebuilt = wrapped(Tokenizer.from_str(json.dumps(state)))
    for text in ("the fox</s>the fox", "x</s></s> y\nz", "</s>"):
        (ids,) = encode_texts(rebuilt, [text])
        assert rebuilt.eos_token_id not in ids
        tokens = "".join(rebuilt.convert_ids_to_tokens(ids.tolist()))
        plain = tokens.replace("▁", " ").replace("<0x0A>", "\n")
        assert plain.removeprefix(" ") == text
