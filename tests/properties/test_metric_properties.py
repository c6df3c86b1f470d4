"""Perplexity and BLEU of any corpus, however it is cut into batches and ranks."""

from __future__ import annotations

import math

import pytest
import sacrebleu
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_llm.metrics import CorpusBLEU, Perplexity

BATCHES = st.lists(
    st.tuples(st.floats(0, 1e6, allow_subnormal=False), st.integers(0, 10_000)),
    min_size=1,
    max_size=12,
)


@given(BATCHES, st.data())
def test_perplexity_is_that_of_the_sums(batches, data):
    """exp(sum of NLL / sum of tokens) in float64, for any split over ranks, merged in any order."""
    nll = math.fsum(nll for nll, _ in batches)
    tokens = sum(count for _, count in batches)
    ranks = data.draw(st.integers(1, 4))
    metrics = [Perplexity() for _ in range(ranks)]
    for number, (nll_sum, count) in enumerate(batches):
        metrics[number % ranks].update(torch.tensor(nll_sum, dtype=torch.float64), count)
    merged = metrics[0]
    for other in data.draw(st.permutations(metrics[1:])):
        merged.merge_state(other)
    if tokens == 0:
        return
    found, mean = float(merged.compute()), nll / tokens
    if mean < 700:
        assert found == pytest.approx(math.exp(mean), rel=1e-9)
        assert math.isfinite(found)


WORDS = st.sampled_from("the cat sat . , mat's 3.5 $5 犬が 座った。 Straße &quot; ! —".split())
SENTENCES = st.lists(WORDS, max_size=9).map(" ".join)


@pytest.mark.parametrize("tokenize", ["13a", "zh", "char"])
@given(
    st.lists(
        st.tuples(SENTENCES, st.lists(SENTENCES, min_size=2, max_size=2)), min_size=1, max_size=8
    ),
    st.integers(1, 3),
)
def test_bleu_is_sacrebleus_for_any_split(tokenize, segments, ranks):
    predictions = [prediction for prediction, _ in segments]
    references = [texts for _, texts in segments]
    streams = [list(stream) for stream in zip(*references)]
    expected = sacrebleu.corpus_bleu(predictions, streams, tokenize=tokenize).score
    metrics = [CorpusBLEU(tokenize) for _ in range(ranks)]
    for number, (prediction, texts) in enumerate(segments):
        metrics[number % ranks].update([prediction], [texts])
    for other in metrics[1:]:
        metrics[0].merge_state(other)
    assert float(metrics[0].compute()) == pytest.approx(expected, abs=1e-9)
