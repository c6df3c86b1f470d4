"""The pure functions against definitions written out, and against transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor, TopKLogitsWarper, TopPLogitsWarper

from lightning_llm.generation import (
    apply_repetition_penalty,
    apply_temperature,
    sample,
    top_k_filter,
    top_p_filter,
)

LOGITS = torch.randn(16, 50, generator=torch.Generator().manual_seed(3)) * 2


def support(logits: torch.Tensor) -> list[set[int]]:
    return [set(row.isfinite().nonzero().flatten().tolist()) for row in logits]


def test_temperature_scales_log_odds() -> None:
    hot = apply_temperature(LOGITS, 2.0)
    torch.testing.assert_close(hot[:, 3] - hot[:, 4], (LOGITS[:, 3] - LOGITS[:, 4]) / 2)
    assert torch.equal(apply_temperature(LOGITS, 1.0), LOGITS)


@pytest.mark.parametrize("k", [1, 2, 7, 50, 99])
def test_top_k_keeps_the_k_likeliest(k: int) -> None:
    kept = top_k_filter(LOGITS, k)
    for row, found in zip(LOGITS.tolist(), support(kept)):
        ranked = sorted(range(50), key=lambda token: -row[token])
        assert found == set(ranked[:k])
    assert torch.equal(kept, TopKLogitsWarper(k)(None, LOGITS))  # type: ignore[arg-type]


@pytest.mark.parametrize("p", [0.01, 0.3, 0.5, 0.9, 0.999, 1.0])
def test_top_p_keeps_the_smallest_set_that_reaches_p(p: float) -> None:
    kept = top_p_filter(LOGITS, p)
    for row, found in zip(LOGITS.double().softmax(-1).tolist(), support(kept)):
        ranked = sorted(range(50), key=lambda token: -row[token])
        total, expected = 0.0, set()
        for token in ranked:
            if total >= p:
                break
            expected.add(token)
            total += row[token]
        assert found == expected
    assert torch.equal(kept, TopPLogitsWarper(p)(None, LOGITS))  # type: ignore[arg-type]


def test_filters_keep_the_logits_they_keep() -> None:
    for kept in (top_k_filter(LOGITS, 5), top_p_filter(LOGITS, 0.7)):
        assert torch.equal(kept[kept.isfinite()], LOGITS[kept.isfinite()])


@pytest.mark.parametrize("penalty", [0.7, 1.0, 1.3])
def test_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    ids = torch.randint(50, (16, 12), generator=torch.Generator().manual_seed(4))
    seen = torch.zeros(16, 50, dtype=torch.bool).scatter_(1, ids, True)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, LOGITS.clone())
    assert torch.equal(apply_repetition_penalty(LOGITS, seen, penalty), expected)


def test_samples_follow_the_distribution() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -torch.inf, 0.5])
    draws = sample(logits.expand(200_000, -1), torch.Generator().manual_seed(0))
    frequencies = draws.bincount(minlength=5) / 200_000
    # Five standard deviations of a frequency are at most 0.0056.
    torch.testing.assert_close(frequencies, logits.softmax(0), atol=0.0056, rtol=0)
    assert frequencies[3] == 0


def test_sampling_with_a_generator_leaves_the_global_one_alone() -> None:
    before = torch.get_rng_state()
    first = sample(LOGITS, torch.Generator().manual_seed(1))
    second = sample(LOGITS, torch.Generator().manual_seed(1))
    assert torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())
