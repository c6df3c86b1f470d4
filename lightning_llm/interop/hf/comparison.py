"""Load an export as its users will, and compare it with what was exported."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_llm.errors import InvalidValueError, UnsupportedError
from lightning_llm.models.evaluating import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Largest difference of logits, relative to the largest logit; rounding differs by kernel.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_SAMPLE_LENGTH = 64

# Each shows what tokenizers differ in: contractions and digits, spaces and line breaks, accents in
# both spellings, scripts without spaces, code, emoji, capitals, words never seen, special tokens.
_TEXTS = (
    "Train 12345 models, don't wait: it's 3.14 or 1,000,000.",
    "  two spaces,\ttabs\n\n\nlines \r\n and an end  ",
    "naïve café, nai\u0308ve cafe\u0301, Ünïcode ﬁ ½ Ⅷ",
    "语言模型学习。日本語のテキスト、한국어 문장. Привет, мир! مرحبا",
    "def f(x_1: int) -> str:\n    return f'{x_1!r}' if x_1 >= 0 else None  # ok\n",
    "🙂👩‍👩‍👧 zero\u200bwidth",
    "ALL CAPS camelCase snake_case kebab-case http://example.org/a?b=c&d=%20",
    "qwzxv Zyxwv pneumonoultramicroscopic",
    "<s> </s> <|endoftext|> <unk> [CLS] ##ing ▁word Ġword",
    " ",
    "a",
)


def sample_ids(vocab_size: int, longest: int | None) -> Tensor:
    """The ids that logits are compared on, (2, T) int64; the same for each call."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, min(_SAMPLE_LENGTH, longest or _SAMPLE_LENGTH))
    return torch.randint(vocab_size, shape, generator=generator)


@contextmanager
def as_exported(network: nn.Module) -> Iterator[None]:
    """Compute as the export will: in evaluation mode, uncompiled, and nothing in 8 bits."""
    kinds: list[tuple[Any, type]] = [
        (layer, type(layer)) for layer in network.modules() if hasattr(layer, "plain_class")
    ]
    with evaluating(network), torch.compiler.set_stance("force_eager"):
        try:
            for layer, _ in kinds:
                layer.__class__ = layer.plain_class
            yield
        finally:
            for layer, kind in kinds:
                layer.__class__ = kind


def coarsest(*dtypes: torch.dtype) -> torch.dtype:
    """The one of several dtypes that rounds most, of which the tolerance follows."""
    known = [dtype for dtype in dtypes if dtype in _TOLERANCE]
    return max(known, key=_TOLERANCE.__getitem__, default=torch.float32)


def check_logits(
    wanted: Tensor,
    load: Callable[[], nn.Module],
    ids: Tensor,
    *,
    dtype: torch.dtype,
    fault: str,
) -> None:
    """Compare the logits of what was exported with those of the export.

    Args:
        wanted: Logits of what was exported.
        load: Loads the export, with ``transformers``.
        ids: What the logits are of.
        dtype: Of the arithmetic; the tolerance follows from it.
        fault: What to say of a difference besides its size.

    Raises:
        RuntimeError: They differ.
    """
    with _quiet():
        theirs: Any = load()
    device = wanted.device if _fits(theirs, wanted.device) else torch.device("cpu")
    theirs.to(device)
    with evaluating(theirs):
        got = theirs(input_ids=ids.to(device)).logits.float().to(wanted.device)
    wanted = wanted.float()
    tolerance = _TOLERANCE[dtype]
    if got.shape != wanted.shape:
        raise UnsupportedError(
            f"the exported model has logits of shape {tuple(got.shape)}, the trained one "
            f"{tuple(wanted.shape)}; nothing was written. {fault}"
        )
    largest = wanted.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    error = ((got - wanted).abs().max() / largest).item()
    if not error <= tolerance:
        raise UnsupportedError(
            f"the exported model computes other logits: relative difference {error:.2e}, "
            f"tolerance {tolerance:.0e}; nothing was written. {fault}"
        )


def _fits(network: nn.Module, device: torch.device) -> bool:
    """Whether a device has room for one more network."""
    if device.type != "cuda":
        return True
    size = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
    return torch.cuda.mem_get_info(device)[0] > 1.2 * size


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Compare what ``AutoTokenizer`` makes of a folder with the tokenizer that was written there.

    Raises:
        ValueError: It encodes or decodes differently; names the first text that shows it.
    """
    difference = tokenizer_difference(tokenizer, folder)
    if difference is not None:
        raise InvalidValueError(f"{difference}; nothing was written")


def tokenizer_difference(tokenizer: PreTrainedTokenizerBase, folder: Path) -> str | None:
    """In what ``AutoTokenizer`` differs from ``tokenizer``, worded for the user; None if equal.

    Args:
        tokenizer: What was written to the folder.
        folder: With ``config.json``, which decides on the class.
    """
    from transformers import AutoTokenizer

    again = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return next(_differences(tokenizer, again), None)


def _differences(wanted: Any, got: Any) -> Iterator[str]:
    what = f"the exported tokenizer, which AutoTokenizer loads as {type(got).__name__},"
    if len(got) != len(wanted):
        yield f"{what} has {len(got)} tokens, and the one of training {len(wanted)}"
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "chat_template"):
        ours, theirs = getattr(wanted, name, None), getattr(got, name, None)
        if ours != theirs:
            yield f"{what} has {name}={theirs!r}, and the one of training {ours!r}"
    for text in (*_TEXTS, *_texts_of_vocabulary(wanted)):
        ids, theirs = _encoded(wanted, text), _encoded(got, text)
        if ids != theirs:
            yield (
                f"{what} encodes {text!r} as {_listed(theirs)}, and the one of training as "
                f"{_listed(ids)}"
            )
        for skips in (True, False):
            options = {"skip_special_tokens": skips}
            ours, theirs = wanted.decode(ids, **options), got.decode(ids, **options)
            if ours != theirs:
                yield (
                    f"{what} decodes {_listed(ids)} as {theirs!r}, and the one of training as "
                    f"{ours!r}"
                )


def _encoded(tokenizer: Any, text: str) -> list[int]:
    # A warning of the length is of no use here.
    return list(tokenizer(text, verbose=False)["input_ids"])


def _texts_of_vocabulary(tokenizer: Any) -> Iterable[str]:
    """Tokens of the vocabulary itself, a few at a time: words of the language it was made for."""
    size = len(tokenizer)
    step = max(1, size // 512)
    chosen = range(0, size, step)
    for start in range(0, len(chosen), 16):
        yield tokenizer.decode(list(chosen[start : start + 16]))


def _listed(ids: list[int], limit: int = 12) -> str:
    return f"[{', '.join(map(str, ids[:limit]))}{', …' if len(ids) > limit else ''}]"


def refuse_not_finite(tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> None:
    """Refuse weights that are no numbers.

    Raises:
        ValueError: Names the first such tensor.
    """
    items = tensors.items() if isinstance(tensors, Mapping) else tensors
    for name, tensor in items:
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        wrong = tensor.numel() - int(torch.isfinite(tensor).sum())
        if wrong:
            raise InvalidValueError(
                f"the weights are not finite: {wrong} of the {tensor.numel()} values of {name} are "
                "NaN or infinite, so the training diverged; nothing was written. Export an earlier "
                "checkpoint"
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bar that transformers shows while it loads."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
