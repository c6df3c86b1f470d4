"""A resumed run takes the settings given now; the oracle is a fresh optimizer and schedule."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.optim import SGD, Adam, Optimizer, RMSprop
from torch.optim import lr_scheduler as schedules
from torch.utils.data import DataLoader

from lightning_llm.callbacks import OptimizerSettings
from lightning_llm.optim import AdamW, Muon, WarmupCosine, WarmupStableDecay

pytestmark = [
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]
STOP, END = 4, 6
Make = Callable[..., Any]


class Net(pl.LightningModule):
    def __init__(self, optimizer: Make, scheduler: Make | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 1))
        self.make, self.schedule = optimizer, scheduler
        self.rates: list[list[float]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 0 or not self.rates:  # a schedule that follows the run learns its length
            scheduler: Any = self.lr_schedulers()
            if scheduler is not None and getattr(scheduler, "needs_total_steps", False):
                scheduler.set_total_steps(self.trainer.max_steps)
        self.rates.append(rates_of(self.trainer.optimizers[0]))
        return self.layers(batch).square().mean()

    def configure_optimizers(self) -> Any:
        optimizer = build(self.make, self.layers)
        if self.schedule is None:
            return optimizer
        scheduler: dict[str, Any] = {"scheduler": self.schedule(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


def build(make: Make, layers: torch.nn.Module) -> Optimizer:
    """Two groups, matrices and vectors."""
    parameters = list(layers.parameters())
    matrices = [p for p in parameters if p.ndim == 2]
    vectors = [p for p in parameters if p.ndim < 2]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    if make.func is Muon:  # type: ignore[attr-defined]
        groups[0]["use_muon"], groups[1]["use_muon"] = True, False  # type: ignore[assignment]
    return make(groups)  # type: ignore[no-any-return]


def rates_of(optimizer: Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def fit(
    folder: Path, optimizer: Make, scheduler: Make | None = None, *, resume: bool = False, **o: Any
) -> Net:
    module = Net(optimizer, scheduler)
    run = pl.Trainer(
        accelerator="cpu",
        max_steps=o.get("steps", END if resume else STOP),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[OptimizerSettings()] if o.get("callback", True) else [],
    )
    data: Any = DataLoader(torch.ones(END * 2, 3), batch_size=2)
    run.fit(module, data, ckpt_path=folder / "model.ckpt" if resume else None)
    if not resume:
        run.save_checkpoint(folder / "model.ckpt")
    return module


def fresh_rates(optimizer: Make, scheduler: Make | None) -> list[list[float]]:
    """The rates of the steps after the stop, of a run with these settings from the start."""
    made = build(optimizer, Net(optimizer, None).layers)
    schedule = scheduler(made) if scheduler else None
    if getattr(schedule, "needs_total_steps", False):
        schedule.set_total_steps(END)  # type: ignore[union-attr]
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the optimizer does not step
        for _ in range(END):
            rates.append(rates_of(made))
            if schedule is not None:
                schedule.step()
    return rates[STOP:]


adamw, muon, sgd = (partial(kind, lr=0.1, weight_decay=0.1) for kind in (AdamW, Muon, SGD))
halves = {"step_size": 2, "gamma": 0.5}


def sequence(optimizer: Any, T_max: int = 4, first: int = 2) -> Any:
    return schedules.SequentialLR(
        optimizer,
        [schedules.LinearLR(optimizer, 0.5), schedules.CosineAnnealingLR(optimizer, T_max)],
        milestones=[first],
    )


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ((adamw, None), (partial(adamw, lr=0.01), None), "lr 0.1 -> 0.01"),
        ((muon, WarmupCosine), (partial(muon, lr=0.01), WarmupCosine), "lr 0.1 -> 0.01"),
        (
            (muon, None),
            (partial(muon, adamw_lr=0.3, momentum=0.5), None),
            "lr 0.1 -> 0.3; momentum 0.95 -> 0.5",
        ),
        (
            (adamw, partial(WarmupCosine, warmup_steps=1)),
            (adamw, partial(WarmupCosine, warmup_steps=2, min_lr_ratio=0.5)),
            "WarmupCosine min_lr_ratio 0.1 -> 0.5; WarmupCosine warmup_steps 1 -> 2",
        ),
        (
            (adamw, partial(WarmupCosine, max_steps=100)),
            (adamw, partial(WarmupCosine, max_steps=10)),
            "WarmupCosine max_steps 100 -> 10",
        ),
        (
            (adamw, WarmupCosine),
            (adamw, partial(WarmupStableDecay, decay_fraction=0.5)),
            "schedule WarmupCosine -> WarmupStableDecay",
        ),
        (
            (adamw, partial(schedules.StepLR, **halves)),
            (partial(adamw, lr=0.4), partial(schedules.StepLR, step_size=3, gamma=0.1)),
            "lr 0.1 -> 0.4; StepLR gamma 0.5 -> 0.1; StepLR step_size 2 -> 3",
        ),
        (
            (adamw, partial(schedules.MultiStepLR, milestones=[2], gamma=0.1)),
            (adamw, partial(schedules.MultiStepLR, milestones=[5], gamma=0.1)),
            "MultiStepLR milestones",
        ),
        (
            (sgd, partial(schedules.CosineAnnealingLR, T_max=20)),
            (partial(sgd, lr=0.3), partial(schedules.CosineAnnealingLR, T_max=8, eta_min=0.01)),
            "lr 0.1 -> 0.3; CosineAnnealingLR T_max 20 -> 8; CosineAnnealingLR eta_min 0 -> 0.01",
        ),
        (
            (sgd, partial(schedules.CosineAnnealingWarmRestarts, T_0=9)),
            (sgd, partial(schedules.CosineAnnealingWarmRestarts, T_0=3)),
            "CosineAnnealingWarmRestarts T_0 9 -> 3",
        ),
        (
            (sgd, partial(schedules.OneCycleLR, max_lr=0.1, total_steps=20)),
            (sgd, partial(schedules.OneCycleLR, max_lr=0.2, total_steps=10)),
            "OneCycleLR total_steps 20 -> 10",
        ),
        ((sgd, sequence), (sgd, partial(sequence, T_max=3)), "CosineAnnealingLR T_max 4 -> 3"),
        (
            (sgd, partial(schedules.LambdaLR, lr_lambda=lambda step: 1 / (step + 1))),
            (
                partial(sgd, lr=0.7),
                partial(schedules.LambdaLR, lr_lambda=lambda step: 1 / (step + 1)),
            ),
            "lr 0.1 -> 0.7",
        ),
        (
            (sgd, partial(schedules.MultiplicativeLR, lr_lambda=lambda step: 0.5)),
            (
                partial(sgd, lr=0.2),
                partial(schedules.MultiplicativeLR, lr_lambda=lambda step: 0.5),
            ),
            "lr 0.1 -> 0.2",
        ),
    ],
)
def test_rates_are_those_of_the_new_settings_at_the_position_reached(
    tmp_path: Path, caplog: Any, old: Any, new: Any, said: str
) -> None:
    caplog.set_level("INFO", "lightning.pytorch")
    # A shorter run first: schedules that follow the run are told its length anew.
    fit(tmp_path, *old)
    resumed = fit(tmp_path, *new, resume=True)
    for got, right in zip(resumed.rates, fresh_rates(*new), strict=True):
        assert got == pytest.approx(right)
    [line] = [line for line in caplog.messages if "optimizer settings given now" in line]
    assert said in line


@pytest.mark.parametrize("callback", [True, False])  # of the checkpoint: with or without a record
@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (adamw, partial(adamw, weight_decay=0.2), "weight_decay 0.1 -> 0.2"),
        (adamw, partial(adamw, betas=[0.5, 0.9], eps=1e-6), "betas [0.9, 0.95] -> [0.5, 0.9]; eps"),
        (muon, partial(muon, nesterov=False, steps=3), "nesterov True -> False; steps 5 -> 3"),
        (sgd, partial(sgd, momentum=0.9), "momentum 0 -> 0.9"),
        (partial(Adam, lr=0.1), partial(Adam, lr=0.1, amsgrad=True), "amsgrad False -> True"),
        (partial(RMSprop, lr=0.1), partial(RMSprop, lr=0.1, centered=True, momentum=0.5), "center"),
    ],
)
def test_options_are_the_new_ones_and_moments_go_on(
    tmp_path: Path, caplog: Any, old: Any, new: Any, said: str, callback: bool
) -> None:
    caplog.set_level("INFO", "lightning.pytorch")
    fit(tmp_path, old, callback=callback)
    moments = torch.load(tmp_path / "model.ckpt", weights_only=True)["optimizer_states"][0]["state"]

    resumed = fit(tmp_path, new, resume=True)
    optimizer = resumed.trainer.optimizers[0]
    expected = build(new, resumed.layers)
    for group, right in zip(optimizer.param_groups, expected.param_groups, strict=True):
        for name in right.keys() - {"params"}:
            assert group[name] == right[name], name
    [line] = [line for line in caplog.messages if "optimizer settings given now" in line]
    assert said in line

    # By hand: the saved moments, the new options.
    by_hand = Net(new, None)
    by_hand.load_state_dict(torch.load(tmp_path / "model.ckpt", weights_only=True)["state_dict"])
    stepper = build(new, by_hand.layers)
    parameters = [p for group in stepper.param_groups for p in group["params"]]
    for place, state in moments.items():
        stepper.state[parameters[place]].update(
            {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in state.items()}
        )
        own = stepper.state[parameters[place]]
        for option, key, like in (
            ("amsgrad", "max_exp_avg_sq", "exp_avg_sq"),
            ("centered", "grad_avg", "square_avg"),
            ("centered", "momentum_buffer", "square_avg"),
        ):
            if stepper.defaults.get(option):
                own[key] = torch.zeros_like(own[like])
    for _ in range(END - STOP):
        stepper.zero_grad()
        by_hand.layers(torch.ones(2, 3)).square().mean().backward()
        stepper.step()
    for got, right in zip(resumed.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(got, right)


@pytest.mark.parametrize(
    "settings",
    [
        (adamw, WarmupCosine),
        (muon, partial(WarmupStableDecay, max_steps=6)),
        (sgd, partial(schedules.OneCycleLR, max_lr=0.1, total_steps=20)),
        (sgd, partial(schedules.CosineAnnealingWarmRestarts, T_0=3)),
        (sgd, sequence),
    ],
)
def test_nothing_is_touched_where_nothing_changed(
    tmp_path: Path, caplog: Any, settings: Any
) -> None:
    caplog.set_level("INFO", "lightning.pytorch")
    fit(tmp_path, *settings, steps=END)
    whole = torch.load(tmp_path / "model.ckpt", weights_only=True)["state_dict"]
    fit(tmp_path, *settings, steps=END - 2)
    plain = fit(tmp_path, *settings, resume=True, callback=False)
    ours = fit(tmp_path, *settings, resume=True)
    assert ours.rates == plain.rates
    for name, value in ours.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name])
        if settings[1] is not WarmupCosine:  # whose first part was told another length
            assert torch.equal(value, whole[name])
    lines = [line for line in caplog.messages if "optimizer settings given now" in line]
    length = ["length of the schedule 4 -> 6 steps"] if settings[1] is WarmupCosine else []
    assert [line.rpartition(": ")[2] for line in lines] == length


def test_another_kernel_is_taken_without_a_word(tmp_path: Path, caplog: Any) -> None:
    caplog.set_level("INFO", "lightning.pytorch")
    fit(tmp_path, adamw)
    resumed = fit(tmp_path, partial(adamw, fused=False), resume=True)
    assert not any(group["fused"] for group in resumed.trainer.optimizers[0].param_groups)
    assert "optimizer settings given now" not in caplog.text


def test_a_rate_that_a_plateau_lowered_goes_on_in_proportion(tmp_path: Path) -> None:
    class Plateau(Net):
        def configure_optimizers(self) -> Any:
            optimizer = build(self.make, self.layers)
            scheduler = schedules.ReduceLROnPlateau(optimizer)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": scheduler, "monitor": "loss", "interval": "epoch"},
            }

        def on_train_start(self) -> None:
            self.log("loss", 1.0)
            if not self.trainer.ckpt_path:
                for group in self.trainer.optimizers[0].param_groups:
                    group["lr"] *= 0.25

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("loss", 1.0)
            return super().training_step(batch, batch_idx)

    def run(lr: float, ckpt: Path | None, steps: int) -> pl.Trainer:
        made = pl.Trainer(
            accelerator="cpu",
            max_steps=steps,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[OptimizerSettings()],
        )
        data: Any = DataLoader(torch.ones(12, 3), batch_size=2)
        made.fit(Plateau(partial(sgd, lr=lr), None), data, ckpt_path=ckpt)
        return made

    file = tmp_path / "model.ckpt"
    run(0.1, None, 2).save_checkpoint(file)
    assert rates_of(run(0.1, file, 3).optimizers[0]) == pytest.approx([0.025] * 2)
    assert rates_of(run(0.2, file, 3).optimizers[0]) == pytest.approx([0.05] * 2)


def test_muon_and_adamw_do_not_take_over_each_others_state(tmp_path: Path) -> None:
    class AllAdamW(Net):
        def configure_optimizers(self) -> Any:
            groups = build(self.make, self.layers).param_groups
            return Muon([{"params": g["params"], "use_muon": False} for g in groups])

    fit(tmp_path, muon)
    with pytest.raises(ValueError, match="group 0 of the optimizer had use_muon=True"):
        pl.Trainer(
            accelerator="cpu",
            max_steps=END,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[OptimizerSettings()],
        ).fit(
            AllAdamW(muon, None),
            DataLoader(torch.ones(4, 3)),  # type: ignore[arg-type]
            ckpt_path=tmp_path / "model.ckpt",
        )
