"""What happens to weights outside an optimizer's step, with `MasterWeightsPrecision`.

Every situation runs in float32 with plain Lightning too; bfloat16 weights must move as those do,
within the rounding of their products.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    EMAWeightAveraging,
    StochasticWeightAveraging,
    WeightAveraging,
)
from precision_models import language_model, rows, trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_llm.callbacks import FiniteGuard
from lightning_llm.plugins import BF16MixedPrecision, MasterWeightsPrecision

MODES = ["master", "stochastic_rounding"]
both_modes = pytest.mark.parametrize("mode", MODES)
DATA = torch.randn(24, 8, generator=torch.Generator().manual_seed(1))


class Gan(L.LightningModule):
    """Two networks and two optimizers; each situation has a training step of its own."""

    automatic_optimization = False

    def __init__(self, optimizer: Any = torch.optim.SGD, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.generator = nn.Linear(8, 8)
        self.critic = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
        self.optimizer, self.options = optimizer, {"lr": 0.1, **options}

    def configure_optimizers(self) -> Any:
        parts = (self.generator, self.critic)
        return [self.optimizer(part.parameters(), **self.options) for part in parts]

    def generator_loss(self, x: Tensor) -> Tensor:
        return (self.critic(self.generator(x)) - 1).square().mean()

    def critic_loss(self, x: Tensor) -> Tensor:
        fake = self.critic(self.generator(x).detach())
        return (self.critic(x) - 1).square().mean() + (fake + 1).square().mean()

    def losses(self, x: Tensor) -> Iterator[tuple[Any, Tensor]]:
        """Each optimizer with its loss, which is computed when it is asked for."""
        first, second = self.optimizers()
        yield first, self.generator_loss(x)
        yield second, self.critic_loss(x)


def toggled(self: Gan, batch: Tensor, batch_idx: int) -> None:
    first, second = self.optimizers()
    for optimizer, loss in ((first, self.generator_loss), (second, self.critic_loss)):
        self.toggle_optimizer(optimizer)
        self.manual_backward(loss(batch))
        optimizer.step()
        optimizer.zero_grad()
        self.untoggle_optimizer(optimizer)
    assert all(p.requires_grad for p in self.parameters())


def cleared_by_the_optimizer_alone(self: Gan, batch: Tensor, batch_idx: int) -> None:
    # The first backward leaves gradients in the critic, which its own optimizer must clear.
    for optimizer, loss in self.losses(batch):
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()


def kept_gradients(self: Gan, batch: Tensor, batch_idx: int) -> None:
    for optimizer, loss in self.losses(batch):
        self.manual_backward(loss)
        optimizer.step()  # nobody clears: gradients add up from step to step, as torch's do
    assert all(p.grad is not None for p in self.parameters())


def cleared_in_place(self: Gan, batch: Tensor, batch_idx: int) -> None:
    for optimizer, loss in self.losses(batch):
        optimizer.zero_grad(set_to_none=False)
        self.manual_backward(loss)
        optimizer.step()


def added_up_by_hand(self: Gan, batch: Tensor, batch_idx: int) -> None:
    for optimizer, loss in self.losses(batch):
        self.manual_backward(loss / 3)
        if batch_idx % 3 == 2:
            optimizer.step()
            optimizer.zero_grad()


def clipped(self: Gan, batch: Tensor, batch_idx: int) -> None:
    for optimizer, loss in self.losses(batch):
        optimizer.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(optimizer, gradient_clip_val=0.2, gradient_clip_algorithm="norm")
        optimizer.step()


def scaled_through_the_optimizer(self: Gan, batch: Tensor, batch_idx: int) -> None:
    for optimizer, loss in self.losses(batch):
        optimizer.zero_grad()
        self.manual_backward(loss)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad.mul_(0.25)
        optimizer.step()


def raw_optimizers(self: Gan, batch: Tensor, batch_idx: int) -> None:
    """Steps that no precision plugin hears of."""
    losses = (self.generator_loss, self.critic_loss)
    for optimizer, loss in zip(self.optimizers(use_pl_optimizer=False), losses, strict=True):
        optimizer.zero_grad()
        self.manual_backward(loss(batch))
        optimizer.step()


def with_closures(self: Gan, batch: Tensor, batch_idx: int) -> None:
    first, second = self.optimizers()
    for optimizer, loss in ((first, self.generator_loss), (second, self.critic_loss)):

        def closure(optimizer: Any = optimizer, loss: Any = loss) -> Tensor:
            optimizer.zero_grad()
            value = loss(batch)
            self.manual_backward(value)
            return value

        with optimizer.toggle_model():
            optimizer.step(closure=closure)


def weights_clamped(self: Gan, batch: Tensor, batch_idx: int) -> None:
    """As in a Wasserstein GAN; `.data` leaves no trace on any version counter."""
    cleared_by_the_optimizer_alone(self, batch, batch_idx)
    for parameter in self.critic.parameters():
        parameter.data.clamp_(-0.2, 0.2)


def weights_loaded(self: Gan, batch: Tensor, batch_idx: int) -> None:
    if batch_idx == 3:
        state = {k: v.float() * 0 + 0.1 for k, v in self.generator.state_dict().items()}
        self.generator.load_state_dict(state)
    cleared_by_the_optimizer_alone(self, batch, batch_idx)


def frozen_for_a_while(self: Gan, batch: Tensor, batch_idx: int) -> None:
    self.generator.requires_grad_(batch_idx % 2 == 0)
    for optimizer, loss in zip(
        self.optimizers(), (self.generator_loss, self.critic_loss), strict=True
    ):
        optimizer.zero_grad()
        self.manual_backward(loss(batch))
        optimizer.step()


def a_new_optimizer(self: Gan, batch: Tensor, batch_idx: int) -> None:
    if batch_idx == 3:
        self.trainer.optimizers = [
            torch.optim.SGD(part.parameters(), lr=0.05) for part in (self.generator, self.critic)
        ]
    cleared_by_the_optimizer_alone(self, batch, batch_idx)


STEPS = [
    toggled,
    cleared_by_the_optimizer_alone,
    kept_gradients,
    cleared_in_place,
    added_up_by_hand,
    clipped,
    scaled_through_the_optimizer,
    raw_optimizers,
    with_closures,
    weights_clamped,
    weights_loaded,
    frozen_for_a_while,
    a_new_optimizer,
]


def flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().double().flatten() for p in module.parameters()])


def trained(module: L.LightningModule, *plugins: Any, **options: Any) -> Tensor:
    options = {"max_epochs": 1, **options}
    trainer(*plugins, **options).fit(module, DataLoader(DATA, batch_size=4))
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    return flat(module)


def assert_moves_alike(build: Callable[[], L.LightningModule], plugin: Any, **options: Any) -> None:
    """Like float32: within 5 % of the way, for bfloat16 products, and the rounding of weights.

    At random, each of n steps rounds by 0.4 units in the last place, which are at most 2^-7 of a
    weight; to nearest, only what somebody wrote into the weights is rounded.
    """
    callbacks = options.pop("callbacks", list)
    start = flat(build())
    expected = trained(build(), callbacks=callbacks(), **options)
    found = trained(build(), plugin, callbacks=callbacks(), **options)
    steps = len(DATA) / 4 * options.get("max_epochs", 1)
    at_random = getattr(plugin, "mode", None) == "stochastic_rounding"
    rounding = 2**-8 * (steps**0.5 if at_random else 1) * float(expected.norm())
    moved = float((expected - start).norm())
    assert moved > 3 * rounding
    assert float((found - expected).norm()) < 0.05 * moved + rounding


def gan_with(step: Callable[..., None], *arguments: Any, **options: Any) -> L.LightningModule:
    return type("Case", (Gan,), {"training_step": step})(*arguments, **options)


@both_modes
@pytest.mark.parametrize("step", STEPS)
def test_manual_optimization(step: Callable[..., None], mode: Any) -> None:
    assert_moves_alike(lambda: gan_with(step), MasterWeightsPrecision(mode))


@pytest.mark.parametrize("step", [toggled, clipped, weights_clamped, raw_optimizers])
def test_manual_optimization_with_autocast(step: Callable[..., None]) -> None:
    assert_moves_alike(lambda: gan_with(step), BF16MixedPrecision())


class IgnoresItsClosure(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:
        super().step()


class TwoSteps(torch.optim.Optimizer):
    """Steps up, evaluates again there, and lets another optimizer step from where it was."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})
        self.base = torch.optim.SGD(self.param_groups, lr=lr)
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def step(self, closure: Any) -> Any:
        with torch.enable_grad():
            closure()
        parameters = [p for group in self.param_groups for p in group["params"]]
        before = [p.clone() for p in parameters]
        for parameter in parameters:
            parameter.add_(parameter.grad, alpha=0.05)
        with torch.enable_grad():
            loss = closure()
        for parameter, value in zip(parameters, before, strict=True):
            parameter.copy_(value)
        self.base.step()
        return loss


