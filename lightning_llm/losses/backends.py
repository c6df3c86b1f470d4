"""Other implementations of the loss: torch's own, Liger's and cut cross entropy.

Each is held to the contract of :func:`lightning_llm.losses.linear_cross_entropy`: value and
gradients of the plain computation. What a backend cannot do to that standard it refuses by name.
The optional packages are imported when they are used first, never before.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_llm.errors import InvalidValueError, MissingPackageError

BackendName = Literal["auto", "chunked", "torch", "liger", "cce"]


@dataclass(frozen=True)
class Request:
    """What a call asks for.

    Attributes:
        device_type: of the hidden states.
        dtype: of the matrix products.
        reduction: ``"sum"``, ``"mean"`` or ``"none"``.
        ignore_index: label that counts for nothing.
        extras: the other options that are not at their defaults, by name.
    """

    device_type: str
    dtype: torch.dtype
    reduction: str
    ignore_index: int
    extras: dict[str, Any]


Run = Callable[[Tensor, Tensor, Tensor, Request], Tensor]


@dataclass(frozen=True)
class Backend:
    """An implementation and its limits.

    Attributes:
        run: computes the summed loss (a loss per token for ``"none"``) of tensors that are already
            in ``request.dtype``.
        package: importable name, where it is optional.
        extra: of this project's distribution that brings the package.
        options: of ``Request.extras`` that it knows; ``"none"`` for that reduction.
        dtypes: it computes the loss in; None means all.
        cuda_only: whether it needs a GPU.
        waits: whether every call waits for the device (to count the targets, for one).
    """

    run: Run
    package: str | None
    extra: str | None
    options: frozenset[str]
    dtypes: frozenset[torch.dtype] | None
    cuda_only: bool
    waits: bool


def _run_torch(hidden: Tensor, weight: Tensor, labels: Tensor, request: Request) -> Tensor:
    # Under torch.compile torch keeps the gradients for a second backward pass and says so, unless
    # it is asked to.
    options = torch.nn.LinearCrossEntropyOptions(
        batch_chunk_size=request.extras.get("chunk_size"),
        allow_retain_graph=torch.compiler.is_compiling(),
    )
    loss: Tensor = F.linear_cross_entropy(  # type: ignore[attr-defined]
        hidden,
        weight,
        labels,
        linear_bias=request.extras.get("bias"),
        reduction="none" if request.reduction == "none" else "sum",
        ignore_index=request.ignore_index,
        options=options,
    )
    return loss


def _run_liger(hidden: Tensor, weight: Tensor, labels: Tensor, request: Request) -> Tensor:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    bias = request.extras.get("bias")
    head_wants = weight.requires_grad or (bias is not None and bias.requires_grad)
    if head_wants and not hidden.requires_grad and torch.is_grad_enabled():
        hidden = hidden.detach().requires_grad_()  # else Liger computes no gradient at all
    loss: Tensor = liger_fused_linear_cross_entropy(
        hidden,
        weight,
        labels,
        bias=bias,
        ignore_index=request.ignore_index,
        lse_square_scale=request.extras.get("z_loss", 0.0),
        label_smoothing=request.extras.get("label_smoothing", 0.0),
        reduction="sum",
        softcap=request.extras.get("logit_softcap"),
        accum_dtype=torch.float32,
    )
    return loss


def _run_cce(hidden: Tensor, weight: Tensor, labels: Tensor, request: Request) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    # Its default drops small entries of the softmax from the gradient: fast, but another gradient.
    loss: Tensor = linear_cross_entropy(
        hidden,
        weight,
        labels,
        ignore_index=request.ignore_index,
        softcap=request.extras.get("logit_softcap"),
        reduction="none" if request.reduction == "none" else "sum",
        filter_eps=None,
    )
    return loss


BACKENDS: dict[str, Backend] = {
    # torch rounds the loss itself to the dtype of the products.
    "torch": Backend(
        run=_run_torch,
        package=None,
        extra=None,
        options=frozenset({"bias", "chunk_size", "none"}),
        dtypes=frozenset({torch.float32, torch.float64}),
        cuda_only=False,
        waits=False,
    ),
    "liger": Backend(
        run=_run_liger,
        package="liger_kernel",
        extra="liger",
        options=frozenset({"bias", "label_smoothing", "z_loss", "logit_softcap"}),
        dtypes=frozenset({torch.float32, torch.bfloat16, torch.float16}),
        cuda_only=True,
        waits=True,
    ),
    "cce": Backend(
        run=_run_cce,
        package="cut_cross_entropy",
        extra="cce",
        options=frozenset({"logit_softcap", "none"}),
        dtypes=frozenset({torch.bfloat16, torch.float16}),
        cuda_only=True,
        waits=True,
    ),
}


def refusal(name: str, request: Request) -> str | None:
    """Why a backend cannot do what is asked, as the end of a message; None where it can."""
    backend = BACKENDS[name]
    asked = dict(request.extras)
    if request.reduction == "none":
        asked["none"] = None
    for option, value in asked.items():
        if option in backend.options:
            continue
        if option == "none":
            return "does not support reduction='none'"
        if isinstance(value, Tensor):
            return f"does not support {option}, a tensor of shape {tuple(value.shape)}"
        return f"does not support {option}={value}"
    if backend.cuda_only and request.device_type != "cuda":
        return f"needs a CUDA device, and hidden is on device {request.device_type!r}"
    if backend.dtypes is not None and request.dtype not in backend.dtypes:
        return f"does not compute the loss to this package's standard in dtype {request.dtype}"
    return None


def absence(name: str) -> str | None:
    """What is missing for a backend, and how it is installed; None where nothing is."""
    backend = BACKENDS[name]
    if name == "torch":
        if hasattr(F, "linear_cross_entropy") and hasattr(torch.nn, "LinearCrossEntropyOptions"):
            return None
        return (
            f"torch {torch.__version__} has no chunked linear_cross_entropy, which came with 2.13: "
            "upgrade torch"
        )
    if backend.package is not None and importlib.util.find_spec(backend.package) is None:
        return (
            f"{backend.package} is not installed; it comes with the extra [{backend.extra}]: "
            f"pip install 'lightning-llm[{backend.extra}]'"
        )
    return None


def require(name: str, request: Request) -> None:
    """Raises where a backend that was asked for by name cannot be used.

    Raises:
        ValueError: an option, a device or a dtype that the backend does not support.
        ModuleNotFoundError: the backend is not installed.
    """
    if reason := refusal(name, request):
        raise InvalidValueError(
            f"backend={name!r} {reason}; change it, or use backend='chunked' or 'auto'"
        )
    if reason := absence(name):
        raise MissingPackageError(f"backend={name!r}: {reason}, or use backend='chunked'")


def run_backend(
    name: str, hidden: Tensor, weight: Tensor, labels: Tensor, request: Request
) -> Tensor:
    """Summed loss, or (N,) for ``reduction="none"``, in float32 or float64."""
    if (bias := request.extras.get("bias")) is not None:
        request = replace(request, extras=request.extras | {"bias": bias.to(request.dtype)})
    states, head = hidden.to(request.dtype), weight.to(request.dtype)
    with torch.autocast(request.device_type, enabled=False):
        loss = BACKENDS[name].run(states, head, labels, request)
    return loss if loss.dtype == torch.float64 else loss.float()
