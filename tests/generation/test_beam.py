"""Beam search: equal to transformers, and to brute force where that is possible."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from small_models import random_prompts, small_model, twins

from lightning_llm.generation import generate


@pytest.mark.parametrize("length_penalty", [1.0, 0.0, 2.0, -1.0])
@pytest.mark.parametrize("num_beams", [2, 5])
@pytest.mark.parametrize("repetition_penalty", [1.0, 1.2])
def test_equals_transformers(
    num_beams: int, length_penalty: float, repetition_penalty: float
) -> None:
    ours, theirs = twins()
    prompts = torch.tensor(random_prompts(7, 7, 7))
    free = generate(ours, prompts, max_new_tokens=16, num_beams=num_beams)
    endings: list[Any] = [None, free[0, 7 + 6].item(), free[:, 7 + 9].tolist()]
    some_ended = False
    for eos in endings:
        options = {
            "num_beams": num_beams,
            "length_penalty": length_penalty,
            "repetition_penalty": repetition_penalty,
            "max_new_tokens": 16,
            "eos_token_id": eos,
            "pad_token_id": 1,
        }
        expected = theirs.generate(
            prompts, attention_mask=torch.ones_like(prompts), do_sample=False, **options
        )
        found = generate(ours, prompts, **options)
        assert torch.equal(found, expected)
        assert torch.equal(generate(ours, prompts, use_cache=False, **options), expected)
        some_ended |= bool((found[:, -1] == 1).any())
    assert some_ended or length_penalty > 1  # which makes all of them go on


def test_with_enough_beams_it_finds_the_likeliest_continuation() -> None:
    model = small_model(vocab_size=5)
    prompt = torch.tensor([[1, 2, 3]])
    best, best_score = None, -torch.inf
    with torch.no_grad():
        for tail in itertools.product(range(5), repeat=3):
            ids = torch.cat((prompt, torch.tensor([tail])), 1)
            log_probs = model(ids)[0].log_softmax(-1)
            score = sum(log_probs[2 + i, token] for i, token in enumerate(tail))
            if score > best_score:
                best, best_score = tail, score
    found = generate(model, prompt, max_new_tokens=3, num_beams=25)
    assert tuple(found[0, 3:].tolist()) == best


def test_batches_of_unequal_prompts_equal_singles() -> None:
    from test_generate import one_by_one, together

    model = small_model(n_kv_heads=2)
    prompts = random_prompts(3, 11, 6)
    eos = one_by_one(model, prompts, max_new_tokens=20, num_beams=4)[0][8]
    options = {"max_new_tokens": 20, "num_beams": 4, "repetition_penalty": 1.1}
    expected = one_by_one(model, prompts, eos_token_id=eos, **options)
    expected = [row[: row.index(eos)] if eos in row else row for row in expected]
    assert together(model, prompts, eos_token_id=eos, **options) == expected


def test_beams_beat_greedy_in_likelihood() -> None:
    model = small_model()
    prompts = torch.tensor(random_prompts(5, 5, 5, 5))

    def likelihood(ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            log_probs = model(ids[:, :-1])[:, 4:].log_softmax(-1)
        return log_probs.gather(2, ids[:, 5:, None]).sum((1, 2))

    greedy = generate(model, prompts, max_new_tokens=12)
    beams = generate(model, prompts, max_new_tokens=12, num_beams=8)
    assert likelihood(beams).sum() > likelihood(greedy).sum()
