"""A step that is not a number moves nothing, is named, and is never saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_llm.callbacks import FiniteGuard
from lightning_llm.callbacks._step_health import SpikeWindow
from lightning_llm.callbacks.finite_guard import NonFiniteError
from lightning_llm.data import TokenStore, TokenStoreWriter
from lightning_llm.data.loader import TokenLoader
from lightning_llm.data.packing import ConcatWindows
from lightning_llm.optim import AdamW, Muon
from runs import Net, batches, loader, start_ranks, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*"),
    pytest.mark.filterwarnings("ignore:.*IterableDataset.*"),
]


def muon_groups(parameters: list[torch.nn.Parameter]) -> list[dict[str, Any]]:
    return [
        {"params": [p for p in parameters if p.ndim == rank], "use_muon": rank == 2}
        for rank in (1, 2)
    ]


OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "ours": lambda p: AdamW(p, lr=0.01, fused=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=0.1),
    "muon": lambda p: Muon(muon_groups(list(p)), lr=0.01),
}


def poisoned(count: int, *at: int, value: float = torch.nan) -> list[torch.Tensor]:
    data = batches(count)
    for index in at:
        data[index][1, 2] = value
    return data


def fit(data: Any, guard: FiniteGuard | None, module: Net | None = None, **options: Any) -> Net:
    module = module or Net()
    callbacks = [*options.pop("callbacks", []), *([guard] if guard else [])]
    trainer(callbacks=callbacks, **options).fit(
        module, loader(data) if isinstance(data, list) else data
    )
    return module


def everything(module: Net) -> list[torch.Tensor]:
    optimizer = module.trainer.optimizers[0]
    states = [t for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t)]
    return [*module.state_dict().values(), *states]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_a_skipped_step_is_as_if_it_had_not_been(name: str, accumulate: int, clip: Any) -> None:
    data = poisoned(8, 3)
    start = 3 - 3 % accumulate
    options = {"accumulate_grad_batches": accumulate, "gradient_clip_val": clip}
    without = fit(data[:start] + data[start + accumulate :], None, Net(OPTIMIZERS[name]), **options)
    with pytest.warns(UserWarning, match=f"step {start // accumulate}: .* is not finite"):
        skipped = fit(data, FiniteGuard("skip"), Net(OPTIMIZERS[name]), **options)
    expected = everything(without)
    assert len(expected) > 4
    for left, right in zip(everything(skipped), expected, strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("name", ["adamw", "fused"])
def test_raise_names_the_batch_and_leaves_weights_as_they_were(name: str) -> None:
    module = Net(OPTIMIZERS[name])
    with pytest.raises(NonFiniteError, match=r"step 2: .*; in rank 0, batch 5 of epoch 0\. The"):
        fit(poisoned(8, 5), FiniteGuard(), module, accumulate_grad_batches=2)
    before = fit(batches(4), None, Net(OPTIMIZERS[name]), accumulate_grad_batches=2)
    for left, right in zip(everything(module), everything(before), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("name", ["adamw", "fused"])
def test_the_last_step_of_a_run_is_judged_too(name: str) -> None:
    with pytest.raises(NonFiniteError, match="step 3"):
        fit(poisoned(4, 3), FiniteGuard(), Net(OPTIMIZERS[name]))


class BadGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * torch.inf


def test_a_finite_loss_with_bad_gradients_names_every_micro_batch_of_the_step() -> None:
    class Net2(Net):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = super().training_step(batch, batch_idx)
            return BadGradient.apply(loss) if batch_idx == 2 else loss

    with pytest.raises(NonFiniteError, match=r"in one of .* batch 2 of epoch 0; rank 0, batch 3"):
        fit(batches(4), FiniteGuard(), Net2(), accumulate_grad_batches=2)


def test_samples_and_documents_are_named_where_the_loader_knows_them(tmp_path: Path) -> None:
    with TokenStoreWriter(tmp_path / "s", vocab_size=100) as writer:
        for first in range(0, 45, 5):
            writer.add(np.arange(first, first + 5))
    rows = ConcatWindows(TokenStore(tmp_path / "s"), 2)
    tokens = TokenLoader(rows, micro_batch_size=2, shuffle=True, seed=4)

    class Tokens(Net):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = self.layers(torch.ones(1, 4)).sum()
            self.rows = (batch["input_ids"][:, 0] // 2).tolist()
            return loss * torch.nan if batch_idx == 3 else loss

    module = Tokens()
    with pytest.raises(NonFiniteError, match="batch 3 of epoch 0 ") as caught:
        fit(tokens, FiniteGuard(), module)
    assert f"(samples {module.rows[0]}, {module.rows[1]}; documents " in str(caught.value)
    # Sample i has the tokens 2i, 2i + 1, 2i + 2, and document d those from 5 d on.
    documents = sorted({(2 * row + k) // 5 for row in module.rows for k in range(3)})
    assert f"documents {', '.join(map(str, documents))})" in str(caught.value)


@pytest.mark.parametrize("policy", ["raise", "skip", "ignore"])
def test_no_nan_in_any_checkpoint(tmp_path: Path, policy: Any) -> None:
    save = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1)
    options = {"enable_checkpointing": True, "callbacks": [save]}
    if policy == "skip":
        with pytest.warns(UserWarning, match="left out"):
            fit(poisoned(6, 3), FiniteGuard(policy), **options)
    elif policy == "raise":
        with pytest.raises(NonFiniteError, match="step 3"):
            fit(poisoned(6, 3), FiniteGuard(policy), **options)
    else:
        with (
            pytest.warns(UserWarning, match="step 3"),
            pytest.raises(NonFiniteError, match=r"no checkpoint was saved at step 4: layers\.0"),
        ):
            fit(poisoned(6, 3), FiniteGuard(policy), **options)
    files = sorted(tmp_path.iterdir())
    assert len(files) == {"raise": 3, "skip": 6, "ignore": 3}[policy]
    for file in files:
        weights = torch.load(file, weights_only=True)["state_dict"]
        assert all(w.isfinite().all() for w in weights.values())


def test_too_many_skips_in_a_row_end_the_run() -> None:
    guard = FiniteGuard("skip", max_consecutive_skips=3)
    module = Net()
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(NonFiniteError, match=r"step 6: .*3 steps in a row"),
    ):
        fit(poisoned(9, 1, 2, 4, 5, 6), guard, module)
    assert all(w.isfinite().all() for w in module.state_dict().values())


@pytest.mark.parametrize("name", ["adamw", "fused"])
def test_a_spike_is_skipped_and_does_not_widen_the_window(name: str) -> None:
    data = poisoned(40, 30, 31, value=200.0)
    guard = FiniteGuard("skip", spike_sigma=6.0, spike_window=16)
    with pytest.warns(UserWarning, match=r"step 3[01]: loss or gradient norm is a spike") as caught:
        module = fit(data, guard, Net(OPTIMIZERS[name]))
    assert sum("spike" in str(w.message) for w in caught) == 2
    without = fit(data[:30] + data[32:], None, Net(OPTIMIZERS[name]))
    for left, right in zip(everything(module), everything(without), strict=True):
        assert torch.equal(left, right)


def test_the_window_is_a_sigma_rule_over_accepted_values() -> None:
    window, rule = SpikeWindow(3.0, 8), []
    values = torch.tensor([1.0, 1.1, 0.9, 1.0, 9.0, 1.05, 1.6, 0.2])
    for value in values:
        spike = window.is_spike(value[None])
        window.add(value[None], spike)
        rule.append(bool(spike))
    assert rule == [False] * 4 + [True, False, True, False]
    kept = values[[0, 1, 2, 3, 5]]
    assert float(kept.mean() + 3 * kept.std(correction=0)) < 1.6
    assert window.values.isnan().sum() == 2


def test_a_guard_resumes_its_window() -> None:
    guard = FiniteGuard("skip", spike_sigma=6.0, spike_window=16)
    fit(batches(20), guard)
    again = FiniteGuard("skip", spike_sigma=6.0, spike_window=16)
    again.load_state_dict(guard.state_dict())
    window, kept = again.state_dict()["window"], guard.state_dict()["window"]
    assert torch.equal(window, kept)
    assert again.state_dict()["position"] == 20


class LeavesOut(Net):
    """Returns no loss for some batches, which Lightning then leaves out."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None if batch_idx in (0, 3) else super().training_step(batch, batch_idx)


