"""Every contender does the same work: the same losses from the same weights and tokens."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from benchmarks.contenders import SETS, parse_label, training_tasks
from benchmarks.contenders.small_gpt import SmallGPT
from benchmarks.pacing import Message, Pace, Pacer, UnavailableError
from benchmarks.training import TokenRows, TrainOptions, random_tokens, shifted
from benchmarks.weights import hugging_face_model, hugging_face_weights
from benchmarks.worker import resolve

# Contenders use their libraries as a user would; what those warn of is not ours.
pytestmark = pytest.mark.filterwarnings("ignore")
PACE = Pace(warmup=2, rounds=1, steps=1, settle=0)


def losses_of(label: str, workload: str, precision: str = "32-true") -> list[float]:
    """Run a contender's three steps in this process; skip if it is not installed."""
    [task] = training_tasks([label], {"workload": workload, "precision": precision})
    messages: list[Message] = []
    pacer = Pacer(PACE, report=messages.append, wait=lambda: None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            resolve(task.run)(dict(task.options), pacer)
    except UnavailableError as reason:
        pytest.skip(str(reason))
    _, ready, turn = messages
    assert ready["units_per_step"] == 2 * 16
    assert turn["seconds_per_step"] > 0
    return [*ready["losses"], *turn["losses"]]


def reference_losses(workload: str) -> list[float]:
    """Three steps of the Hugging Face model, written out once more."""
    options = TrainOptions(workload)
    model = hugging_face_model(options)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    embeddings = {
        id(p) for m in model.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()
    }
    decayed = [p for p in matrices if id(p) not in embeddings]
    rest = [p for p in model.parameters() if all(p is not q for q in decayed)]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-4, betas=(0.9, 0.95))
    losses = []
    for ids in random_tokens(options).split(2)[:3]:
        logits = model(input_ids=ids).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    return losses


@pytest.mark.parametrize("workload", ["tiny", "tiny-llama"])
@pytest.mark.parametrize(
    "label", ["ours", "ours+whole_logits", "hf", "hf_trainer", "litgpt", "lightning_hf", "nanogpt"]
)
def test_losses_are_those_of_a_plain_loop(
    label: str, workload: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if label == "hf_trainer":
        pytest.importorskip("accelerate")
    if (label, workload) == ("litgpt", "tiny"):
        pytest.skip("LitGPT has no learned positions: its GPT-2 has weights of its own")
    assert losses_of(label, workload) == pytest.approx(reference_losses(workload), abs=2e-5)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize(
    "label", ["ours", "ours+lightning_bf16", "ours+kept_gradients", "ours+master", "hf"]
)
def test_bfloat16_stays_near(
    label: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert losses_of(label, "tiny", precision) == pytest.approx(reference_losses("tiny"), abs=3e-3)


@pytest.mark.slow
def test_compiled_blocks_give_the_same_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = losses_of("ours+compile", "tiny")
    assert found == pytest.approx(reference_losses("tiny"), abs=2e-5)


def test_a_wrong_weight_would_be_seen() -> None:
    options = TrainOptions("tiny")
    weights = hugging_face_weights(options)
    weights["transformer.h.0.mlp.c_fc.weight"][0, 0] += 1.0
    model = SmallGPT(vocab_size=128, seq_len=16, n_layers=2, dim=32, n_heads=2)
    model.load_hugging_face(weights)
    ids = random_tokens(options)[:2]
    assert abs(float(model(ids, shifted(ids))) - reference_losses("tiny")[0]) > 1e-4


def test_targets_of_all_conventions_are_the_same() -> None:
    row = TokenRows(TrainOptions("tiny"), 3, ("input_ids", "labels", "shift_labels"))[4]
    assert row["labels"][1:].tolist() == row["shift_labels"][:-1].tolist()
    assert row["labels"][0] == row["shift_labels"][-1] == -100
    assert row["input_ids"][1:].tolist() == row["labels"][1:].tolist()


def test_labels_are_checked() -> None:
    with pytest.raises(ValueError, match="no contender 'megatron'"):
        parse_label("megatron")
    with pytest.raises(ValueError, match="hf has no whole_logits"):
        parse_label("hf+whole_logits")
    with pytest.raises(ValueError, match="precision='fp4' must be one of"):
        TrainOptions("S", precision="fp4")
    for labels in SETS.values():
        for label in labels.split(","):
            parse_label(label)
