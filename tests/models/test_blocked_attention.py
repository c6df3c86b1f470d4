"""Attention in blocks of queries against plain float64 arithmetic and torch's kernel."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from variants import build

from lightning_llm.models import KVCache, Transformer
from lightning_llm.models import blocked_attention as module
from lightning_llm.models.blocked_attention import blocked_attention
from lightning_llm.strategies.parallelize import BlockOptions

KERNEL = "_scaled_dot_product_flash_attention_for_cpu"


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 3)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def reference(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *, scale: float
) -> Tensor:
    """One head at a time, all scores at once."""
    length, repeats = query.shape[2], query.shape[1] // key.shape[1]
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    heads = []
    for head in range(query.shape[1]):
        q, k, v = query[:, head], key[:, head // repeats], value[:, head // repeats]
        scores = (q @ k.mT * scale).masked_fill(later, -torch.inf)
        if mask is not None:
            scores = scores + mask[:, head % mask.shape[1]]
        heads.append(scores.softmax(dim=-1) @ v)
    return torch.stack(heads, dim=1)


def heads(
    groups: int, per_group: int, length: int, *, dtype: torch.dtype, gain: float = 1.0
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)

    def draw(count: int, gain: float) -> Tensor:
        y = torch.randn(2, length, count, 8, generator=generator, dtype=torch.float64) * gain
        return y.to(dtype).transpose(1, 2).requires_grad_()

    return [draw(groups * per_group, gain), draw(groups, gain), draw(groups, 1.0)]


def results(function: Callable[..., Tensor], inputs: list[Tensor], **options: object) -> Tensor:
    """Output and all gradients in one float64 vector."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    y = function(*leaves, **options)
    weights = torch.linspace(-1, 2, y.numel(), dtype=torch.float64).view_as(y)
    (y.double() * weights).sum().backward()
    grads = [leaf.grad for leaf in leaves if leaf.grad is not None]
    return torch.cat([x.detach().double().flatten() for x in (y, *grads)])


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("length", [2, 3, 7, 13, 31])
@pytest.mark.parametrize("per_group", [1, 3])
@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_equals_plain_attention(length: int, per_group: int, scale: float) -> None:
    inputs = heads(2, per_group, length, dtype=torch.float64)
    torch.testing.assert_close(
        results(blocked_attention, inputs, scale=scale),
        results(reference, inputs, scale=scale),
        rtol=1e-10,
        atol=1e-12,
    )


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (1, 4), (2, 4)])
def test_equals_plain_attention_with_a_mask(shape: tuple[int, int]) -> None:
    inputs = heads(2, 2, 10, dtype=torch.float64)
    mask = torch.randn(*shape, 10, 10, dtype=torch.float64)
    mask[..., 7:, 3:6] = -torch.inf
    mask = mask.masked_fill(torch.ones(10, 10, dtype=torch.bool).triu(1), -torch.inf)
    torch.testing.assert_close(
        results(blocked_attention, inputs, mask=mask),
        results(reference, inputs, mask=mask, scale=8**-0.5),
        rtol=1e-10,
        atol=1e-12,
    )


@pytest.mark.usefixtures("small_blocks")
def test_gradients() -> None:
    inputs = heads(1, 2, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *x: blocked_attention(*x, scale=0.7), inputs)


