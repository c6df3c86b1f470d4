"""Continue prompts with a language model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_llm.generation.arguments import Options, check_prompts
from lightning_llm.generation.beam import beam_search
from lightning_llm.generation.decoder import CachedDecoder, UncachedDecoder
from lightning_llm.generation.repetition import RepetitionPenalty
from lightning_llm.generation.request import Request
from lightning_llm.generation.sampling import (
    apply_temperature,
    sample,
    top_k_filter,
    top_p_filter,
)
from lightning_llm.generation.search import Ending, search
from lightning_llm.models import Transformer
from lightning_llm.models.evaluating import evaluating


def generate(
    model: Transformer,
    prompts: Sequence[str] | Tensor,
    *,
    tokenizer: Any = None,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
    stop: str | Sequence[str] | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int | None = None,
    use_cache: bool = True,
) -> list[str] | Tensor:
    """Continue prompts, greedily unless a temperature or beams are asked for.

    A continuation ends with an ``eos_token_id``, at a stop string, after ``max_new_tokens``, or
    when prompt and continuation reach the model's ``max_seq_len``. Prompts of a batch do not
    influence each other, whatever their lengths.

    Args:
        model: Anything with the interface of :class:`~lightning_llm.models.Transformer`. Put in
            evaluation mode for the call, and back.
        prompts: Strings, or token ids (B, T) int64 that are all part of the prompt.
        tokenizer: A Hugging Face tokenizer; needed for strings and for ``stop``.
        max_new_tokens: Longest continuation.
        temperature: 0 takes the likeliest token; above, samples from logits / temperature.
        top_k: Sample among this many likeliest tokens only.
        top_p: Sample among the likeliest tokens that together have this probability only.
        num_beams: Above 1: beam search, see :func:`~lightning_llm.generation.beam.beam_search`.
        length_penalty: Of beam search; above 0 favours long continuations.
        repetition_penalty: Above 1 makes tokens of prompt and continuation less likely.
        seed: Of sampling, which never touches torch's global generator if given.
        stop: A string or several; a text ends before the first, token ids after it. Names of
            special tokens, such as ``<|im_end|>``, stop at these tokens.
        eos_token_id: The ids that end a sequence; ``[]`` for none. Default: the tokenizer's
            end-of-text token and what closes a turn in its chat template, see
            :func:`~lightning_llm.generation.ends.text_ends`.
        pad_token_id: Fills token ids after an end. Default: the tokenizer's, else the first
            ``eos_token_id``, else 0.
        use_cache: Keep keys and values of past tokens; without, the same result more slowly.

    Returns:
        For strings, the continuations alone, without special tokens. For token ids, prompts and
        continuations (B, T + N) int64, N as short as the longest continuation allows.

    Raises:
        ValueError: An option is out of range or does not go with another, or a prompt is empty,
            as long as the model's ``max_seq_len``, or of another vocabulary.
        TypeError: ``prompts`` is one string, or strings come without a tokenizer.
    """
    options = Options(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        num_beams=num_beams,
        length_penalty=length_penalty,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=stop,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
        use_cache=use_cache,
    )
    check_prompts(prompts, tokenizer, options.stops)
    if len(prompts) == 0:
        return prompts if isinstance(prompts, Tensor) else []
    config = model.config
    request = Request(
        prompts,
        tokenizer,
        options,
        max_seq_len=config.max_seq_len,
        vocab_size=config.vocab_size,
    )
    return request.answer(_new_tokens(model, request, options))


def _new_tokens(model: Transformer, request: Request, options: Options) -> Tensor:
    """What follows each prompt, (B, N) int64."""
    ids, device = request.ids, model.head_weight.device
    ending = Ending(request.limits, request.eos, request.stopper, request.padding, device)
    repetition = None
    if options.repetition_penalty != 1.0:
        vocab_size = model.config.vocab_size
        repetition = RepetitionPenalty(options.repetition_penalty, ids, vocab_size, device)
    with _decoding(model):
        kind = CachedDecoder if options.use_cache else UncachedDecoder
        decoder = kind(model, ids, max(request.limits))
        if options.num_beams > 1:
            penalty = options.length_penalty
            return beam_search(decoder, options.num_beams, ending, repetition, penalty)
        return search(decoder, _picker(options, device), ending, repetition)


def _picker(options: Options, device: torch.device) -> Callable[[Tensor], Tensor]:
    """From logits (B, V) to tokens (B,)."""
    temperature, top_k, top_p = options.temperature, options.top_k, options.top_p
    if temperature == 0.0:
        return partial(torch.argmax, dim=-1)
    generator = None
    if options.seed is not None:
        generator = torch.Generator(device).manual_seed(options.seed)

    def pick(logits: Tensor) -> Tensor:
        logits = apply_temperature(logits, temperature)
        if top_k is not None:
            logits = top_k_filter(logits, top_k)
        if top_p is not None:
            logits = top_p_filter(logits, top_p)
        return sample(logits, generator)

    return pick


@contextmanager
def _decoding(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, uncompiled.

    Each length of the cache would be compiled anew, and the blocks of a model in training are
    compiled for training's shapes.
    """
    compiled = any(module._compiled_call_impl is not None for module in model.modules())
    stance = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
    with evaluating(model), stance:
        yield