@both_modes
@pytest.mark.parametrize(
    ("step", "optimizer"),
    [
        (with_closures, TwoSteps),
        (cleared_by_the_optimizer_alone, IgnoresItsClosure),
        (added_up_by_hand, torch.optim.Adagrad),
    ],
)
def test_unusual_optimizers(step: Callable[..., None], optimizer: Any, mode: Any) -> None:
    options = {"max_iter": 3} if optimizer is torch.optim.LBFGS else {}
    assert_moves_alike(lambda: gan_with(step, optimizer, **options), MasterWeightsPrecision(mode))


def test_state_from_before_the_first_step_is_float32() -> None:
    """A sum of squares in bfloat16 stops growing."""
    seen: set[torch.dtype] = set()

    class Look(L.Callback):
        def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
            for optimizer in trainer.optimizers:
                seen.update(state["sum"].dtype for state in optimizer.state.values())

    module = gan_with(cleared_by_the_optimizer_alone, torch.optim.Adagrad)
    trained(module, MasterWeightsPrecision(), callbacks=[Look()])
    assert seen == {torch.float32}


class KeepsReferences(torch.optim.SGD):
    """Updates tensors that are not in its groups when it steps."""

    def __init__(self, params: Any, lr: float) -> None:
        self.own = list(params)
        super().__init__(self.own, lr=lr)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for parameter in self.own:
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=0.1)


