"""Training on examples: exact resume, the global order, and scores on several ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from fsdp2_runs import spawn
from lightning.pytorch.callbacks import ModelCheckpoint
from task_batches import SMALL, write_lines

from lightning_llm import CausalLM
from lightning_llm.callbacks import AnswerMonitor, BLEUMonitor, PerplexityMonitor, SampleText
from lightning_llm.data import TranslationDataModule
from lightning_llm.models import TransformerConfig
from lightning_llm.strategies import FSDP2Strategy

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]
WORDS = "zero one two three four five six seven eight nine".split()


def module(folder: Path, **options: Any) -> TranslationDataModule:
    """Rows, written and opened."""
    pairs = [f"{a} {b}\t{b} 然后再来 {a}" for a in WORDS for b in WORDS]
    write_lines(folder / "train.tsv", [pair for i, pair in enumerate(pairs) if i % 9])
    write_lines(folder / "val.tsv", pairs[::9])
    return opened(folder, **options)


def opened(folder: Path, **options: Any) -> TranslationDataModule:
    return TranslationDataModule(
        train_files=folder / "train.tsv",
        val_files=folder / "val.tsv",
        tokenizer=SMALL,
        seq_len=64,
        cache_dir=folder / "cache",
        **{"micro_batch_size": 2, **options},
    )


def model(data: TranslationDataModule, n_layers: int = 1) -> CausalLM:
    torch.manual_seed(0)
    config = TransformerConfig(n_layers=n_layers, dim=32, n_heads=2, max_seq_len=64)
    return CausalLM(config, vocab_size=data.vocab_size)


def trainer(folder: Path, **options: Any) -> L.Trainer:
    return L.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )


def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    data = module(tmp_path)
    whole = model(data)
    trainer(tmp_path, max_steps=6, enable_checkpointing=False).fit(whole, data)
    save = ModelCheckpoint(dirpath=tmp_path / "saved", save_last=True, every_n_train_steps=4)
    trainer(tmp_path, max_steps=4, callbacks=[save]).fit(model(data), module(tmp_path))
    resumed = model(data)
    last = tmp_path / "saved" / "last.ckpt"
    trainer(tmp_path, max_steps=6, enable_checkpointing=False).fit(
        resumed, module(tmp_path), ckpt_path=str(last)
    )
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name
    other = module(tmp_path, too_long="truncate")
    with pytest.raises(ValueError, match=r"not what the checkpoint was trained on.*too_long"):
        trainer(tmp_path, max_steps=6, enable_checkpointing=False).fit(
            model(data), other, ckpt_path=str(last)
        )


def test_monitors_alone_score_what_the_model_generates(tmp_path: Path) -> None:
    data = module(tmp_path)
    monitors = [BLEUMonitor("zh", max_new_tokens=8), AnswerMonitor("zh"), PerplexityMonitor()]
    options: dict[str, Any] = {"callbacks": monitors, "enable_checkpointing": False}
    lm = model(data)
    (before,) = trainer(tmp_path, **options).validate(lm, data, verbose=False)
    run = trainer(tmp_path, max_epochs=25, check_val_every_n_epoch=25, **options)
    lm.optimizer = lambda groups: torch.optim.AdamW(groups, lr=5e-3)
    run.fit(lm, data)
    after = {name: float(value) for name, value in run.callback_metrics.items()}
    for name in ("val_bleu", "val_chrf", "val_f1"):
        assert after[name] > before[name] + 20, name
    assert after["val_perplexity"] < before["val_perplexity"] / 5


def guess(module: Any, prompts: list[str]) -> list[str]:
    """Right in every second word."""
    return [f"{prompt.split()[1]} 然后再来 zero" for prompt in prompts]


def scores(folder: Path, **options: Any) -> dict[str, float]:
    """What monitors make of the rows in a folder, on the ranks of this run."""
    data = opened(folder)
    run = trainer(
        folder,
        callbacks=[BLEUMonitor("zh", generate_fn=guess), PerplexityMonitor()],
        **options,
    )
    (found,) = run.validate(model(data), data, verbose=False)
    return {name: float(value) for name, value in found.items()}


def on_two_ranks(folder: Path) -> dict[str, float]:
    return scores(folder, devices=2, strategy="ddp")


def test_scores_on_two_ranks_are_those_of_one(tmp_path: Path) -> None:
    module(tmp_path)
    alone = scores(tmp_path)
    assert 20 < alone["val_bleu"] < 90
    for found in spawn(on_two_ranks, 2, tmp_path):
        for name in ("val_bleu", "val_chrf", "val_perplexity", "val_loss"):
            assert found[name] == pytest.approx(alone[name], rel=1e-5), name


def learned(folder: Path, micro_batch_size: int, **options: Any) -> dict[str, Any]:
    """Train, and generate on the way, over rows that do not divide by ranks or batches."""
    data = opened(folder, max_val_samples=11, micro_batch_size=micro_batch_size)
    lm = model(data, n_layers=2)
    lm.optimizer = lambda groups: torch.optim.AdamW(groups, lr=5e-3)
    samples = SampleText(["zero one", "two"], max_new_tokens=6)
    run = trainer(
        folder,
        callbacks=[BLEUMonitor("zh", max_new_tokens=8), PerplexityMonitor(), samples],
        max_epochs=16,  # later on rounding alone takes runs apart
        check_val_every_n_epoch=16,
        enable_checkpointing=False,
        **options,
    )
    run.fit(lm, data)
    return {name: float(value) for name, value in run.callback_metrics.items()}


def on_two_shards(folder: Path) -> dict[str, Any]:
    return learned(folder, 2, devices=2, strategy="fsdp2")


def on_two_halves(folder: Path) -> dict[str, Any]:
    return learned(folder, 4, devices=2, strategy=FSDP2Strategy(tensor_parallel_size=2))


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("ranks", [on_two_shards, on_two_halves])
def test_sharded_models_generate_in_step_over_uneven_rows(
    tmp_path: Path, ranks: Callable[[Path], dict[str, Any]]
) -> None:
    module(tmp_path)
    alone = learned(tmp_path, 4)
    assert alone["val_bleu"] > 10
    for found in spawn(ranks, 2, tmp_path):
        assert found["val_bleu"] == pytest.approx(alone["val_bleu"], abs=0.5)
        for name in ("val_perplexity", "val_loss"):
            assert found[name] == pytest.approx(alone[name], rel=1e-4), name
