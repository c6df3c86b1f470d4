"""CorpusBLEU and CorpusCHRF against sacrebleu on random corpora."""

from __future__ import annotations

import copy
import math
import pickle
import random
import sys
from typing import Any

import pytest
import sacrebleu
import torch

from lightning_llm.metrics import CorpusBLEU, CorpusCHRF

WORDS = "the cat sat, on a mat. Katze 犬が 座った 猫。 $5.30 don't — U.S. naïve &quot; !".split()


def sentence(rng: random.Random, length: int | None = None) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(0, 12) if length is None else length))


def changed(rng: random.Random, text: str) -> str:
    """A text that shares many n-grams with another."""
    words = text.split()
    for _ in range(rng.randint(0, 3)):
        words.insert(rng.randint(0, len(words)), rng.choice(WORDS))
    return " ".join(words)


def corpus(seed: int, references: int | None = 1) -> tuple[list[str], list[list[str]]]:
    """Predictions and one list of references per segment; ``None``: one to three of them."""
    rng = random.Random(seed)
    predictions = [sentence(rng) for _ in range(rng.randint(1, 12))]
    return predictions, [
        [changed(rng, text) for _ in range(references or rng.randint(1, 3))] for text in predictions
    ]


def streams(references: list[list[str]]) -> list[list[str | None]]:
    most = max(map(len, references))
    return [[texts[i] if i < len(texts) else None for texts in references] for i in range(most)]


def in_batches(metric: Any, predictions: list[str], references: list[Any], size: int) -> Any:
    for start in range(0, len(predictions), size):
        metric.update(predictions[start : start + size], references[start : start + size])
    return metric


@pytest.mark.parametrize("references", [1, 3, None])
@pytest.mark.parametrize("tokenize", ["13a", "intl", "zh", "char", "none"])
def test_bleu_equals_sacrebleu(tokenize: str, references: int | None) -> None:
    scores = set()
    for seed in range(25):
        predictions, texts = corpus(seed, references)
        oracle = sacrebleu.metrics.BLEU(tokenize=tokenize)
        expected = oracle.corpus_score(predictions, streams(texts)).score
        for size in (1, 5, 100):
            metric = in_batches(CorpusBLEU(tokenize), predictions, texts, size)
            assert metric.compute().item() == expected
            assert metric.signature == str(oracle.get_signature())
        scores.add(expected)
    assert len(scores) > 10  # the corpora do tell scores apart


def test_the_defaults_are_those_of_corpus_bleu() -> None:
    """Also where nothing of an order matches, and smoothing decides."""
    for seed in range(60):
        rng = random.Random(seed)
        predictions = [sentence(rng, rng.randint(1, 5)) for _ in range(3)]
        texts = [sentence(rng, rng.randint(1, 5)) for _ in range(3)]
        metric = CorpusBLEU()
        metric.update(predictions, texts)
        assert metric.compute().item() == sacrebleu.corpus_bleu(predictions, [texts]).score


@pytest.mark.parametrize(
    "options",
    [
        {"lowercase": True},
        {"smooth_method": "floor"},
        {"smooth_method": "floor", "smooth_value": 0.3},
        {"smooth_method": "add-k"},
        {"smooth_method": "none"},
        {"max_ngram_order": 2},
        {"effective_order": True},
    ],
    ids=str,
)
def test_bleu_options(options: dict[str, Any]) -> None:
    for seed in range(10):
        predictions, texts = corpus(seed)
        oracle = sacrebleu.metrics.BLEU(**options)
        expected = oracle.corpus_score(predictions, streams(texts)).score
        metric = in_batches(CorpusBLEU(**options), predictions, texts, 3)
        assert metric.compute().item() == expected
        assert metric.signature == str(oracle.get_signature())


@pytest.mark.parametrize("references", [1, None])
@pytest.mark.parametrize(
    "options", [{}, {"word_order": 2}, {"lowercase": True, "whitespace": True, "beta": 1}], ids=str
)
def test_chrf_equals_sacrebleu(options: dict[str, Any], references: int | None) -> None:
    for seed in range(15):
        predictions, texts = corpus(seed, references)
        oracle = sacrebleu.metrics.CHRF(**options)
        expected = oracle.corpus_score(predictions, streams(texts)).score
        metric = in_batches(CorpusCHRF(**options), predictions, texts, 3)
        assert metric.compute().item() == expected
        assert metric.signature == str(oracle.get_signature())


