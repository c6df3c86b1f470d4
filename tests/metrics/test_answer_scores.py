"""Exact match and F1 of answers, against torchmetrics' port of SQuAD's script."""

from __future__ import annotations

import random

import pytest
import torch
from torchmetrics.text import SQuAD

from lightning_llm.metrics import ExactMatch, TokenF1

WORDS = ["the", "An", "cat", "Cat!", "sat", "(sat)", "a", "on", "mat.", "U.S.", "the-cat", "—", "é"]


def corpus(count: int) -> tuple[list[str], list[list[str]]]:
    draw = random.Random(0)

    def text() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(0, 4)))

    return [text() for _ in range(count)], [
        [text() for _ in range(1 + i % 3)] for i in range(count)
    ]


def test_equal_to_squads_script() -> None:
    predictions, references = corpus(400)
    # Two empty answers: 0 in SQuAD 1's F1, 1 in SQuAD 2's, which is ours; left out of the oracle.
    exact, f1 = ExactMatch(), TokenF1()
    squad = SQuAD()
    for number, (prediction, texts) in enumerate(zip(predictions, references)):
        if not exact_words(prediction):
            continue
        exact.update([prediction], [texts])
        f1.update([prediction], [texts])
        answers = {"text": texts, "answer_start": [0] * len(texts)}
        squad.update(
            [{"prediction_text": prediction, "id": str(number)}],
            [{"answers": answers, "id": str(number)}],
        )
    expected = squad.compute()
    assert 3 < expected["exact_match"] < 60
    assert float(exact.compute()) == pytest.approx(float(expected["exact_match"]), rel=1e-6)
    assert float(f1.compute()) == pytest.approx(float(expected["f1"]), rel=1e-6)


def exact_words(text: str) -> list[str]:
    from lightning_llm.metrics.qa import answer_words

    return answer_words(text)


def test_batches_and_ranks_do_not_matter() -> None:
    predictions, references = corpus(100)
    whole, one, other = TokenF1(), TokenF1(), TokenF1()
    whole.update(predictions, references)
    one.update(predictions[:3], references[:3])
    other.update(predictions[3:50], references[3:50])
    other.update(predictions[50:], references[50:])
    for state in ("numerator", "denominator"):  # what "sum" does to the states of ranks
        setattr(one, state, getattr(one, state) + getattr(other, state))
    assert float(one.compute()) == pytest.approx(float(whole.compute()), rel=1e-12)
    assert one.compute().dtype == torch.float64


def test_chinese_characters_are_words() -> None:
    f1 = TokenF1("zh")
    f1.update(["在北京。"], ["北京"])
    assert float(f1.compute()) == pytest.approx(80.0)
    exact = ExactMatch("zh")
    exact.update(["「北京」", "上海"], [["北京"], ["北京", "上 海!"]])
    assert float(exact.compute()) == 100.0
    spaced = TokenF1()
    spaced.update(["在北京"], ["北京"])
    assert float(spaced.compute()) == 0.0
    assert (spaced.signature, f1.signature) == ("norm:squad|tok:space", "norm:squad|tok:zh")


def test_no_answer() -> None:
    scores = ExactMatch(), TokenF1()
    for score in scores:
        score.update([], [])
        assert score.compute().isnan()
        score.update(["", "the"], [["", "x"], ["x"]])
        assert float(score.compute()) == 50.0


def test_errors() -> None:
    with pytest.raises(ValueError, match="tokenize='words' is not one of"):
        ExactMatch("words")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got 1 predictions and 2 entries of references"):
        ExactMatch().update(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="question 0 has no reference"):
        ExactMatch().update(["a"], [[]])
