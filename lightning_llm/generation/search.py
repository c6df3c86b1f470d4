"""Greedy decoding and sampling. Letters: B batch, V vocabulary, N new tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_llm.generation.decoder import Decoder
from lightning_llm.generation.repetition import RepetitionPenalty
from lightning_llm.generation.text import StopStrings

# On an accelerator, asking whether all sequences have ended waits for the device; a few tokens
# too many cost less than asking each time.
_STEPS_PER_CHECK = 8


class Ending:
    """When a sequence ends.

    Args:
        limits: Most new tokens of each of the B sequences.
        eos: Tokens that end a sequence; may be empty.
        stop: Strings that end it, or ``None``.
        pad_token_id: Fills a sequence after its end.
        device: Of the tokens.
    """

    def __init__(
        self,
        limits: Sequence[int],
        eos: Sequence[int],
        stop: StopStrings | None,
        pad_token_id: int,
        device: torch.device,
    ) -> None:
        self.steps = max(limits)
        self.batch_size = len(limits)
        self.n_eos = len(eos)
        self.pad_token_id = pad_token_id
        self.device = device
        self._limits = torch.tensor(limits, device=device)
        self._shortest = min(limits)
        self._eos = torch.tensor(eos, dtype=torch.int64, device=device)
        self._stop = stop

    def reached(self, tokens: Tensor) -> Tensor:
        """Which sequences end with their last token.

        Args:
            tokens: (B, n) or (B, C, n) int64, new tokens so far.

        Returns:
            (B,) or (B, C) bool.
        """
        last = tokens[..., -1]
        ended = (last.unsqueeze(-1) == self._eos).any(-1)
        if tokens.shape[-1] >= self._shortest:
            limits = self._limits if last.dim() == 1 else self._limits.unsqueeze(1)
            ended = ended | (limits <= tokens.shape[-1])
        if self._stop is not None:
            ended = ended | self._stop.hits(tokens.flatten(0, -2)).view(ended.shape)
        return ended

    def worth_checking(self, step: int) -> bool:
        """Whether to ask the device now if there is anything left to do."""
        if self.device.type == "cpu" or self._stop is not None:
            return True
        return (step + 1) % _STEPS_PER_CHECK == 0


def search(
    decoder: Decoder,
    pick: Callable[[Tensor], Tensor],
    ending: Ending,
    repetition: RepetitionPenalty | None = None,
) -> Tensor:
    """Append one token at a time.

    Args:
        decoder: Gives the logits of the next token.
        pick: Logits (B, V) float32 to tokens (B,) int64.
        ending: When a sequence ends.
        repetition: Penalty on tokens seen.

    Returns:
        (B, N) int64, N as short as the longest sequence allows.
    """
    shape, device = (ending.batch_size, ending.steps), ending.device
    tokens = torch.full(shape, ending.pad_token_id, device=device)
    finished = torch.zeros(ending.batch_size, dtype=torch.bool, device=device)
    lengths = torch.zeros(ending.batch_size, dtype=torch.int64, device=device)
    logits = decoder.start()
    for step in range(ending.steps):
        if repetition is not None:
            logits = repetition(logits)
        chosen = pick(logits).masked_fill_(finished, ending.pad_token_id)
        tokens[:, step] = chosen
        lengths += ~finished
        finished |= ending.reached(tokens[:, : step + 1])
        if step + 1 == ending.steps:
            break
        if ending.worth_checking(step) and bool(finished.all()):
            break
        if repetition is not None:
            repetition.add(chosen)
        logits = decoder.step(chosen)
    return tokens[:, : int(lengths.max())]