@pytest.fixture(params=[CorpusBLEU, CorpusCHRF])
def kind(request: Any) -> Any:
    return request.param


def test_parts_merge_and_reset_forgets(kind: Any) -> None:
    predictions, texts = corpus(3, None)
    whole = in_batches(kind(), predictions, texts, 4)
    first = in_batches(kind(), predictions[:2], texts[:2], 1)
    first.merge_state(in_batches(kind(), predictions[2:], texts[2:], 1))
    assert first.compute() == whole.compute()
    assert first.signature == whole.signature
    first.reset()
    first.update(["a cat"], ["a cat"])
    assert "nrefs:1|" in first.signature


def test_ranks_are_combined(kind: Any) -> None:
    predictions, texts = corpus(3, None)
    other = in_batches(kind(), predictions[2:], texts[2:], 1)
    names = iter(["statistics", "fewest_references", "most_references"])

    def gather(value: torch.Tensor, group: Any = None) -> list[torch.Tensor]:
        return [value, getattr(other, next(names))]

    metric = kind(dist_sync_fn=gather, distributed_available_fn=lambda: True)
    in_batches(metric, predictions[:2], texts[:2], 1)
    whole = in_batches(kind(), predictions, texts, 100)
    assert metric.compute() == whole.compute()
    assert metric.signature == whole.signature


def test_sums_are_whole_numbers_of_any_size(kind: Any) -> None:
    metric = kind()
    metric.update(["a cat sat down here"], ["a cat sat down here"])
    metric.statistics = metric.statistics * 2**40 + 1
    assert metric.statistics.dtype is torch.int64
    assert metric.compute().item() == pytest.approx(100.0)


def test_a_rank_without_segments_takes_part(kind: Any) -> None:
    metric = kind()
    metric.update([], [])
    assert math.isnan(metric.compute().item())
    with pytest.raises(RuntimeError, match="call update first"):
        _ = metric.signature


def test_copies_and_pickles_go_on(kind: Any) -> None:
    metric = kind()
    metric.update(["a cat sat on it"], ["a cat sat there"])
    for other in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric)), metric.clone()):
        assert other.compute() == metric.compute()
        other.update(["a dog"], ["a cat"])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("a", ["a"]), TypeError, "predictions must be a list, not str"),
        ((["a"], "a"), TypeError, "references must be a list, not str"),
        ((["a"], ["a", "b"]), ValueError, "1 predictions and 2 entries of references"),
        ((["a"], [[]]), ValueError, "segment 0 has no reference"),
        ((["a", None], ["a", "b"]), TypeError, "segment 1 holds None, which is not a string"),
        ((["a"], [["a", None]]), TypeError, "segment 0 holds None, which is not a string"),
    ],
)
def test_bad_segments_are_named(kind: Any, arguments: Any, error: Any, message: str) -> None:
    metric = kind()
    with pytest.raises(error, match=message):
        metric.update(*arguments)


def test_bad_options_are_named() -> None:
    with pytest.raises(ValueError, match=r"tokenize='14a' is not one of \['none', 'zh', '13a'"):
        CorpusBLEU("14a")
    with pytest.raises(ValueError, match="smooth_method='ex' is not one of"):
        CorpusBLEU(smooth_method="ex")
    with pytest.raises(ValueError, match="max_ngram_order=0 must be >= 1"):
        CorpusBLEU(max_ngram_order=0)


def test_a_tokenizer_without_its_package_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "MeCab", None)
    monkeypatch.setitem(sys.modules, "ipadic", None)
    sys.modules.pop("sacrebleu.tokenizers.tokenizer_ja_mecab", None)
    with pytest.raises(ModuleNotFoundError, match=r"tokenize='ja-mecab': .*pip install sacrebleu"):
        CorpusBLEU("ja-mecab")
    with pytest.raises(ValueError, match="char_order=0 must be at least 1"):
        CorpusCHRF(char_order=0)
