"""Muon against torch's, against the singular value decomposition, and in a training loop."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from operator_count import OperatorCount
from torch import Tensor, nn
from torch.testing import assert_close

from lightning_llm.models import Transformer, TransformerConfig
from lightning_llm.optim import AdamW, Muon, WarmupCosine, parameter_groups
from lightning_llm.optim.matrix_parts import join_parts, split_parts
from lightning_llm.optim.orthogonalize import orthogonalize, product_dtype, step_coefficients


def polar(matrix: Tensor) -> Tensor:
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vh


@pytest.mark.parametrize(
    ("method", "low", "high"), [("polar_express", 0.868, 1.132), ("newton_schulz", 0.68, 1.14)]
)
def test_polynomials_push_singular_values_towards_one(method: Any, low: float, high: float) -> None:
    # From the smallest value that the method promises, to what 16-bit rounding makes of 1.
    smallest = 1e-3 if method == "polar_express" else 1e-2
    values = torch.logspace(math.log10(smallest), math.log10(1.01), 20_001, dtype=torch.float64)
    for a, b, c in step_coefficients(method, 5):
        values = a * values + b * values**3 + c * values**5
    assert low < values.min()
    assert values.max() < high


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 5, 12), (2, 12, 5), (1, 1, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_orthogonalize_keeps_singular_vectors(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    matrices = torch.randn(shape)
    got = orthogonalize(matrices, step_coefficients("polar_express", 5), dtype).float()
    for one, matrix in zip(got, matrices, strict=True):
        values = torch.linalg.svdvals(one)
        assert values.max() < 1.16
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        kept = s > 1e-2 * s.sum()
        assert values.min() > 0.84 or not kept.all()
        inner = u.T @ one @ vh.T  # diagonal where the vectors are kept
        limit = 0.05 if dtype == torch.bfloat16 else 1e-4
        assert (inner - inner.diag().diag()).abs().max() < limit


def test_more_steps_come_closer_to_the_decomposition() -> None:
    matrices = torch.randn(1, 6, 9)
    exact = orthogonalize(matrices, step_coefficients("polar_express", 9), torch.float32)
    assert_close(exact[0], polar(matrices[0]), atol=1e-3, rtol=0)


def test_orthogonalize_leaves_zero_at_zero() -> None:
    zeros = torch.zeros(2, 3, 4)
    assert_close(orthogonalize(zeros, step_coefficients("polar_express", 5), torch.float32), zeros)


@pytest.mark.parametrize("shape", [(24, 16), (16, 24), (16, 16)])
@pytest.mark.parametrize("match_rms", [True, False])
@pytest.mark.parametrize("nesterov", [True, False])
def test_a_single_matrix_as_in_torch(
    shape: tuple[int, int], match_rms: bool, nesterov: bool
) -> None:
    ours = nn.Parameter(torch.randn(shape))
    theirs = nn.Parameter(ours.detach().clone())
    muon = Muon(
        [{"params": [ours], "use_muon": True}],
        lr=0.1,
        nesterov=nesterov,
        match_rms_adamw=match_rms,
        method="newton_schulz",
    )
    plain = torch.optim.Muon(
        [theirs],
        lr=0.1,
        nesterov=nesterov,
        adjust_lr_fn="match_rms_adamw" if match_rms else "original",
    )
    start = ours.detach().clone()
    for _ in range(4):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        muon.step()
        plain.step()
    moved = (ours - start).norm()
    # torch multiplies in bfloat16 on the CPU too: 0.4 % per rounding, over a few roundings.
    assert (ours - theirs).norm() < 0.02 * moved
    assert_close(muon.state[ours]["momentum_buffer"], plain.state[theirs]["momentum_buffer"])


def test_update_has_the_size_of_an_adamw_update() -> None:
    for shape in ((64, 16), (16, 64), (48, 48)):
        weight = nn.Parameter(torch.zeros(shape))
        weight.grad = torch.randn(shape)
        Muon([{"params": [weight], "kind": "matrix"}], lr=1.0).step()
        assert weight.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.1)


def test_everything_else_is_adamw() -> None:
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 6), nn.LayerNorm(6))
    plain = copy.deepcopy(model)
    options = {"weight_decay": 0.3, "betas": (0.8, 0.9), "eps": 1e-6}
    muon = Muon(parameter_groups(model), lr=1e-2, adamw_lr=1e-3, **options)  # type: ignore[arg-type]
    adamw = AdamW(parameter_groups(plain), lr=1e-3, **options)  # type: ignore[arg-type]
    for _ in range(3):
        for one, other in zip(model.parameters(), plain.parameters(), strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        muon.step()
        adamw.step()
    for (name, one), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        if name == "1.weight":
            assert not torch.equal(one, other)
        else:
            assert_close(one, other, rtol=0, atol=0)
    assert [group["lr"] for group in muon.param_groups] == [1e-2, 1e-3, 1e-3]


def test_weight_decay_and_groups_of_their_own() -> None:
    weights = [nn.Parameter(torch.ones(3, 3)) for _ in range(3)]
    for weight in weights:
        weight.grad = torch.zeros(3, 3)
    groups = [
        {"params": [weights[0]], "kind": "matrix"},
        {"params": [weights[1]], "kind": "matrix", "lr": 0.5, "weight_decay": 0.2},
        {"params": [weights[2]], "kind": "matrix", "weight_decay": 0.0},
    ]
    Muon(groups, lr=0.1, weight_decay=0.1).step()
    for weight, expected in zip(weights, (0.99, 0.9, 1.0), strict=True):
        assert_close(weight.detach(), torch.full((3, 3), expected))


def test_a_parameter_without_gradient_stays() -> None:
    used, unused = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    used.grad = torch.eye(2)
    muon = Muon([{"params": [used, unused], "kind": "matrix"}])
    muon.step()
    assert torch.equal(unused, torch.ones(2, 2))
    assert unused not in muon.state


@pytest.mark.parametrize("heads", [(4, 2), (4, 4), (6, 1)])
def test_fused_projections_come_apart_and_together(heads: tuple[int, int]) -> None:
    n_heads, n_kv_heads = heads
    head_dim, width = 2, 5
    rows = []
    for group in range(n_kv_heads):
        rows += [1000 + group * 100 + q for q in range(n_heads // n_kv_heads)]
        rows += [2000 + group * 100, 3000 + group * 100]
    weight = torch.tensor(rows, dtype=torch.float32).repeat_interleave(head_dim)
    weight = weight[:, None].expand(-1, width).contiguous()
    parts = split_parts(weight, heads)
    assert [part.shape[0] for part in parts] == [n * head_dim for n in (n_heads, *[n_kv_heads] * 2)]
    for thousand, part in enumerate(parts, 1):
        assert (part // 1000 == thousand).all()
    assert torch.equal(join_parts(parts, weight.shape, heads), weight)


def test_query_key_and_value_are_matrices_of_their_own() -> None:
    config = TransformerConfig(
        vocab_size=16, n_layers=1, dim=16, n_heads=4, n_kv_heads=2, max_seq_len=8
    )
    model = Transformer(config)
    groups = parameter_groups(model)
    (fused,) = [group for group in groups if "qkv_heads" in group]
    weight = model.blocks[0].attention.qkv.weight
    assert fused["qkv_heads"] == (4, 2)
    assert fused["kind"] == "matrix"
    assert fused["params"][0] is weight
    before = weight.detach().clone()
    weight.grad = torch.randn_like(weight)
    Muon(groups, lr=1.0, weight_decay=0.0).step()
    gradients, moves = (split_parts(t, (4, 2)) for t in (weight.grad, before - weight.detach()))
    for gradient, move in zip(gradients, moves, strict=True):
        expected = orthogonalize(
            gradient[None], step_coefficients("polar_express", 5), product_dtype("cpu")
        )[0]
        # Small singular values carry the rounding of 16 bits; a wrong split is off by about 1.
        error = (move - expected.float() * 0.2 * math.sqrt(16)).norm()
        assert error < 0.1 * move.norm()


def test_stacked_experts_are_matrices_of_their_own() -> None:
    stack = nn.Parameter(torch.randn(3, 4, 6))
    single = [nn.Parameter(matrix.clone()) for matrix in stack.detach()]
    stack.grad = torch.randn_like(stack)
    for weight, gradient in zip(single, stack.grad, strict=True):
        weight.grad = gradient.clone()
    Muon([{"params": [stack], "kind": "matrix"}]).step()
    Muon([{"params": single, "kind": "matrix"}]).step()
    # Each way its own order of sums, in 16 bits on some CPUs; the update itself is about 3e-4.
    separate = torch.stack([weight.detach() for weight in single])
    assert_close(stack.detach(), separate, rtol=0, atol=1e-5)


def tiny() -> tuple[Transformer, Tensor]:
    config = TransformerConfig(vocab_size=17, n_layers=2, dim=32, n_heads=2, max_seq_len=16)
    start = torch.randint(0, 17, (8, 1))
    return Transformer(config), (start * 3 + torch.arange(17) * 5) % 17


def train(model: Transformer, optimizer: Any, schedule: Any, ids: Tensor, steps: int) -> float:
    loss = torch.zeros(())
    for _ in range(steps):
        optimizer.zero_grad()
        logits = model(ids[:, :-1]).flatten(0, 1)
        loss = nn.functional.cross_entropy(logits, ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        schedule.step()
    return loss.item()


def test_it_trains_and_resumes_exactly(tmp_path: Any) -> None:
    model, ids = tiny()
    optimizer = Muon(parameter_groups(model), lr=2e-2)
    schedule = WarmupCosine(optimizer, 2, 30)
    first = train(model, optimizer, schedule, ids, 1)
    train(model, optimizer, schedule, ids, 10)
    state = [model.state_dict(), optimizer.state_dict(), schedule.state_dict()]
    torch.save(state, tmp_path / "state")
    last = train(model, optimizer, schedule, ids, 15)
    assert last < 0.2 * first

    again, _ = tiny()
    resumed = Muon(parameter_groups(again), lr=2e-2)
    resumed_schedule = WarmupCosine(resumed, 2, 30)
    saved = torch.load(tmp_path / "state", weights_only=True)
    for part, loaded in zip((again, resumed, resumed_schedule), saved, strict=True):
        part.load_state_dict(loaded)  # type: ignore[attr-defined]
    assert train(again, resumed, resumed_schedule, ids, 15) == last
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_step_waits_for_nothing() -> None:
    model, ids = tiny()
    optimizer = Muon(parameter_groups(model))
    model(ids[:, :-1]).square().mean().backward()
    with OperatorCount() as counter:
        optimizer.step()
    assert counter.total == 0


def test_the_number_of_products_does_not_grow_with_the_layers() -> None:
    def products(n_layers: int) -> int:
        weights = [nn.Parameter(torch.randn(8, 8)) for _ in range(n_layers)]
        for weight in weights:
            weight.grad = torch.randn(8, 8)
        with OperatorCount("bmm", "baddbmm", "mm", "addmm") as counter:
            Muon([{"params": weights, "kind": "matrix"}]).step()
        return counter.total

    assert products(1) == products(7) == 15


@pytest.mark.distributed
def test_sharded_weights_move_as_whole_ones(tmp_path: Path) -> None:
    script = str(Path(__file__).with_name("check_muon_sharded.py"))
    ranks = [
        subprocess.Popen(
            [sys.executable, script, str(rank), "2", str(tmp_path / "rendezvous")],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for rank in ranks:
            _, errors = rank.communicate(timeout=120)
            assert rank.returncode == 0, errors
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


def test_closure() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    muon = Muon([{"params": [weight], "kind": "matrix"}])

    def closure() -> Tensor:
        muon.zero_grad()
        loss = weight.sum()
        loss.backward()
        return loss

    assert muon.step(closure).item() == 4.0
    assert not torch.equal(weight, torch.ones(2, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, r"lr=-1.0 must be a float that is not negative"),
        ({"lr": torch.tensor(1.0)}, r"lr=1.0 must be a float"),
        ({"momentum": 1.0}, r"momentum=1.0 must be in \[0, 1\)"),
        ({"betas": (0.9, 1.0), "eps": -1.0}, r"eps=-1.0 .*; betas\[1\]=1.0 must be in"),
        ({"method": "svd"}, r"method='svd' must be one of \('polar_express', 'newton_schulz'\)"),
        ({"steps": 0}, r"steps=0 must be at least 1"),
    ],
)
def test_misuse(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Muon([{"params": [nn.Parameter(torch.ones(2, 2))], "kind": "matrix"}], **options)


def test_misuse_of_groups() -> None:
    weight, bias = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    for params in ([weight], [{"params": [weight]}]):
        with pytest.raises(ValueError, match=r"pass parameter_groups\(module\), or groups with"):
            Muon(params)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"got a parameter of shape \(2,\); .* use_muon=False"):
        Muon([{"params": [bias], "use_muon": True}])
    sparse = nn.Embedding(3, 2, sparse=True)
    sparse(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="build the embedding with sparse=False"):
        Muon(parameter_groups(sparse)).step()
