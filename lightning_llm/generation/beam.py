"""Beam search. Letters: B batch, K beams, C candidates, V vocabulary, N new tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_llm.generation.decoder import Decoder
from lightning_llm.generation.repetition import RepetitionPenalty
from lightning_llm.generation.search import Ending

_NEVER = -1e9  # a score below any sum of log-probabilities, and finite: differences stay defined


def beam_search(
    decoder: Decoder,
    num_beams: int,
    ending: Ending,
    repetition: RepetitionPenalty | None = None,
    length_penalty: float = 1.0,
) -> Tensor:
    """The likeliest continuation found by keeping ``num_beams`` of them at each step.

    A finished continuation of n tokens (the one that ends it included) is worth its summed
    log-probability divided by ``n ** length_penalty``. A prompt is done once its best running
    beam, at its present length, is worth less than all of ``num_beams`` finished ones. These are
    the rules of ``transformers`` with ``early_stopping=False``.

    Args:
        decoder: One sequence per prompt; becomes one per beam.
        num_beams: K, at least 2.
        ending: When a sequence ends.
        repetition: Penalty on tokens seen, applied to log-probabilities.
        length_penalty: Above 0 favours long continuations, below 0 short ones.

    Returns:
        (B, N) int64, N as short as the longest sequence allows.
    """
    batch, device = ending.batch_size, ending.device
    logits = decoder.start()
    first = torch.arange(batch, device=device) * num_beams  # beam 0 of each prompt
    expand = torch.arange(batch, device=device).repeat_interleave(num_beams)
    decoder.reorder(expand)
    logits = logits[expand]
    if repetition is not None:
        repetition.reorder(expand)
    running = _Beams.empty(ending, num_beams)
    running.scores[:, 0] = 0.0  # all beams are equal at first: continue one of them
    finished = _Beams.empty(ending, num_beams)
    unsettled = torch.ones(batch, 1, dtype=torch.bool, device=device)
    # So many that K are left to continue if every beam ends with every ending token.
    n_candidates = max(2, 1 + ending.n_eos) * num_beams
    for step in range(ending.steps):
        log_probs = logits.log_softmax(dim=-1)
        if repetition is not None:
            log_probs = repetition(log_probs)
        candidates, parents = running.extended(log_probs, n_candidates, step)
        ended = ending.reached(candidates.tokens[..., : step + 1])
        divisor = (step + 1) ** length_penalty
        finished.merge(candidates, ended & unsettled, divisor)
        candidates.scores += ended * _NEVER
        running, kept = candidates.best(num_beams)
        worst = torch.where(finished.exist, finished.scores.amin(1, keepdim=True), _NEVER)
        unsettled &= (running.scores[:, :1] / divisor > worst).any(1, keepdim=True)
        if step + 1 == ending.steps:
            break
        if ending.worth_checking(step) and not bool(unsettled.any() & ~ended.all()):
            break
        chosen = running.tokens[..., step].flatten()
        parents = (parents.gather(1, kept) + first.unsqueeze(1)).flatten()
        decoder.reorder(parents)
        if repetition is not None:
            repetition.reorder(parents)
            repetition.add(chosen)
        logits = decoder.step(chosen)
    return finished.tokens[:, 0, : int(finished.lengths[:, 0].max())]


class _Beams:
    """K continuations of each of B prompts, best first."""

    def __init__(self, tokens: Tensor, scores: Tensor, lengths: Tensor) -> None:
        self.tokens = tokens  # (B, K, N) int64
        self.scores = scores  # (B, K) float32
        self.lengths = lengths  # (B, K) int64; 0: none yet

    @classmethod
    def empty(cls, ending: Ending, beams: int) -> _Beams:
        """K continuations without a token yet, all of the lowest score."""
        shape, device = (ending.batch_size, beams), ending.device
        return cls(
            torch.full((*shape, ending.steps), ending.pad_token_id, device=device),
            torch.full(shape, _NEVER, device=device),
            torch.zeros(shape, dtype=torch.int64, device=device),
        )

    @property
    def exist(self) -> Tensor:
        """(B, K) bool: which have a token."""
        return self.lengths > 0

    def extended(self, log_probs: Tensor, n_candidates: int, step: int) -> tuple[_Beams, Tensor]:
        """The best continuations by one token, and the beam (B, C) that each comes from."""
        batch, beams = self.scores.shape
        vocab_size = log_probs.shape[-1]
        totals = (log_probs.view(batch, beams, -1) + self.scores.unsqueeze(-1)).flatten(1)
        scores, flat = totals.topk(n_candidates)
        parents = flat // vocab_size
        tokens = _take(self.tokens, parents)
        tokens[..., step] = flat % vocab_size
        return _Beams(tokens, scores, torch.full_like(parents, step + 1)), parents

    def merge(self, candidates: _Beams, ended: Tensor, divisor: float) -> None:
        """Keep the best K of what is here and those of the K best candidates that ended."""
        beams = self.scores.shape[1]
        # Candidates past the first K are there to be continued only.
        ended = ended.clone()
        ended[:, beams:] = False
        scores = candidates.scores / divisor + ~ended * _NEVER
        both = _Beams(
            torch.cat((self.tokens, candidates.tokens), 1),
            torch.cat((self.scores, scores), 1),
            torch.cat((self.lengths, candidates.lengths * ended), 1),
        )
        best, _ = both.best(beams)
        self.tokens, self.scores, self.lengths = best.tokens, best.scores, best.lengths

    def best(self, beams: int) -> tuple[_Beams, Tensor]:
        """The ``beams`` of highest score, and which (B, K) they were."""
        index = self.scores.topk(beams).indices
        return (
            _Beams(
                _take(self.tokens, index),
                self.scores.gather(1, index),
                self.lengths.gather(1, index),
            ),
            index,
        )


def _take(tokens: Tensor, index: Tensor) -> Tensor:
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