def test_an_optimizer_that_cannot_be_followed_is_refused() -> None:
    module = gan_with(cleared_by_the_optimizer_alone, KeepsReferences)
    with pytest.raises(ValueError, match=r"KeepsReferences\.step changed .* generator\.weight"):
        trained(module, MasterWeightsPrecision())
    assert {p.dtype for p in module.parameters()} == {torch.float32}


class FailsOnce(torch.optim.SGD):
    """Runs out of memory within its first step."""

    failed = False

    def step(self, closure: Any = None) -> Any:
        if not FailsOnce.failed:
            FailsOnce.failed = True
            raise MemoryError("no room for the moments")
        return super().step(closure)


@both_modes
def test_weights_are_back_after_a_failed_step(mode: Any) -> None:
    def forgiving(self: Gan, batch: Tensor, batch_idx: int) -> None:
        try:
            cleared_by_the_optimizer_alone(self, batch, batch_idx)
        except MemoryError:
            held = [p for o in self.optimizers() for g in o.param_groups for p in g["params"]]
            assert all(a is b for a, b in zip(held, self.parameters(), strict=True))
            cleared_by_the_optimizer_alone(self, batch, batch_idx)

    FailsOnce.failed = False
    module = gan_with(forgiving, FailsOnce)
    expected = trained(gan_with(cleared_by_the_optimizer_alone), MasterWeightsPrecision(mode))
    found = trained(module, MasterWeightsPrecision(mode))
    moved = (expected - flat(Gan())).norm()
    assert (found - expected).norm() < 0.05 * moved


