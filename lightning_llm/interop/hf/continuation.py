"""Generation by ``transformers``, with the options and the results of ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from lightning_llm.generation.arguments import Options, check_prompts
from lightning_llm.generation.request import Request
from lightning_llm.generation.text import StopStrings
from lightning_llm.interop.hf.text_config import longest_sequence
from lightning_llm.models.evaluating import evaluating

_NO_LIMIT = 2**31


def generate_with_transformers(
    network: nn.Module,
    prompts: Sequence[str] | Tensor,
    *,
    tokenizer: Any = None,
    ends: Sequence[int] | None = None,
    **options: Any,
) -> list[str] | Tensor:
    """Continue prompts with ``network.generate``.

    Settings that a model's ``generation_config`` brings along (sampling, penalties) do not apply;
    what ends a text is an argument. Each prompt is continued until it
    reaches the model's longest sequence by itself, however long its neighbours are.

    Args:
        network: From `AutoModelForCausalLM`.
        prompts: Strings, or token ids (B, T) int64.
        tokenizer: A Hugging Face tokenizer; needed for strings and for ``stop``.
        ends: Ids that end a text where the options do not say; by default the tokenizer's.
        **options: Those of `lightning_llm.generation.generate`.
    """
    given = Options(**options)
    model: Any = network
    check_prompts(prompts, tokenizer, given.stops)
    if len(prompts) == 0:
        return prompts if isinstance(prompts, Tensor) else []
    config = model.config.get_text_config()
    request = Request(
        prompts,
        tokenizer,
        given,
        max_seq_len=longest_sequence(model) or _NO_LIMIT,
        vocab_size=config.vocab_size,
        default_eos=ends,
    )
    device = next(network.parameters()).device
    devices = [device] if device.type == "cuda" else []
    rows: list[Tensor] = [torch.empty(0)] * len(request.ids)
    with (
        evaluating(network),
        without_settings(model),
        torch.random.fork_rng(devices, enabled=given.seed is not None),
    ):
        if given.seed is not None:
            torch.manual_seed(given.seed)
        for limit, members in _equal_limits(request.limits):
            prompts_ids = [request.ids[member] for member in members]
            input_ids, mask = _left_padded(prompts_ids, request.padding, device)
            length = input_ids.shape[1]
            whole = model.generate(
                input_ids, attention_mask=mask, **_their_options(given, request, length, limit)
            )
            for member, row in zip(members, whole[:, length:], strict=True):
                rows[member] = row
    return request.answer(pad_sequence(rows, batch_first=True, padding_value=request.padding))


@contextmanager
def without_settings(model: Any) -> Iterator[None]:
    """The settings that came with a model would stand in for every option that is not given."""
    settings = model.generation_config
    model.generation_config = type(settings)()
    try:
        yield
    finally:
        model.generation_config = settings


def _equal_limits(limits: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Group prompts that may get equally many tokens, so that none ends for another's sake.

    In a group that is cut short by the model's longest sequence all prompts are of one length, and
    in the other the longest fits: no row, padding included, outgrows the model's positions.
    """
    groups: dict[int, list[int]] = {}
    for number, limit in enumerate(limits):
        groups.setdefault(limit, []).append(number)
    return list(groups.items())


def _their_options(
    given: Options, request: Request, prompt_length: int, limit: int
) -> dict[str, Any]:
    """What ``transformers`` calls them; those that do nothing are left out, or it warns."""
    options: dict[str, Any] = {
        "max_new_tokens": limit,
        "do_sample": given.temperature > 0,
        "num_beams": given.num_beams,
        "repetition_penalty": given.repetition_penalty,
        "eos_token_id": request.eos or None,
        "pad_token_id": request.padding,
        "use_cache": given.use_cache,
    }
    if given.temperature > 0:
        options["temperature"] = given.temperature
        options |= {"top_k": given.top_k or 0, "top_p": given.top_p or 1.0}
    if given.num_beams > 1:
        options["length_penalty"] = given.length_penalty
    if request.stopper is not None:
        options["stopping_criteria"] = _criteria(request.stopper, prompt_length)
    return options


def _criteria(stopper: StopStrings, prompt_length: int) -> Any:
    """Stop strings by decoding: those of ``transformers`` know only tokenizers of some kinds."""
    from transformers import StoppingCriteriaList

    def stops(input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return stopper.hits(input_ids[:, prompt_length:])

    return StoppingCriteriaList([stops])  # type: ignore[list-item]


def _left_padded(
    prompts: Sequence[Sequence[int]], padding: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, (B, T) int64."""
    longest = max(map(len, prompts))
    ids = [[padding] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
