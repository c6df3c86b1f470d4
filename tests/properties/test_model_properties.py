"""What no architecture may do: look ahead, look into another document, depend on the cut."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_llm.generation import generate
from lightning_llm.losses import linear_cross_entropy
from lightning_llm.models import KVCache, Transformer, TransformerConfig

VOCAB, CONTEXT = 61, 24
ARCHITECTURES = {
    "llama": {"n_kv_heads": 2},
    "gpt2": {"positions": "learned", "norm": "layernorm", "mlp": "gelu"},
    "alibi, window": {"positions": "alibi", "sliding_window": 5},
    "qk-norm, soft-cap, relu2": {"qk_norm": True, "logit_softcap": 15.0, "mlp": "relu2"},
    "cosine": {"attention_score": "cosine", "positions": "sinusoidal"},
    "experts": {"n_experts": 3},
}
EXAMPLES = settings(max_examples=15)


@cache
def model_of(name: str) -> Transformer:
    torch.manual_seed(3)
    config = TransformerConfig(
        vocab_size=VOCAB, max_seq_len=CONTEXT, n_layers=2, dim=32, n_heads=4, **ARCHITECTURES[name]
    )
    model = Transformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # away from the calm of a new model
            parameter.mul_(3.0) if parameter.ndim > 1 else None
    return model


def ids_of(data: st.DataObject, length: int) -> torch.Tensor:
    ids = data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=length, max_size=length))
    return torch.tensor([ids])


ALL = pytest.mark.parametrize("name", ARCHITECTURES)


@ALL
@EXAMPLES
@given(st.integers(2, CONTEXT), st.data())
@torch.no_grad()
def test_a_later_token_changes_nothing_before_it(name, length, data):
    model, ids = model_of(name), ids_of(data, length)
    place = data.draw(st.integers(1, length - 1))
    changed = ids.clone()
    changed[0, place] = (changed[0, place] + data.draw(st.integers(1, VOCAB - 1))) % VOCAB
    before, after = model(ids), model(changed)
    if name == "experts":  # a product over more or fewer of an expert's tokens rounds differently
        torch.testing.assert_close(before[:, :place], after[:, :place], rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(before[:, :place], after[:, :place])
    assert not torch.equal(before[:, place], after[:, place])


@ALL
@EXAMPLES
@given(st.lists(st.integers(1, 6), min_size=2, max_size=4), st.data())
@torch.no_grad()
def test_documents_of_a_row_are_strangers(name, lengths, data):
    """Each document's logits are those it has alone, whatever stands beside it."""
    model, ids = model_of(name), ids_of(data, sum(lengths))
    counts = torch.tensor(lengths)
    documents = torch.arange(len(lengths)).repeat_interleave(counts)[None]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    packed = model(ids, document_ids=documents, position_ids=positions)
    for document in range(len(lengths)):
        inside = documents[0] == document
        alone = model(ids[:, inside])
        torch.testing.assert_close(packed[:, inside], alone, rtol=1e-4, atol=1e-4)


@ALL
@EXAMPLES
@given(st.lists(st.integers(1, 7), min_size=1, max_size=4), st.data())
@torch.no_grad()
def test_a_cache_filled_in_any_steps_gives_the_same_logits(name, steps, data):
    model = model_of(name)
    steps = steps[: max(1, CONTEXT // 7)]
    ids = ids_of(data, min(CONTEXT, sum(steps)))
    whole, cache_ = model(ids), KVCache(model.config, 1)
    parts = [model(part, cache=cache_) for part in ids.split(steps[: len(steps)], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-4)


@ALL
@settings(max_examples=8)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=4), st.data())
def test_a_batch_of_prompts_continues_each_as_alone(name, lengths, data):
    model = model_of(name)
    prompts = [ids_of(data, length)[0].tolist() for length in lengths]
    width, new = max(lengths), 6

    def continued(rows: list[list[int]]) -> list[list[int]]:
        padded = [[0] * (max(map(len, rows)) - len(row)) + row for row in rows]
        mask = torch.tensor([[-1] * (max(map(len, rows)) - len(r)) + [0] * len(r) for r in rows])
        out = []
        cache_ = KVCache(model.config, len(rows), max(map(len, rows)) + new)
        positions = (mask == 0).cumsum(1).sub(1).clamp(min=0)
        with torch.no_grad():
            logits = model(
                torch.tensor(padded), document_ids=mask, position_ids=positions, cache=cache_
            )[:, -1]
            for step in range(new):
                token = logits.argmax(-1)
                out.append(token)
                if step < new - 1:
                    position = positions[:, -1:] + 1 + step
                    logits = model(
                        token[:, None],
                        document_ids=torch.zeros_like(token[:, None]),
                        position_ids=position,
                        cache=cache_,
                    )[:, -1]
        return torch.stack(out, 1).tolist()

    together = continued(prompts)
    assert width + new <= CONTEXT
    for prompt, found in zip(prompts, together):
        alone = generate(model, torch.tensor([prompt]), max_new_tokens=new)[0, len(prompt) :]
        assert found == alone.tolist()


@settings(max_examples=30)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([0.0, 0.1]),
    st.sampled_from([0.0, 1e-3]),
    st.sampled_from([None, 5.0]),
    st.data(),
)
def test_the_loss_of_parts_is_the_loss_of_the_whole(rows, chunk, smoothing, z_loss, softcap, data):
    """Any cut into micro-batches and chunks, masked rows included: one sum and one gradient."""
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, 8, generator=generator, dtype=torch.float64)
    weight = torch.randn(11, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor(
        data.draw(st.lists(st.sampled_from([-100, *range(11)]), min_size=rows, max_size=rows))
    )
    options = {"label_smoothing": smoothing, "z_loss": z_loss, "logit_softcap": softcap}
    whole = linear_cross_entropy(hidden, weight, labels, reduction="sum", **options)
    [expected] = torch.autograd.grad(whole, weight)
    cut = data.draw(st.integers(0, rows))
    parts = sum(
        linear_cross_entropy(h, weight, y, reduction="sum", chunk_size=chunk, **options)
        for h, y in zip(hidden.split([cut, rows - cut]), labels.split([cut, rows - cut]))
    )
    [found] = torch.autograd.grad(parts, weight)
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