class ByHand(Net):
    """Two optimizers in manual optimization; the second layer's takes every other batch."""

    def __init__(self, plain_backward: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.plain_backward = plain_backward

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            loss = self.layers(batch).square().mean()
            optimizer.zero_grad()
            if self.plain_backward:
                loss.backward()
            else:
                self.manual_backward(loss)
            optimizer.step()

    def configure_optimizers(self) -> Any:
        first, second = self.layers[0], self.layers[2]
        return [torch.optim.SGD(part.parameters(), lr=0.05) for part in (first, second)]


@pytest.mark.parametrize("policy", ["raise", "skip", "ignore"])
@pytest.mark.parametrize("make", [LeavesOut, lambda: ByHand(True), lambda: ByHand(False)])
@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_guard_changes_nothing_that_is_finite(policy: Any, make: Any) -> None:
    alone = fit(batches(7), None, make())
    guarded = fit(batches(7), FiniteGuard(policy, spike_sigma=50.0), make())
    assert guarded.trainer.global_step == alone.trainer.global_step
    for name, weight in alone.state_dict().items():
        assert torch.equal(guarded.state_dict()[name], weight)


@pytest.mark.parametrize("plain_backward", [True, False])
def test_each_of_two_optimizers_is_guarded(plain_backward: bool) -> None:
    data = poisoned(6, 2)
    with pytest.warns(UserWarning, match=r"in (one of )?rank 0, batch 2 of epoch 0"):
        skipped = fit(data, FiniteGuard("skip"), ByHand(plain_backward))
    rest = fit([b for i, b in enumerate(data) if i != 2], None, ByHand(plain_backward))
    for name, weight in rest.state_dict().items():
        assert torch.equal(skipped.state_dict()[name], weight)
    with pytest.raises(NonFiniteError, match="batch 2 of epoch 0"):
        fit(data, FiniteGuard("raise"), ByHand(plain_backward))


class OneIsBad(ByHand):
    """The loss of the second optimizer is never a number."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer, factor in zip(self.optimizers(), (1.0, torch.nan)):
            loss = self.layers(batch).square().mean() * factor
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()


@pytest.mark.filterwarnings("ignore:.*The step was left out")
def test_steps_in_a_row_are_those_of_one_optimizer() -> None:
    with pytest.raises(NonFiniteError, match="4 steps in a row"):
        fit(batches(9), FiniteGuard("skip", max_consecutive_skips=4), OneIsBad(False))


@pytest.mark.distributed
def test_one_bad_rank_of_two_is_named_by_both() -> None:
    ranks = start_ranks("guarded_ranks.py", 2)
    for output in [rank.communicate(timeout=60)[0] for rank in ranks]:
        assert "weights as without the step: True" in output
        assert "step 2: loss or gradient is not finite" in output
        assert "in rank 1, batch 2 of epoch 0" in output
        assert "rank 0, batch" not in output
    assert [rank.returncode for rank in ranks] == [0, 0]


def test_arguments_are_checked_together() -> None:
    with pytest.raises(ValueError, match=r"policy='stop'.*spike_sigma=-1.*spike_window=2.*skips=0"):
        FiniteGuard("stop", spike_sigma=-1, spike_window=2, max_consecutive_skips=0)
