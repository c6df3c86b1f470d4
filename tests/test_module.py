"""`CausalLM`: the gradient of a step, what it logs, and what its checkpoints carry."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from fsdp2_runs import spawn
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_llm import CausalLM
from lightning_llm.models import Transformer, TransformerConfig
from lightning_llm.optim import AdamW, WarmupCosine

CONFIG = TransformerConfig(vocab_size=61, max_seq_len=16, n_layers=2, dim=32, n_heads=4)


def make_rows(count: int, seed: int = 0) -> list[dict[str, Tensor]]:
    """Rows whose numbers of targets differ, so that a mean of means is visibly wrong."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for index in range(count):
        ids = torch.randint(0, 61, (17,), generator=generator)
        labels = ids[1:].clone()
        labels[: (index * 5) % 15] = -100
        rows.append({"input_ids": ids[:-1], "shift_labels": labels})
    return rows


def trainer(**options: Any) -> L.Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "max_epochs": 1,
        "log_every_n_steps": 1,
    }
    return L.Trainer(**{**defaults, **options})


class Gradients(L.Callback):
    """Keeps the gradients of every step as the optimizer sees them."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        named = module.named_parameters()
        self.steps.append({name: p.grad.clone() for name, p in named if p.grad is not None})


def reference_gradient(model: Transformer, rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Gradient of total NLL / total targets over all rows, in float64 through plain logits."""
    model = model.double()
    model.zero_grad()
    ids = torch.stack([row["input_ids"] for row in rows])
    labels = torch.stack([row["shift_labels"] for row in rows])
    loss = torch.nn.functional.cross_entropy(
        model(ids).flatten(0, 1), labels.flatten(), ignore_index=-100
    )
    loss.backward()
    return {f"model.{name}": p.grad.float() for name, p in model.named_parameters()}


def sgd(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.0)


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "windows"),
    [(6, 1, [(0, 6)]), (2, 3, [(0, 6)]), (1, 4, [(0, 4), (4, 6)]), (2, 2, [(0, 4), (4, 6)])],
)
def test_gradient_of_a_step_is_per_target_token(
    batch_size: int, accumulate: int, windows: list[tuple[int, int]]
) -> None:
    rows = make_rows(6)
    module = CausalLM(CONFIG, optimizer=sgd)
    gradients = Gradients()
    trainer(accumulate_grad_batches=accumulate, callbacks=[gradients]).fit(
        module, DataLoader(rows, batch_size=batch_size)
    )
    assert len(gradients.steps) == len(windows)
    for seen, (start, stop) in zip(gradients.steps, windows, strict=True):
        expected = reference_gradient(module.model, rows[start:stop])
        assert seen.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(seen[name], value, rtol=2e-4, atol=2e-6)


def test_mean_of_batch_means_would_be_seen() -> None:
    """The tolerance above tells the token mean from the mean of means."""
    rows = make_rows(6)
    model = Transformer(CONFIG)
    whole = reference_gradient(model, rows)["model.embedding.weight"]
    halves = [
        reference_gradient(model, part)["model.embedding.weight"] for part in (rows[:1], rows[1:])
    ]
    assert (sum(halves) / 2 - whole).abs().max() > 1e-4


def test_batch_with_every_label_ignored_leaves_the_gradient_of_the_others() -> None:
    rows = make_rows(2)
    masked = {**rows[0], "shift_labels": torch.full((16,), -100)}
    gradients = Gradients()
    module = CausalLM(CONFIG, optimizer=sgd)
    trainer(accumulate_grad_batches=2, callbacks=[gradients]).fit(
        module, DataLoader([masked, rows[1]], batch_size=1)
    )
    expected = reference_gradient(module.model, rows[1:])
    for name, value in expected.items():
        torch.testing.assert_close(gradients.steps[0][name], value, rtol=2e-4, atol=2e-6)


