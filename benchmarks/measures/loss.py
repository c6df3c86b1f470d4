"""`loss`: memory and time of the head's cross entropy, forward and backward."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.pacing import Pacer, UnavailableError
from benchmarks.plan import Pacing, Plan, against
from benchmarks.race import Task

if TYPE_CHECKING:
    from lightning_llm.losses import BackendName

PACE = Pacing(warmup=2, rounds=5, steps=3)
# Vocabulary -> tokens and width of the workload it belongs to (M, L).
SIZES = {32_000: (2048, 512), 50_304: (1024, 768), 128: (64, 16)}
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--vocab", type=int, nargs="+", choices=SIZES, default=[32_000, 50_304], help="sizes"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="of hidden states and head")
    parser.add_argument("--tokens", type=int, help="tokens of a step, in place of the workload's")


def plan(args: Namespace, folder: Path) -> list[Plan]:
    """Plan a race for each vocabulary."""
    plans = []
    for vocab in args.vocab:
        tokens, dim = SIZES[vocab]
        options = {"vocab": vocab, "tokens": args.tokens or tokens, "dim": dim}
        options |= {"dtype": args.dtype, "device": args.device}
        tasks = [
            Task(
                label,
                f"{__name__}:run",
                {**options, "implementation": label},
                args.device,
                args.threads,
                args.python.get("litgpt") if label == "litgpt" else None,
            )
            for label in IMPLEMENTATIONS
        ]
        settings = {"name_parts": [f"V{vocab}", args.dtype, args.device, args.allocator], **options}
        title = (
            f"Loss at vocabulary {vocab:,}: {options['tokens']:,} tokens, width {dim}, {args.dtype}"
        )
        columns = ("rate", "ratio", "extra")
        pace, baselines = PACE.resolve(args), against("ours", tasks)
        plans.append(Plan("loss", title, "tokens/s", tasks, pace, settings, baselines, columns))
    return plans


def run(options: dict[str, Any], pacer: Pacer) -> None:
    """Compute the mean loss and its gradients, again and again."""
    loss_of = IMPLEMENTATIONS[options["implementation"]]()
    tokens, vocab, dim = options["tokens"], options["vocab"], options["dim"]
    dtype, device = DTYPES[options["dtype"]], options["device"]
    torch.manual_seed(1)
    # The library's own memory (threads, kernels) is not the loss's: make it appear before.
    _step(loss_of, *_inputs(64, min(vocab, 256), dim, dtype, device))
    inputs = _inputs(tokens, vocab, dim, dtype, device)
    pacer.units_per_step = tokens
    pacer.begin()
    for _ in range(pacer.total_steps):
        pacer.step_done(_step(loss_of, *inputs))


def _inputs(
    tokens: int, vocab: int, dim: int, dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor, Tensor]:
    hidden = torch.randn(tokens, dim).to(device, dtype).requires_grad_()
    weight = (torch.randn(vocab, dim) * 0.02).to(device, dtype).requires_grad_()
    return hidden, weight, torch.randint(vocab, (tokens,), device=device)


def _step(loss_of: Loss, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    hidden.grad = weight.grad = None
    loss = loss_of(hidden, weight, labels)
    loss.backward()
    return loss.detach()


def _ours() -> Loss:
    from lightning_llm.losses import linear_cross_entropy

    return lambda hidden, weight, labels: linear_cross_entropy(
        hidden, weight, labels, reduction="mean", backend="chunked"
    )


def _through_ours(name: BackendName) -> Callable[[], Loss]:
    """A backend of `linear_cross_entropy` from another package, for a CUDA device."""

    def loss() -> Loss:
        from lightning_llm.losses import linear_cross_entropy
        from lightning_llm.losses.backends import absence

        if not torch.cuda.is_available():
            raise UnavailableError(f"{name} needs a CUDA device")
        if missing := absence(name):
            raise UnavailableError(missing)
        return lambda hidden, weight, labels: linear_cross_entropy(
            hidden, weight, labels, reduction="mean", backend=name
        )

    return loss


def _hugging_face() -> Loss:
    """Logits whole, and again in float32, as `transformers` computes every causal model's loss."""
    return lambda hidden, weight, labels: F.cross_entropy(F.linear(hidden, weight).float(), labels)


def _whole_logits() -> Loss:
    """Logits whole, in the dtype of the model, as nanoGPT does."""
    return lambda hidden, weight, labels: F.cross_entropy(F.linear(hidden, weight), labels)


def _torch_chunked() -> Loss:
    built_in = getattr(F, "linear_cross_entropy", None)
    options = getattr(torch.nn, "LinearCrossEntropyOptions", None)
    if built_in is None or options is None:
        raise UnavailableError(
            f"torch {torch.__version__} has no linear_cross_entropy with options"
        )
    return lambda hidden, weight, labels: built_in(hidden, weight, labels, options=options())


def _litgpt() -> Loss:
    try:
        from litgpt.utils import chunked_cross_entropy
    except ImportError as error:
        raise UnavailableError(f"{error}; pip install --no-deps litgpt") from error
    return lambda hidden, weight, labels: chunked_cross_entropy(F.linear(hidden, weight), labels)


IMPLEMENTATIONS: dict[str, Callable[[], Loss]] = {
    "ours": _ours,
    "transformers": _hugging_face,
    "whole_logits": _whole_logits,
    "torch_chunked": _torch_chunked,
    "litgpt": _litgpt,
    "liger": _through_ours("liger"),
    "cce": _through_ours("cce"),
}
