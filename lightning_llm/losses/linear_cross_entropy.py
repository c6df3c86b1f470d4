"""Cross entropy of ``hidden @ weight.T`` that never holds the N x V logits.

The logits of a language model are its largest tensor: N=16,384 tokens and V=128,256 take 8.4 GB in
float32, and again for their gradient. Here the tokens are taken chunk by chunk; the gradients with
respect to ``hidden`` and ``weight`` are accumulated while a chunk's logits exist. Values and
gradients are those of the plain computation, :func:`linear_cross_entropy_reference`.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lightning_llm.errors import InvalidTypeError, InvalidValueError
from lightning_llm.losses.backends import BackendName, Request, require, run_backend
from lightning_llm.losses.choice import choose
from lightning_llm.losses.operators import rows_op, sum_op
from lightning_llm.losses.softmax_rows import LossTerms
from lightning_llm.losses.split_vocabulary import is_split, split_cross_entropy, split_rows

Reduction = Literal["sum", "mean", "none"]


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_softcap: float | None = None,
    reduction: Reduction = "mean",
    chunk_size: int | None = None,
    backend: BackendName = "auto",
) -> Tensor:
    """Cross entropy between ``hidden @ weight.T + bias`` and ``labels``, without whole logits.

    Args:
        hidden: (N, D) last hidden states.
        weight: (V, D) output projection, in the dtype of ``hidden`` unless autocast is on. A
            ``DTensor`` split by rows stays so: no rank computes the logits of another's.
        labels: (N,) int64; a label outside ``[0, V)`` that is not ``ignore_index`` is an error
            of the caller, found by the device when it indexes (no check that waits for it).
        bias: (V,) of the output projection.
        ignore_index: label of tokens that count for nothing.
        label_smoothing: share of the uniform distribution in the target (Szegedy et al. 2016,
            https://arxiv.org/abs/1512.00567).
        z_loss: factor of ``logsumexp(logits) ** 2``, which keeps the logits from drifting
            (PaLM, https://arxiv.org/abs/2204.02311, section 5).
        logit_softcap: ``c`` in ``c * tanh(logits / c)`` (Gemma 2,
            https://arxiv.org/abs/2408.00118).
        reduction: ``"mean"`` over the tokens that count, by default as in torch's function of
            this name and `torch.nn.functional.cross_entropy` (which also is divided by the tokens
            that count alone, with label smoothing too; but 0 where none counts, and not NaN);
            ``"sum"`` of them, for gradients that are divided by the targets of a whole step; or
            ``"none"``, which computes the logits again in the backward pass.
        chunk_size: tokens whose logits exist at a time. By default an eighth of them on a CPU,
            between 13 Mi and 16 Mi logits, and what fits 1 GiB on an accelerator; but at least 128
            and 2,048 tokens.
        backend: ``"chunked"`` is the implementation here. ``"torch"`` (from 2.13 on, float32 and
            float64), ``"liger"`` (extra ``[liger]``, CUDA) and ``"cce"`` (extra ``[cce]``, CUDA,
            16-bit) are others, each with fewer options. ``"auto"`` is ``"chunked"``, except that a
            process that trains alone on a CUDA device measures once per shape which is fastest.

    Returns:
        The loss in float32 (float64 for float64 inputs): scalar, or (N,) for ``"none"``.

    Raises:
        TypeError: dtypes that do not fit together.
        ValueError: shapes that do not fit together, an option out of range, or one that the
            backend does not support.
        ModuleNotFoundError: the backend is not installed.
        RuntimeError: on a second derivative (``create_graph=True``).

    Example:
        >>> hidden = torch.randn(6, 8, requires_grad=True)
        >>> weight = torch.randn(100, 8, requires_grad=True)
        >>> labels = torch.tensor([1, 5, 99, -100, 0, 7])
        >>> linear_cross_entropy(hidden, weight, labels, chunk_size=2).backward()
        >>> hidden.grad[3].abs().sum()
        tensor(0.)
    """
    if reduction not in get_args(Reduction):
        raise InvalidValueError(f"reduction={reduction!r} must be one of {get_args(Reduction)}")
    _check(hidden, weight, labels, bias, label_smoothing, z_loss, logit_softcap, chunk_size)
    extras = _extras(bias, label_smoothing, z_loss, logit_softcap, chunk_size)
    request = Request(hidden.device.type, _compute_dtype(hidden), reduction, ignore_index, extras)
    options = (ignore_index, float(label_smoothing), float(z_loss), logit_softcap, chunk_size)
    name = _resolve(backend, hidden, weight, labels, request, options)
    if name != "chunked":
        loss = run_backend(name, hidden, weight, labels, request)
    elif reduction == "none":
        if is_split(weight):
            terms = LossTerms(*options[:4])
            return split_rows(hidden, weight, labels, bias, terms, chunk_size, request.dtype)
        loss = rows_op(hidden, weight, labels, bias, *options, request.dtype)
    else:
        loss = _sum(hidden, weight, labels, bias, *options)[0]
    if reduction == "mean":
        loss = loss / (labels != ignore_index).sum().clamp(min=1)
    return loss


def linear_cross_entropy_with_nll(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_softcap: float | None = None,
    chunk_size: int | None = None,
    backend: BackendName = "auto",
) -> tuple[Tensor, Tensor]:
    """Summed training loss, and beside it the summed likelihood that is reported.

    Arguments as in :func:`linear_cross_entropy`. With label smoothing or z-loss the two differ, and
    only the chunked backend knows both: ``"auto"`` takes it then.

    Returns:
        ``loss_sum``, differentiable, with label smoothing and z-loss, and ``nll_sum``, detached,
        the plain negative log-likelihood; both scalars in float32 (float64 for float64 inputs).
    """
    _check(hidden, weight, labels, bias, label_smoothing, z_loss, logit_softcap, chunk_size)
    differ = bool(label_smoothing or z_loss)
    if differ and backend not in ("auto", "chunked"):
        option = f"label_smoothing={label_smoothing}" if label_smoothing else f"z_loss={z_loss}"
        raise InvalidValueError(
            f"backend={backend!r} does not give the likelihood beside a loss with {option}; "
            "leave it out, or use backend='chunked' or 'auto'"
        )
    extras = _extras(bias, label_smoothing, z_loss, logit_softcap, chunk_size)
    request = Request(hidden.device.type, _compute_dtype(hidden), "sum", ignore_index, extras)
    options = (ignore_index, float(label_smoothing), float(z_loss), logit_softcap, chunk_size)
    name = "chunked"
    if not differ:
        name = _resolve(backend, hidden, weight, labels, request, options)
    if name == "chunked":
        return _sum(hidden, weight, labels, bias, *options)
    loss = run_backend(name, hidden, weight, labels, request)
    return loss, loss.detach()


def _extras(
    bias: Tensor | None,
    label_smoothing: float,
    z_loss: float,
    logit_softcap: float | None,
    chunk_size: int | None,
) -> dict[str, Any]:
    """The options that not every backend has, where they are not at their defaults."""
    given = {
        "bias": bias,
        "label_smoothing": label_smoothing or None,
        "z_loss": z_loss or None,
        "logit_softcap": logit_softcap,
        "chunk_size": chunk_size,
    }
    return {name: value for name, value in given.items() if value is not None}


def _resolve(
    backend: str,
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    request: Request,
    options: tuple[Any, ...],
) -> str:
    """The backend of a call, checked where it was asked for by name."""
    if backend not in get_args(BackendName):
        raise InvalidValueError(f"backend={backend!r} must be one of {get_args(BackendName)}")
    if is_split(weight):
        if backend not in ("auto", "chunked"):
            raise InvalidValueError(
                f"backend={backend!r} takes no head whose rows are spread over ranks "
                "(tensor_parallel_size > 1); use backend='auto'"
            )
        return "chunked"
    if backend == "auto":
        bias = request.extras.get("bias")
        return choose(
            hidden,
            weight,
            labels,
            request,
            lambda states, head: _sum(states, head, labels, bias, *options)[0],
        )
    if backend != "chunked":
        require(backend, request)
    return backend


def _sum(
    hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor]:
    """Calls the operator, asking for exactly the gradients that autograd will want."""
    if is_split(weight):
        *terms, chunk_size = options
        dtype = _compute_dtype(hidden)
        return split_cross_entropy(
            hidden, weight, labels, bias, LossTerms(*terms), chunk_size, dtype
        )
    recording = torch.is_grad_enabled()
    wants_hidden = recording and hidden.requires_grad
    wants_weight = recording and weight.requires_grad
    wants_bias = recording and bias is not None and bias.requires_grad
    wants = (wants_hidden, wants_weight, wants_bias)
    loss, nll, *_ = sum_op(
        hidden, weight, labels, bias, None, *options, _compute_dtype(hidden), *wants
    )
    return loss, nll


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    """The dtype ``F.linear`` would compute in: autocast's where it is on, except for float64."""
    device_type = hidden.device.type
    if hidden.dtype != torch.float64 and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return hidden.dtype


def _check(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    label_smoothing: float,
    z_loss: float,
    logit_softcap: float | None,
    chunk_size: int | None,
) -> None:
    """Everything that can be known without reading a tensor's values."""
    if hidden.ndim != 2:
        raise InvalidValueError(
            f"hidden must be (N, D), got {tuple(hidden.shape)}; "
            "flatten batch and sequence with hidden.flatten(0, -2)"
        )
    if weight.ndim != 2 or weight.shape[1] != hidden.shape[1]:
        raise InvalidValueError(
            f"weight must be (V, D) with D={hidden.shape[1]} as in hidden, "
            f"got {tuple(weight.shape)}"
        )
    if labels.ndim != 1 or labels.shape[0] != hidden.shape[0]:
        raise InvalidValueError(
            f"labels must be (N,) with N={hidden.shape[0]} as in hidden, got {tuple(labels.shape)}"
        )
    if bias is not None and (bias.ndim != 1 or bias.shape[0] != weight.shape[0]):
        raise InvalidValueError(
            f"bias must be (V,) with V={weight.shape[0]} as in weight, got {tuple(bias.shape)}"
        )
    if labels.dtype != torch.int64:
        raise InvalidTypeError(
            f"labels must be int64, got {labels.dtype}; convert with labels.long()"
        )
    if not hidden.is_floating_point() or not weight.is_floating_point():
        raise InvalidTypeError(
            f"hidden and weight must be floating point, got {hidden.dtype} and {weight.dtype}"
        )
    if hidden.dtype != weight.dtype and not torch.is_autocast_enabled(hidden.device.type):
        raise InvalidTypeError(
            f"hidden is {hidden.dtype} but weight is {weight.dtype}: convert one, "
            "or call under torch.autocast"
        )
    if not 0.0 <= label_smoothing <= 1.0:
        raise InvalidValueError(f"label_smoothing={label_smoothing} must be between 0 and 1")
    if not z_loss >= 0.0:
        raise InvalidValueError(f"z_loss={z_loss} must not be negative")
    if logit_softcap is not None and not logit_softcap > 0.0:
        raise InvalidValueError(
            f"logit_softcap={logit_softcap} must be positive; None turns it off"
        )
    if chunk_size is not None and chunk_size < 1:
        raise InvalidValueError(f"chunk_size={chunk_size} must be at least 1; None chooses one")