def test_clipping_and_logged_norm_match_torch(tmp_path: Any) -> None:
    rows = make_rows(4)
    module = CausalLM(CONFIG, optimizer=sgd)
    seen: list[float] = []

    class After(L.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            grads = [p.grad for p in module.parameters()]
            seen.append(float(torch.stack([g.norm() for g in grads]).norm()))

        def on_before_zero_grad(self, trainer: Any, module: Any, optimizer: Any) -> None:
            """Its presence keeps the gradients until then."""

    run = trainer(gradient_clip_val=0.1, callbacks=[After()])
    run.fit(module, DataLoader(rows, batch_size=4))
    true = reference_gradient(module.model, rows)
    norm = float(torch.stack([g.norm() for g in true.values()]).norm())
    assert norm > 0.1
    assert seen[0] == pytest.approx(0.1, rel=1e-3)
    assert float(run.callback_metrics["grad_norm"]) == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize("fused", [False, True])
def test_norm_and_clipping_are_of_unscaled_gradients(fused: bool) -> None:
    """With a gradient scaler, as of float16, a fused optimizer is given gradients still scaled."""
    module = CausalLM(CONFIG, optimizer=lambda groups: torch.optim.SGD(groups, 1.0, fused=fused))
    before = [parameter.detach().clone() for parameter in module.parameters()]
    scaler = torch.amp.GradScaler("cpu")
    fit = trainer(
        max_steps=1,
        gradient_clip_val=0.5,
        plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)],
    )
    fit.fit(module, DataLoader(make_rows(4), batch_size=4))
    moved = [old - new.detach() for old, new in zip(before, module.parameters())]
    assert torch.nn.utils.get_total_norm(moved).item() == pytest.approx(0.5, rel=1e-3)
    assert 0.5 < float(fit.callback_metrics["grad_norm"]) < 5.0


def test_logged_losses_are_token_means() -> None:
    rows = make_rows(5)
    module = CausalLM(CONFIG, optimizer=sgd)
    run = trainer(log_every_n_steps=3, num_sanity_val_steps=0)
    run.fit(module, DataLoader(rows[:3], batch_size=1), DataLoader(rows, batch_size=2))
    plain = torch.nn.functional.cross_entropy

    def mean(part: list[dict[str, Tensor]]) -> float:
        ids = torch.stack([row["input_ids"] for row in part])
        labels = torch.stack([row["shift_labels"] for row in part])
        with torch.no_grad():
            return float(plain(module.model(ids).flatten(0, 1), labels.flatten()))

    assert float(run.callback_metrics["train_loss"]) == pytest.approx(mean(rows[:3]), rel=1e-5)
    assert float(run.callback_metrics["val_loss"]) == pytest.approx(mean(rows), rel=1e-6)