class Regression(L.LightningModule):
    """Automatic optimization, validation, and a frozen part for who wants to thaw it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.head = nn.Linear(8, 8)
        self.validated: list[Tensor] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self.head(self.backbone(batch)) - batch.roll(1, 1)).square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.validated.append(flat(self))

    def configure_optimizers(self) -> Any:
        trainable = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.AdamW(trainable, lr=0.02)


class Thaw(BaseFinetuning):
    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.backbone)

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.backbone, optimizer, lr=0.02)
        elif epoch > 1:  # after resuming, which Lightning leaves to this method
            self.make_trainable(pl_module.backbone)


AUTOMATIC = {
    "finetuning": lambda: [Thaw()],
    "ema": lambda: [EMAWeightAveraging(decay=0.8)],
    "average": lambda: [WeightAveraging()],
    "swa": lambda: [StochasticWeightAveraging(swa_lrs=0.02, swa_epoch_start=1)],
}


@both_modes
@pytest.mark.parametrize("callbacks", AUTOMATIC.values(), ids=AUTOMATIC)
@pytest.mark.filterwarnings("ignore:The provided params to be frozen already exist")
def test_callbacks_that_write_weights(callbacks: Any, mode: Any) -> None:
    assert_moves_alike(Regression, MasterWeightsPrecision(mode), callbacks=callbacks, max_epochs=3)


@pytest.mark.parametrize("callbacks", AUTOMATIC.values(), ids=AUTOMATIC)
def test_callbacks_that_write_weights_with_autocast(callbacks: Any) -> None:
    assert_moves_alike(Regression, BF16MixedPrecision(), callbacks=callbacks, max_epochs=3)


def test_weights_that_come_back_keep_their_masters() -> None:
    """An average that is swapped in for validation and out again costs no bit."""

    def run(*callbacks: L.Callback) -> Tensor:
        module = Regression()
        runner = trainer(MasterWeightsPrecision(), max_epochs=3, callbacks=list(callbacks))
        loader = DataLoader(DATA, batch_size=4)
        runner.fit(module, loader, loader)
        return flat(module)

    class Swap(L.Callback):
        def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
            self.kept = [p.detach().clone() for p in module.parameters()]
            for parameter in module.parameters():
                parameter.data.copy_(torch.ones_like(parameter))

        def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
            for parameter, value in zip(module.parameters(), self.kept, strict=True):
                parameter.data.copy_(value)

    assert torch.equal(run(Swap()), run())


@both_modes
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_thawed_weights_resume_exactly(mode: Any, tmp_path: Path) -> None:
    class Save(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    module = Regression()
    callbacks = [Thaw(), Save()]
    runner = trainer(MasterWeightsPrecision(mode), max_epochs=4, callbacks=callbacks)
    runner.fit(module, DataLoader(DATA, batch_size=4))
    whole = flat(module)
    saved = torch.load(tmp_path / "half.ckpt", weights_only=True)
    state = saved["optimizer_states"][0]["state"]
    assert {entry["exp_avg"].dtype for entry in state.values()} == {torch.float32}
    assert len(state) == 4
    resumed = Regression()
    runner = trainer(MasterWeightsPrecision(mode), max_epochs=4, callbacks=[Thaw()])
    runner.fit(resumed, DataLoader(DATA, batch_size=4), ckpt_path=tmp_path / "half.ckpt")
    assert torch.equal(flat(resumed), whole)


@both_modes
def test_gradients_and_optimizers_are_left_as_they_came(mode: Any) -> None:
    module = Regression().double()
    trainer(MasterWeightsPrecision(mode), max_epochs=1).fit(module, DataLoader(DATA, batch_size=4))
    assert {p.dtype for p in module.parameters()} == {torch.float64}
    module.zero_grad()
    module.training_step(DATA.double(), 0).backward()
    assert {p.grad.dtype for p in module.parameters()} == {torch.float64}
    for optimizer in module.trainer.optimizers:
        assert not {"step", "load_state_dict"} & vars(optimizer).keys()
    copy.deepcopy(module)


@pytest.mark.parametrize("foreign", [False, True])
def test_all_weights_are_compared_where_foreign_code_could_write_them(foreign: bool) -> None:
    class Nothing(L.Callback):
        pass

    class Optimizer(torch.optim.AdamW):
        def step(self, closure: Any = None) -> Any:
            seen.append(plugin._compares)
            return super().step(closure)

    seen: list[bool] = []
    plugin, module = MasterWeightsPrecision(), language_model()
    guest = Nothing() if foreign else FiniteGuard()
    module.configure_optimizers = lambda: Optimizer(module.parameters())
    trainer(plugin, max_steps=2, callbacks=[guest]).fit(module, DataLoader(rows(16), batch_size=8))
    assert seen == [foreign] * 2
