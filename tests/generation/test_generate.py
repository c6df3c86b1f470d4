"""Continuations of token ids: against transformers, and against themselves by another way."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

import pytest
import torch
from small_models import VOCAB_SIZE, random_prompts, small_model, twins
from torch import Tensor

from lightning_llm.generation import generate
from lightning_llm.generation.arguments import Options
from lightning_llm.models import Transformer

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "rope": {"n_kv_heads": 2},
    "learned": {"positions": "learned", "norm": "layernorm", "mlp": "gelu"},
    "sinusoidal": {"positions": "sinusoidal"},
    "alibi": {"positions": "alibi", "n_kv_heads": 2},
    "none": {"positions": "none"},
    "windows": {"sliding_window": 5, "sliding_window_pattern": 2, "n_kv_heads": 1},
    "softcap": {"logit_softcap": 2.0, "tie_embeddings": False},
    "cosine": {"attention_score": "cosine", "n_kv_heads": 2},
    "experts": {"n_experts": 3},
}


def one_by_one(model: Transformer, prompts: list[list[int]], **options: Any) -> list[list[int]]:
    """Continuations alone, each generated without company."""
    return [generate(model, torch.tensor([p]), **options)[0, len(p) :].tolist() for p in prompts]


class IdTokenizer:
    """Prompts are given as text of numbers, and so are continuations."""

    bos_token_id = None
    eos_token_id = None

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [int(number) for number in text.split()]}

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(f"{number} " for number in ids)


def together(model: Transformer, prompts: list[list[int]], **options: Any) -> list[list[int]]:
    """Continuations of prompts of different lengths, from one batch."""
    texts = [" ".join(map(str, prompt)) for prompt in prompts]
    found = generate(model, texts, tokenizer=IdTokenizer(), **options)
    return [[int(number) for number in text.split()] for text in found]


def test_greedy_equals_transformers() -> None:
    ours, theirs = twins()
    for length in (1, 2, 17):
        prompts = torch.tensor(random_prompts(*[length] * 4))
        free = theirs.generate(prompts, **greedy(prompts, max_new_tokens=40))
        assert torch.equal(generate(ours, prompts, max_new_tokens=40), free)
        assert len(set(free[:, length:].flatten().tolist())) > 10  # a model that says something
        eos = [free[0, length + 5].item(), free[1, length + 20].item()]
        ended = theirs.generate(prompts, **greedy(prompts, max_new_tokens=40, eos_token_id=eos))
        found = generate(ours, prompts, max_new_tokens=40, eos_token_id=eos, pad_token_id=0)
        assert torch.equal(found, ended)


def greedy(prompts: Tensor, **options: Any) -> dict[str, Any]:
    mask = torch.ones_like(prompts)
    return {"attention_mask": mask, "do_sample": False, "pad_token_id": 0, **options}


def test_repetition_penalty_equals_transformers() -> None:
    ours, theirs = twins()
    prompts = torch.tensor(random_prompts(9, 9, 9))
    options = {"repetition_penalty": 1.3, "max_new_tokens": 40}
    expected = theirs.generate(prompts, **greedy(prompts, **options))
    assert torch.equal(generate(ours, prompts, **options), expected)
    assert not torch.equal(generate(ours, prompts, max_new_tokens=40), expected)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_cached_equals_uncached_and_batch_equals_singles(name: str) -> None:
    model = small_model(**ARCHITECTURES[name])
    prompts = random_prompts(1, 12, 5, 12)
    expected = one_by_one(model, prompts, max_new_tokens=24)
    assert one_by_one(model, prompts, max_new_tokens=24, use_cache=False) == expected
    assert together(model, prompts, max_new_tokens=24) == expected
    assert together(model, prompts, max_new_tokens=24, use_cache=False) == expected
    assert len({tuple(continuation) for continuation in expected}) == 4


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_each_prompt_of_a_batch_has_the_models_whole_length(
    num_beams: int, use_cache: bool
) -> None:
    model = small_model(max_seq_len=20, positions="learned")
    prompts = random_prompts(3, 19, 10)
    options = {"max_new_tokens": 15, "num_beams": num_beams}
    found = together(model, prompts, use_cache=use_cache, **options)
    assert [len(continuation) for continuation in found] == [15, 1, 10]
    assert found == one_by_one(model, prompts, **options)


def test_a_batch_ends_when_its_last_sequence_does() -> None:
    model = small_model()
    prompts = torch.tensor(random_prompts(6, 6))
    free = generate(model, prompts, max_new_tokens=30)
    eos = [free[0, 6 + 3].item(), free[1, 6 + 8].item()]
    ended = generate(model, prompts, max_new_tokens=30, eos_token_id=eos, pad_token_id=1)
    first, second = ended[:, 6:].tolist()
    assert len(second) < 30
    for row, complete in zip((first, second), free[:, 6:].tolist()):
        end = next(i for i, token in enumerate(complete) if token in eos)
        assert row[: end + 1] == complete[: end + 1]
        assert set(row[end + 1 :]) <= {1}
    assert torch.equal(ended[:, :6], prompts)


def test_the_device_is_not_asked_for_every_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """On an accelerator every eighth token; here counted on the CPU."""
    from lightning_llm.generation import search

    model = small_model()
    prompts = torch.tensor(random_prompts(4, 4))
    expected = generate(model, prompts, max_new_tokens=40)
    eos = expected[0, 4 + 9].item()
    ended = generate(model, prompts, max_new_tokens=40, eos_token_id=eos)
    beams = generate(model, prompts, max_new_tokens=40, eos_token_id=eos, num_beams=3)
    monkeypatch.setattr(search.Ending, "worth_checking", lambda self, step: (step + 1) % 8 == 0)
    assert torch.equal(generate(model, prompts, max_new_tokens=40, eos_token_id=eos), ended)
    found = generate(model, prompts, max_new_tokens=40, eos_token_id=eos, num_beams=3)
    assert torch.equal(found, beams)


def test_same_seed_same_tokens_and_the_global_generator_is_left_alone() -> None:
    model = small_model()
    prompts = torch.tensor(random_prompts(4, 4))
    options = {"max_new_tokens": 20, "temperature": 1.5, "top_k": 40, "top_p": 0.95}
    state = torch.get_rng_state()
    first = generate(model, prompts, seed=1, **options)
    assert torch.equal(first, generate(model, prompts, seed=1, **options))
    assert not torch.equal(first, generate(model, prompts, seed=2, **options))
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first[0, 4:], first[1, 4:])


def test_low_temperature_and_one_candidate_are_greedy() -> None:
    model = small_model()
    prompts = torch.tensor(random_prompts(4, 4))
    expected = generate(model, prompts, max_new_tokens=20)
    for options in ({"temperature": 1e-4}, {"temperature": 1.0, "top_k": 1}):
        assert torch.equal(generate(model, prompts, max_new_tokens=20, **options), expected)
    assert torch.equal(
        generate(model, prompts, max_new_tokens=20, temperature=1.0, top_p=1e-6), expected
    )


def test_samples_stay_among_the_allowed_tokens() -> None:
    model = small_model()
    prompts = torch.tensor(random_prompts(4)).expand(2000, -1)
    with torch.no_grad():
        logits = model(prompts[:1])[0, -1]
    ranked = logits.argsort(descending=True).tolist()
    options = {"max_new_tokens": 1, "temperature": 2.0, "seed": 0}
    found = generate(model, prompts, top_k=3, **options)[:, -1]
    assert set(found.tolist()) == set(ranked[:3])
    mass = (logits / 2.0).softmax(0)[ranked].cumsum(0)
    nucleus = int((mass < 0.4).sum()) + 1
    found = generate(model, prompts, top_p=0.4, **options)[:, -1]
    assert set(found.tolist()) == set(ranked[:nucleus])


@pytest.mark.parametrize("use_cache", [True, False])
def test_bfloat16_and_autocast(use_cache: bool) -> None:
    model = small_model(n_kv_heads=2)
    prompts = torch.tensor(random_prompts(5, 5))
    with torch.autocast("cpu", torch.bfloat16):
        found = generate(model, prompts, max_new_tokens=8, use_cache=use_cache)
    assert found.shape == (2, 13)
    found = generate(model.bfloat16(), prompts, max_new_tokens=8, use_cache=use_cache)
    assert found.shape == (2, 13)


def test_modes_come_back_even_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(dropout=0.5)
    prompts = torch.tensor(random_prompts(5))
    expected = generate(model, prompts, max_new_tokens=10)
    model.train()
    model.blocks[0].eval()  # as someone who freezes a block does
    before = [module.training for module in model.modules()]
    assert torch.equal(generate(model, prompts, max_new_tokens=10), expected)  # no dropout
    assert [module.training for module in model.modules()] == before
    monkeypatch.setattr(model, "backbone", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generate(model, prompts)
    assert [module.training for module in model.modules()] == before


def test_training_goes_on_after_generation() -> None:
    """Nothing made without gradients, such as a position table, may stay in the graph."""
    model = small_model()
    generate(model, torch.tensor(random_prompts(5)), max_new_tokens=10)
    loss = model(torch.tensor(random_prompts(20))).square().mean()
    loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # from tracing
def test_compiled_blocks_are_not_compiled_for_every_length() -> None:
    model = small_model()
    prompts = torch.tensor(random_prompts(5))
    expected = generate(model, prompts, max_new_tokens=12)
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    for block in model.blocks:
        block.compile(backend=backend)
    assert torch.equal(generate(model, prompts, max_new_tokens=12), expected)
    assert not graphs
    model(prompts)
    assert graphs  # outside of generation they are


def test_large_vocabularies_take_another_way_to_the_same_logits() -> None:
    from lightning_llm.generation.decoder import next_token_logits

    model = small_model(vocab_size=5000)
    for batch in (1, 2, 7, 9):
        hidden = torch.randn(batch, 64)
        expected = hidden.double() @ model.head_weight.double().T
        found = next_token_logits(model, hidden)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-5)


def test_no_prompts_no_continuations() -> None:
    model = small_model()
    assert generate(model, [], tokenizer=IdTokenizer()) == []
    assert generate(model, torch.zeros(0, 4, dtype=torch.int64)).shape == (0, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"temperature": -1.0}, "temperature=-1.0 must be 0"),
        ({"top_k": 0}, "top_k=0 must be at least 1"),
        ({"top_p": 0.0}, "top_p=0.0 must be above 0"),
        ({"top_p": 1.5}, "top_p=1.5 must be above 0 and at most 1"),
        ({"num_beams": 0}, "num_beams=0 must be at least 1"),
        ({"num_beams": 2, "temperature": 0.7}, "num_beams=2 searches and temperature=0.7 samples"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0 must be above 0"),
        ({"top_k": 0, "top_p": 2.0}, "top_k=0 .*; top_p=2.0"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(small_model(), torch.ones(1, 4, dtype=torch.int64), **options)


@pytest.mark.parametrize(
    ("prompts", "error", "message"),
    [
        ("a text", TypeError, r"prompts is one string; pass a list of strings, \[prompt\]"),
        (["a text"], TypeError, "prompts are strings and tokenizer is None"),
        (torch.ones(4, dtype=torch.int64), TypeError, r"shape \(4,\) and torch.int64"),
        (torch.ones(1, 4), TypeError, r"torch.float32; token ids are \(B, T\) int64"),
        (torch.ones(1, 0, dtype=torch.int64), ValueError, r"prompts\[0\] has no token"),
        (
            torch.ones(1, 96, dtype=torch.int64),
            ValueError,
            r"prompts\[0\] has 96 tokens and the model's max_seq_len is 96.*last 48 tokens",
        ),
        (torch.tensor([[1, VOCAB_SIZE]]), ValueError, r"token id 96 .* vocab_size is 96; use the"),
        (torch.tensor([[1, -100]]), ValueError, r"prompts\[0\] has token id -100"),
    ],
)
def test_prompts_that_cannot_be_continued(prompts: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        generate(small_model(), prompts)


def test_stop_strings_need_a_tokenizer() -> None:
    with pytest.raises(TypeError, match=r"stop=\['x'\] needs a tokenizer"):
        generate(small_model(), torch.ones(1, 4, dtype=torch.int64), stop="x")


def test_options_are_those_of_the_function() -> None:
    """`Options` serves generation by transformers too, under the same names and defaults."""
    signature = inspect.signature(generate).parameters
    given = {name: signature[name].default for name in list(signature)[3:]}
    assert given == {field.name: field.default for field in fields(Options)}