class Losses(L.Callback):
    """Keeps what each step returns."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *rest: Any) -> None:
        self.steps.append({name: float(value) for name, value in outputs.items()})


def test_loss_is_divided_in_float32_under_bf16_true() -> None:
    rows, losses = make_rows(2), Losses()  # 27 targets: bfloat16 has no 1 / 27
    run = trainer(precision="bf16-true", callbacks=[losses])
    run.fit(CausalLM(CONFIG, optimizer=sgd), DataLoader(rows, batch_size=2))
    [step] = losses.steps
    assert step["loss"] == pytest.approx(step["nll_sum"] / step["num_tokens"], rel=1e-5)


def test_reported_loss_is_without_regularisers_and_gradient_with_them() -> None:
    row = {key: value[None] for key, value in make_rows(1)[0].items()}
    torch.manual_seed(0)
    plain = CausalLM(CONFIG).train()
    torch.manual_seed(0)
    regularised = CausalLM(CONFIG, z_loss=0.1, label_smoothing=0.1).train()
    nll, count = plain.compute_loss(row)
    other, _ = regularised.compute_loss(row)
    torch.testing.assert_close(other, nll)
    other.backward()
    logits = plain.model(row["input_ids"]).flatten(0, 1).double()
    labels = row["shift_labels"].flatten()
    expected = (
        torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1, reduction="sum")
        + 0.1 * (logits.logsumexp(-1) ** 2).sum()
    )
    expected.backward()
    torch.testing.assert_close(
        regularised.model.head_weight.grad, plain.model.head_weight.grad, rtol=1e-4, atol=1e-5
    )
    assert count == 16


def test_max_tokens_sets_the_steps_and_the_schedule() -> None:
    module = CausalLM(CONFIG, max_tokens=300, lr_scheduler=WarmupCosine)
    run = trainer(max_epochs=-1, accumulate_grad_batches=2)
    run.fit(module, DataLoader(make_rows(8), batch_size=2))
    # 2 rows x 16 tokens x 2 micro-batches = 64 tokens a step; 300 tokens need 5 steps.
    assert run.global_step == 5
    assert run.lr_scheduler_configs[0].scheduler.total_steps == 5


def test_schedule_learns_the_run_from_epochs_and_accumulation() -> None:
    module = CausalLM(CONFIG, lr_scheduler=WarmupCosine)
    run = trainer(max_epochs=2, accumulate_grad_batches=2)
    run.fit(module, DataLoader(make_rows(5), batch_size=1))
    assert run.lr_scheduler_configs[0].scheduler.total_steps == 6 == run.global_step


def test_checkpoint_is_plain_data_and_enough_to_rebuild(tmp_path: Any) -> None:
    module = CausalLM(CONFIG, z_loss=0.5)
    run = trainer(max_steps=1, default_root_dir=tmp_path)
    run.fit(module, DataLoader(make_rows(2), batch_size=2))
    path = tmp_path / "a.ckpt"
    run.save_checkpoint(path)
    saved = torch.load(path, weights_only=True)
    assert saved["lightning_llm"]["config"] == asdict(CONFIG)
    again = CausalLM.load_from_checkpoint(path)
    assert again.config == CONFIG
    assert again.z_loss == 0.5
    for (name, a), b in zip(module.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_resume_refuses_another_architecture(tmp_path: Any) -> None:
    run = trainer(max_steps=1, default_root_dir=tmp_path)
    run.fit(CausalLM(CONFIG), DataLoader(make_rows(2), batch_size=2))
    run.save_checkpoint(tmp_path / "a.ckpt")
    other = CausalLM({**asdict(CONFIG), "n_layers": 3})
    with pytest.raises(ValueError, match="n_layers: checkpoint 2, model 3"):
        trainer(max_steps=2).fit(
            other, DataLoader(make_rows(2), batch_size=2), ckpt_path=tmp_path / "a.ckpt"
        )


def test_subclass_changes_only_the_loss() -> None:
    class Focal(CausalLM):
        def compute_loss(self, batch: Any) -> tuple[Tensor, Tensor]:
            nll_sum, num_tokens = super().compute_loss(batch)
            return nll_sum * 2, num_tokens

    gradients = Gradients()
    module = Focal(CONFIG, optimizer=sgd)
    trainer(callbacks=[gradients]).fit(module, DataLoader(make_rows(4), batch_size=4))
    expected = reference_gradient(module.model, make_rows(4))
    for name, value in expected.items():
        torch.testing.assert_close(gradients.steps[0][name], 2 * value, rtol=2e-4, atol=4e-6)


def test_subclass_with_a_training_step_of_its_own_logs_for_itself() -> None:
    class Own(CausalLM):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            nll_sum, num_tokens = self.compute_loss(batch)
            loss = nll_sum / num_tokens
            self.log("own_loss", loss)
            return loss

    fit = trainer()
    fit.fit(Own(CONFIG), DataLoader(make_rows(4), batch_size=2))
    assert "own_loss" in fit.callback_metrics
    assert "train_loss" not in fit.callback_metrics


def test_no_decay_on_norms_and_embeddings() -> None:
    module = CausalLM(CONFIG, optimizer=AdamW)
    optimizer = module.configure_optimizers()
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    for name, parameter in module.model.named_parameters():
        matrix = parameter.ndim == 2 and "embedding" not in name
        assert (decays[id(parameter)] > 0) == matrix, name


def test_config_mapping_and_errors() -> None:
    assert CausalLM({"vocab_size": 61, "n_layers": 1, "dim": 8, "n_heads": 2}).config.dim == 8
    assert CausalLM(CONFIG, vocab_size=70).model.head_weight.shape == (70, 32)
    with pytest.raises(ValueError, match=r"n_layres.*did you mean .n_layers"):
        CausalLM({"n_layres": 3})
    with pytest.raises(TypeError, match="config must be"):
        CausalLM(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_tokens=0"):
        CausalLM(CONFIG, max_tokens=0)


def test_predict_returns_the_likelihood_of_each_target() -> None:
    rows = make_rows(3)
    module = CausalLM(CONFIG)
    [output] = trainer().predict(module, DataLoader(rows, batch_size=3))
    ids = torch.stack([row["input_ids"] for row in rows])
    labels = torch.stack([row["shift_labels"] for row in rows])
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(
            module.model(ids).transpose(1, 2), labels, reduction="none"
        )
    torch.testing.assert_close(output["nll"], expected, rtol=1e-4, atol=1e-5)
    assert math.isclose(float(output["nll"][1, :5].sum()), 0.0)
    assert torch.equal(output["num_tokens"], (labels != -100).sum(1))
    first, second = trainer().predict(module, [DataLoader(rows, batch_size=3)] * 2)
    assert torch.equal(first[0]["nll"], second[0]["nll"])


def test_ids_outside_the_vocabulary_are_named() -> None:
    rows = make_rows(1)
    rows[0]["input_ids"][3] = 61
    with pytest.raises(ValueError, match="token id 61 at row 0, position 3"):
        trainer().fit(CausalLM(CONFIG), DataLoader(rows))


class Rows(IterableDataset):
    """Rows of which a loader does not know the number."""

    def __init__(self, rows: list[dict[str, Tensor]]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return iter(self.rows)


def gradients_of_two_ranks(accumulate: int, _: Path) -> dict[str, Tensor]:
    """The gradient of one step over six rows, three on each rank, and their loss afterwards."""
    torch.manual_seed(3)
    module = CausalLM(CONFIG, optimizer=sgd)
    seen = Gradients()
    trainer(
        strategy="ddp",
        devices=2,
        accumulate_grad_batches=accumulate,
        callbacks=[seen],
        use_distributed_sampler=True,
    ).fit(module, DataLoader(make_rows(6), batch_size=3 // accumulate))
    [step] = seen.steps
    # All rows on the first rank: the other one has nothing to validate, and waits for nobody.
    rows = make_rows(6) if module.global_rank == 0 else []
    alone = trainer(strategy="ddp", devices=2, use_distributed_sampler=False)
    [values] = alone.validate(module, DataLoader(Rows(rows), batch_size=2))
    return {"val_loss": torch.tensor(values["val_loss"]), **step}


@pytest.mark.distributed
@pytest.mark.parametrize("accumulate", [1, 3])
def test_two_processes_give_the_gradient_of_one(tmp_path: Path, accumulate: int) -> None:
    found = spawn(partial(gradients_of_two_ranks, accumulate), 2, tmp_path)
    torch.manual_seed(3)
    module = CausalLM(CONFIG)
    [values] = trainer().validate(module, DataLoader(make_rows(6), batch_size=6))
    expected = reference_gradient(module.model, make_rows(6))
    expected["val_loss"] = torch.tensor(values["val_loss"])
    for step in found:
        for name, value in expected.items():
            torch.testing.assert_close(step[name], value, rtol=2e-4, atol=2e-6)


def test_several_validation_loaders_are_logged_apart() -> None:
    rows = make_rows(4)
    module = CausalLM(CONFIG, optimizer=sgd)
    run = trainer(num_sanity_val_steps=0)
    loaders = [DataLoader(rows[:2], batch_size=1), DataLoader(rows[2:], batch_size=2)]
    run.fit(module, DataLoader(rows, batch_size=4), loaders)
    for index, part in enumerate((rows[:2], rows[2:])):
        ids = torch.stack([row["input_ids"] for row in part])
        labels = torch.stack([row["shift_labels"] for row in part])
        with torch.no_grad():
            logits = module.model(ids).flatten(0, 1)
        expected = torch.nn.functional.cross_entropy(logits, labels.flatten())
        logged = run.callback_metrics[f"val_loss/dataloader_idx_{index}"]
        assert float(logged) == pytest.approx(float(expected), rel=1e-5)


def test_a_loader_without_a_batch_changes_no_name() -> None:
    run = trainer()
    loaders = [DataLoader(make_rows(2), batch_size=2), DataLoader(Rows([]), batch_size=2)]
    run.validate(CausalLM(CONFIG), loaders)
    assert list(run.callback_metrics) == ["val_loss/dataloader_idx_0"]
