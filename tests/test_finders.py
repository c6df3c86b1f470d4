"""Lightning's finders of a learning rate and a batch size find them, and the run uses them.

The oracle is the run that was given from the start what was found: its weights are the same.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.tuner import Tuner
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from lightning_llm import CausalLM, TextDataModule
from lightning_llm.callbacks import FiniteGuard, SpeedMonitor
from lightning_llm.callbacks.optimizer_settings import OptimizerSettings
from lightning_llm.data import TokenDataModule, TokenizerSpec, TokenStoreWriter
from lightning_llm.optim import AdamW, Muon, WarmupCosine

CONFIG = {"n_layers": 1, "dim": 16, "n_heads": 2, "vocab_size": 260, "max_seq_len": 8}
STEPS = 6
SCHEDULES: dict[str, Any] = {
    "none": None,
    "ours": partial(WarmupCosine, warmup_steps=2, min_lr_ratio=0.0),
    "torch": partial(LambdaLR, lr_lambda=lambda step: 1 / (step + 1)),
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:When using .*accumulate_grad_batches"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before"),
    # Lightning's finders step their schedule before the optimizer.
    pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*before"),
]


def rows(n: int = 120) -> DataLoader[Any]:
    ids = torch.randint(260, (n, 9), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row[:-1], "shift_labels": row[1:]} for row in ids]
    return DataLoader(data, batch_size=2)  # type: ignore[arg-type]


def model(lr: float = 1e-3, schedule: Any = None, optimizer: Any = AdamW, **options: Any) -> Any:
    torch.manual_seed(0)
    return CausalLM(CONFIG, optimizer=partial(optimizer, lr=lr), lr_scheduler=schedule, **options)  # type: ignore[arg-type]


def trainer(folder: Path, *callbacks: Any, **options: Any) -> L.Trainer:
    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
        "max_steps": STEPS,
        "log_every_n_steps": 2,
    }
    return L.Trainer(callbacks=list(callbacks), **{**quiet, **options})


def finder(**options: Any) -> LearningRateFinder:
    return LearningRateFinder(min_lr=1e-5, max_lr=0.1, num_training_steps=15, **options)


def weights(module: L.LightningModule) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


class Rates(L.Callback):
    """The rates of all groups, step by step."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.rates.append([float(group["lr"]) for group in optimizer.param_groups])


def suggested(finder: LearningRateFinder) -> float:
    assert finder.optimal_lr is not None
    rate = finder.optimal_lr.suggestion(skip_begin=10)
    assert rate is not None
    return rate


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_run_trains_at_the_suggested_rate(schedule: str, tmp_path: Path) -> None:
    search, seen, wanted = finder(), Rates(), Rates()
    found = model(schedule=SCHEDULES[schedule])
    trainer(tmp_path, search, seen).fit(found, rows())
    rate = suggested(search)
    assert found.lr == rate != 1e-3
    given = model(rate, SCHEDULES[schedule])
    trainer(tmp_path, wanted).fit(given, rows())
    assert seen.rates == wanted.rates
    assert torch.equal(weights(found), weights(given))
    assert not list(tmp_path.glob(".lr_find*"))


def test_groups_keep_their_proportions(tmp_path: Path) -> None:
    search, seen, wanted = finder(), Rates(), Rates()
    muon = partial(Muon, adamw_lr=3e-4)
    found = model(1e-2, optimizer=muon)
    trainer(tmp_path, search, seen).fit(found, rows())
    rate = suggested(search)
    factor = rate / 1e-2
    given = model(rate, optimizer=partial(Muon, adamw_lr=3e-4 * factor))
    trainer(tmp_path, wanted).fit(given, rows())
    assert torch.allclose(torch.tensor(seen.rates), torch.tensor(wanted.rates), rtol=1e-12)


@pytest.mark.parametrize("name", ["", "learning_rate"])
def test_tuner_then_fit(name: str, tmp_path: Path) -> None:
    found = model(schedule=SCHEDULES["ours"])
    run = trainer(tmp_path, SpeedMonitor(), FiniteGuard())
    search = Tuner(run).lr_find(
        found, rows(), num_training=15, min_lr=1e-5, max_lr=0.1, attr_name=name
    )
    assert search is not None
    rate = search.suggestion()
    run.fit(found, rows())
    given = model(rate, SCHEDULES["ours"])
    trainer(tmp_path).fit(given, rows())
    assert torch.equal(weights(found), weights(given))


@pytest.mark.parametrize("how", ["attribute", "hparams"])
def test_a_rate_set_by_hand(how: str, tmp_path: Path) -> None:
    module, given = model(), model(2e-3)
    assert module.lr == 1e-3
    if how == "attribute":
        module.lr = 2e-3
    else:
        module.hparams.lr = 2e-3
    for each in (module, given):
        trainer(tmp_path).fit(each, rows())
    assert torch.equal(weights(module), weights(given))


def test_what_a_subclass_notes_while_training_changes_nothing(tmp_path: Path) -> None:
    class Notes(CausalLM):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.lr = self.optimizers().param_groups[0]["lr"] / 2  # type: ignore[union-attr]
            return super().training_step(batch, batch_idx)

    torch.manual_seed(0)
    notes = Notes(CONFIG, optimizer=partial(AdamW, lr=1e-3))  # type: ignore[arg-type]
    plain = model()
    for each in (notes, plain):
        trainer(tmp_path).fit(each, rows())
    assert notes.lr == 5e-4
    assert torch.equal(weights(notes), weights(plain))