def one_after_another(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """`results` of the same formulas, with every sum in float32 in the least exact order.

    Elementwise arithmetic is the same on every processor, where a matrix product is not: each
    library orders its sums as its instructions like it, and the more of them run side by side, the
    smaller the error. Products are rounded to the dtype where those of the blocks are.
    """

    def product(x: Tensor, y: Tensor, dtype: torch.dtype = query.dtype) -> Tensor:
        total = torch.zeros(*x.shape[:-1], y.shape[-1])
        for k in range(x.shape[-1]):
            total = total + x[..., k : k + 1].float() * y[..., k : k + 1, :].float()
        return total.to(dtype)

    def fold(x: Tensor) -> Tensor:  # heads that share keys
        return x.unflatten(1, (-1, repeats)).flatten(2, 3)

    query, key, value = (x.detach() for x in (query, key, value))
    length, repeats, dtype = query.shape[2], query.shape[1] // key.shape[1], query.dtype
    keys, values = (x.repeat_interleave(repeats, 1) for x in (key, value))
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    scores = product(query.float() * scale, keys.mT, torch.float32)
    weights = scores.masked_fill(later, -torch.inf).softmax(dim=-1).to(dtype)
    y = product(weights, values)
    grad = torch.linspace(-1, 2, y.numel(), dtype=torch.float64).view_as(y).to(dtype)
    means = (grad.float() * y.float()).sum(dim=-1, keepdim=True)
    weight_grad = product(grad, values.mT).float()
    score_grad = (weights.float() * (weight_grad - means) * scale).to(dtype)
    grads = (
        product(score_grad, keys),
        product(fold(score_grad).mT, fold(query)),
        product(fold(weights).mT, fold(grad)),
    )
    return torch.cat([x.double().flatten() for x in (y, *grads)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gain", [1.0, 3.0])
def test_error_is_that_of_the_arithmetic(dtype: torch.dtype, gain: float) -> None:
    """Large scores too, which a softmax of bfloat16 scores gets wrong."""
    inputs = heads(2, 2, 300, dtype=dtype, gain=gain)
    exact = results(reference, [x.detach().double() for x in inputs], scale=8**-0.5)
    bound = 1.5 * (one_after_another(*inputs, scale=8**-0.5) - exact).norm()
    assert (results(blocked_attention, inputs) - exact).norm() <= bound
    if (dtype, gain) == (torch.bfloat16, 3.0):
        assert (results(reference, inputs, scale=8**-0.5) - exact).norm() > 1.5 * bound


class Operators(TorchDispatchMode):
    """Names of the operators that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def operators(
    model: Transformer, length: int, *, autocast: bool = True, **options: object
) -> list[str]:
    ids = torch.arange(2 * length).view(2, length) % model.config.vocab_size
    with Operators() as seen, torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        model.backbone(ids, **options).sum()
    return seen.names


@pytest.mark.parametrize("options", [{}, {"qk_norm": True}, {"attention_score": "cosine"}])
def test_models_use_blocks(options: dict[str, object]) -> None:
    model = build(max_seq_len=256, **options).train()
    names = operators(model, 192)
    assert KERNEL not in names
    assert names.count("bmm") == 2 * 2 * model.config.n_layers  # two blocks
    documents = torch.arange(2 * 192).view(2, 192) // 100
    assert KERNEL not in operators(model, 192, document_ids=documents)


def test_the_kernel_serves_other_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(max_seq_len=256).train()
    assert KERNEL in operators(model, 40)
    assert KERNEL in operators(model, 192, autocast=False)
    monkeypatch.setattr(module, "_MAX_LENGTH", 128)
    assert KERNEL in operators(model, 192)
    monkeypatch.undo()
    cache = KVCache(model.config, batch_size=2)
    with torch.no_grad():
        assert KERNEL in operators(model, 192)
        assert KERNEL in operators(model, 64, cache=cache)
        assert KERNEL in operators(model, 64, cache=cache)  # more keys than queries
    with torch.device("meta"):
        assert build(max_seq_len=256)(torch.zeros(1, 192, dtype=torch.long)).shape[1] == 192


def test_dropout_is_left_to_torch() -> None:
    model = build(max_seq_len=256, dropout=0.5).train()
    assert operators(model, 192).count("bmm") == 2 * model.config.n_layers  # no kernel drops out
    assert operators(model.eval(), 192).count("bmm") == 4 * model.config.n_layers


@pytest.mark.parametrize("checkpointing", ["none", "full", "selective"])
def test_training_is_as_exact_as_with_the_kernel(
    checkpointing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(max_seq_len=256).train()
    ids = torch.arange(2 * 192).view(2, 192) % model.config.vocab_size

    def step(model: Transformer, *, autocast: bool = True) -> Tensor:
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            y = model.backbone(ids)
        y.double().square().sum().backward()
        grad = model.blocks[0].attention.qkv.weight.grad
        assert grad is not None
        return torch.cat([y.detach().double().flatten(), grad.double().flatten()])

    exact = step(copy.deepcopy(model).double(), autocast=False)
    options = BlockOptions(activation_checkpointing=checkpointing)
    options.apply(model)
    blocked = step(model)
    monkeypatch.setattr(module, "_MAX_LENGTH", 0)
    kernel = step(model)
    assert not torch.equal(blocked, kernel)
    assert (blocked - exact).norm() <= 1.5 * (kernel - exact).norm()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("checkpointing", ["none", "full", "selective"])
def test_compiled_blocks(checkpointing: str) -> None:
    """One graph for all layers and steps, without the kernel, with the same gradients."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        from functorch.compile import make_boxed_func
        from torch._dynamo.backends.common import aot_autograd

        def keep(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
            graphs.append(graph)
            return make_boxed_func(graph.forward)

        return aot_autograd(fw_compiler=keep)(graph, inputs)

    def step() -> list[Tensor]:
        model.zero_grad()
        model.backbone(ids).float().square().sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    model: nn.Module = build(max_seq_len=256).train()
    ids = torch.arange(2 * 192).view(2, 192) % model.config.vocab_size
    expected = step()
    options = BlockOptions({"backend": backend}, activation_checkpointing=checkpointing)
    options.apply(model)
    for _ in range(3):
        for result, eager in zip(step(), expected, strict=True):
            torch.testing.assert_close(result, eager, rtol=1e-3, atol=2e-4)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert len(graphs) == 2
    assert not any(KERNEL in str(node.target) for graph in graphs for node in graph.graph.nodes)
