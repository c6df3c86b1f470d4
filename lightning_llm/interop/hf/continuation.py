"""Generation by ``transformers``, with the options and the results of ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_llm.generation.arguments import (
    check_options,
    check_prompts,
    eos_ids,
    length_limits,
    pad_id,
)
from lightning_llm.generation.text import StopStrings, decode_continuation, encode_prompts
from lightning_llm.interop.hf.decoder import evaluating

_NO_LIMIT = 2**31


def generate_with_transformers(
    network: nn.Module,
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
    """Continue prompts with ``network.generate``; see `lightning_llm.generation.generate`.

    Settings that a model's ``generation_config`` brings along (sampling, penalties) do not apply,
    except its end of sequence where there is no tokenizer. A batch ends where its longest prompt
    reaches the model's longest sequence.
    """
    stops = [stop] if isinstance(stop, str) else list(stop or [])
    model: Any = network
    check_prompts(prompts, tokenizer, stops)
    check_options(max_new_tokens, temperature, top_k, top_p, num_beams, repetition_penalty, stops)
    if len(prompts) == 0:
        return prompts if isinstance(prompts, Tensor) else []
    ids = prompts.tolist() if isinstance(prompts, Tensor) else encode_prompts(tokenizer, prompts)
    config = model.config.get_text_config()
    max_seq_len = getattr(config, "max_position_embeddings", None) or _NO_LIMIT
    eos = eos_ids(eos_token_id, tokenizer) or eos_ids(model.generation_config.eos_token_id, None)
    padding = pad_id(pad_token_id, tokenizer, eos)
    input_ids, mask = _left_padded(ids, padding, next(network.parameters()).device)
    options: dict[str, Any] = {
        "max_new_tokens": min(length_limits(ids, max_new_tokens, max_seq_len, config.vocab_size)),
        "do_sample": temperature > 0,
        "num_beams": num_beams,
        "repetition_penalty": repetition_penalty,
        "eos_token_id": eos or None,
        "pad_token_id": padding,
        "use_cache": use_cache,
    }
    if temperature > 0:
        options |= {"temperature": temperature, "top_k": top_k or 0, "top_p": top_p or 1.0}
    if num_beams > 1:
        options["length_penalty"] = length_penalty
    stopper = StopStrings(tokenizer, stops) if stops else None
    if stopper is not None:
        options["stopping_criteria"] = _criteria(stopper, input_ids.shape[1])
    devices = [input_ids.device] if input_ids.device.type == "cuda" else []
    with evaluating(network), torch.random.fork_rng(devices, enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        whole = model.generate(input_ids, attention_mask=mask, **options)
    new = whole[:, input_ids.shape[1] :]
    if isinstance(prompts, Tensor):
        return torch.cat((prompts, new.to(prompts.device)), dim=1)
    texts = []
    for prompt, row in zip(ids, new.tolist(), strict=True):
        end = next((i for i, token in enumerate(row) if token in eos), len(row))
        text = decode_continuation(tokenizer, prompt, row[:end])
        texts.append(text if stopper is None else stopper.cut(text))
    return texts


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
