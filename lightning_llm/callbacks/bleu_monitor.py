"""Validation and test BLEU and chrF of any LightningModule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_llm.callbacks._continuations import GenerateFn
from lightning_llm.callbacks._text_scores import TextScoreMonitor
from lightning_llm.metrics import CorpusBLEU, CorpusCHRF


class BLEUMonitor(TextScoreMonitor):
    """Logs ``val_bleu`` and ``val_chrf`` (``test_…``) of any LightningModule, over the corpus.

    The scores equal ``sacrebleu.corpus_bleu`` and ``sacrebleu.corpus_chrf`` on all texts of all
    ranks: n-gram counts are summed, not scores. The texts come from, in this order:

    1. ``predictions`` and ``references`` of what the step returned;
    2. ``prompts`` and ``references`` of the batch: the module continues the prompts with its
       ``generate(prompts, …) -> list[str]``.

    ``references`` holds one text, or a list of texts, per prediction; of either source, the
    references may also come from the batch. The optional ``sources`` of the batch are shown in the
    table in place of the prompts.

    Prompts are collected and continued at the end of the epoch, in batches of similar length.
    Ranks that hold the whole model continue their own; where layers are sharded all ranks continue
    all prompts together, so that none waits for another, however unevenly the data is spread.
    Samples that a ``DistributedSampler`` repeats are not counted. Nothing runs in the sanity check
    except the test that there are texts.

    sacrebleu's signatures go to the console with the scores, and to the loggers; so does a table
    of (source, reference, output), also as ``bleu_samples.jsonl`` in the logger's folder.

    Args:
        tokenize: sacrebleu's tokenizer for BLEU: ``"13a"``, ``"intl"``, ``"zh"``, ``"ja-mecab"``,
            ``"char"``, ``"none"``, …
        generate_fn: ``generate_fn(pl_module, prompts, **options) -> list[str]``, used instead of
            the module's ``generate``.
        max_new_tokens: Longest continuation, where ``generate`` has that option.
        num_beams: Above 1, asks for beam search.
        stop: Strings that end a continuation.
        generate_options: More options for ``generate``, such as ``{"length_penalty": 0.6}``. It is
            greedy (``temperature=0``) if they do not say otherwise.
        max_samples: Score this many samples at most (per dataloader): the first of the data, the
            same for any number of ranks that share it evenly.
        batch_size: Prompts continued at a time; by default as many as the largest batch has.
        num_logged_samples: Rows of the table.

    Raises:
        ValueError: If ``tokenize`` is unknown, or a number is out of range.
    """

    def __init__(
        self,
        tokenize: str = "13a",
        *,
        generate_fn: GenerateFn | None = None,
        max_new_tokens: int = 128,
        num_beams: int = 1,
        stop: Sequence[str] | None = None,
        generate_options: Mapping[str, Any] | None = None,
        max_samples: int | None = None,
        batch_size: int | None = None,
        num_logged_samples: int = 8,
    ) -> None:
        super().__init__(
            {"bleu": CorpusBLEU(tokenize), "chrf": CorpusCHRF()},
            "bleu",
            generate_fn=generate_fn,
            max_new_tokens=max_new_tokens,
            num_beams=num_beams,
            stop=stop,
            generate_options=generate_options,
            max_samples=max_samples,
            batch_size=batch_size,
            num_logged_samples=num_logged_samples,
        )