@pytest.mark.parametrize("settings_first", [True, False])
def test_settings_of_a_resumed_run_do_not_undo_it(settings_first: bool, tmp_path: Path) -> None:
    search, settings, seen = finder(), OptimizerSettings(), Rates()
    callbacks = [settings, search] if settings_first else [search, settings]
    trainer(tmp_path, *callbacks, seen).fit(model(), rows())
    assert seen.rates == [[suggested(search)] * 4] * STEPS


def test_search_has_a_length_of_its_own(tmp_path: Path) -> None:
    """``max_tokens`` ends the run after 4 steps, not the search."""
    search, seen = finder(), Rates()
    module = model(schedule=SCHEDULES["ours"], max_tokens=4 * 16)
    run = trainer(tmp_path, search, seen, max_steps=-1, max_epochs=-1)
    run.fit(module, rows())
    assert run.global_step == len(seen.rates) == 4
    assert len(search.optimal_lr.results["lr"]) == 15  # type: ignore[union-attr]
    assert module.trainer.lr_scheduler_configs[0].scheduler.total_steps == 4


@pytest.mark.parametrize("settings_first", [True, False])
def test_resumed_run_keeps_the_rate_that_was_found(settings_first: bool, tmp_path: Path) -> None:
    search, seen, plain = finder(), Rates(), Rates()
    callbacks = [OptimizerSettings(), search] if settings_first else [search, OptimizerSettings()]
    run = trainer(tmp_path, *callbacks)
    run.fit(model(), rows())
    path = tmp_path / "a.ckpt"
    run.save_checkpoint(path)
    # The same recipe goes on at the rate found; one without the finder says its own.
    again = trainer(tmp_path, finder(), OptimizerSettings(), seen, max_steps=STEPS + 2)
    again.fit(model(), rows(), ckpt_path=path)
    own = trainer(tmp_path, OptimizerSettings(), plain, max_steps=STEPS + 2)
    own.fit(model(), rows(), ckpt_path=path)
    assert again.global_step == own.global_step == STEPS + 2
    assert seen.rates == [[suggested(search)] * 4] * 2
    assert plain.rates == [[1e-3] * 4] * 2


def test_no_batch_size_is_looked_for_in_a_resumed_run(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.fit(model(), text_data(tmp_path))
    run.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"BatchSizeFinder .* micro_batch_size"):
        trainer(tmp_path, BatchSizeFinder()).fit(
            model(), text_data(tmp_path), ckpt_path=tmp_path / "a.ckpt"
        )


# ---------------------------------------------------------------------- batch size


def text_data(folder: Path, **options: Any) -> TextDataModule:
    path = folder / "text.txt"
    path.write_text("".join(f"Line {i} says {i * i % 97}.\n" for i in range(30)))
    defaults = {"seq_len": 8, "micro_batch_size": 2, "val_fraction": 0.2}
    return TextDataModule(
        train_files=str(path),
        tokenizer=TokenizerSpec("byte"),
        cache_dir=folder / "cache",
        **{**defaults, **options},  # type: ignore[arg-type]
    )


def token_data(folder: Path) -> TokenDataModule:
    with TokenStoreWriter(folder / "store", vocab_size=260) as writer:
        for i in range(60):
            writer.add([i % 260] * 9)
    return TokenDataModule(
        train_store=folder / "store", vocab_size=260, eos_id=0, seq_len=8, micro_batch_size=2
    )


@pytest.mark.parametrize("name", ["batch_size", "micro_batch_size"])
@pytest.mark.parametrize("mode", ["power", "binsearch"])
def test_run_takes_the_batch_size_found(mode: str, name: str, tmp_path: Path) -> None:
    search = BatchSizeFinder(mode, max_trials=3, batch_arg_name=name)
    data, module = text_data(tmp_path), model(schedule=SCHEDULES["ours"])
    run = trainer(tmp_path, search)
    run.fit(module, data)
    size = search.optimal_batch_size
    assert size is not None
    assert size > 2
    assert data.micro_batch_size == data.hparams.micro_batch_size == size
    assert data.val_micro_batch_size == size
    assert run.lr_scheduler_configs[0].scheduler.total_steps == STEPS
    given = model(schedule=SCHEDULES["ours"])
    trainer(tmp_path).fit(given, text_data(tmp_path, micro_batch_size=size))
    assert torch.equal(weights(module), weights(given))


@pytest.mark.parametrize("make", [partial(text_data, val_fraction=0.0), token_data])
def test_tuner_scales_without_validation_data(make: Any, tmp_path: Path) -> None:
    data, run = make(tmp_path), trainer(tmp_path)
    size = Tuner(run).scale_batch_size(model(), datamodule=data, max_trials=2)
    assert size == data.batch_size == 4
    run.fit(model(), data)
    assert run.train_dataloader.micro_batch_size == 4


def test_batch_size_of_an_evaluation(tmp_path: Path) -> None:
    data = text_data(tmp_path, val_micro_batch_size=1)
    size = Tuner(trainer(tmp_path)).scale_batch_size(
        model(), datamodule=data, method="validate", max_trials=2
    )
    assert size == data.val_micro_batch_size == 4
    assert data.micro_batch_size == 2


def test_batch_size_must_be_a_number_of_rows(tmp_path: Path) -> None:
    data = text_data(tmp_path)
    for wrong in (0, 2.5):
        with pytest.raises(ValueError, match=f"micro_batch_size={wrong} must be a whole number"):
            data.batch_size = wrong  # type: ignore[assignment]
