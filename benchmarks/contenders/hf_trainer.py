"""The Hugging Face model in the Hugging Face Trainer, with its defaults."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from benchmarks.pacing import Pacer
from benchmarks.training import CLIP_NORM, TokenRows, TrainOptions, build_optimizer
from benchmarks.weights import hugging_face_model


def run(options: dict[str, Any], pacer: Pacer) -> None:
    """Train. Extra: ``compile`` (``torch_compile=True``)."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    settings = TrainOptions(**options)
    settings.refuse_unknown("compile")
    losses: list[Tensor] = []

    class PacedTrainer(Trainer):
        """Keeps each loss, which the Trainer hands to nobody."""

        def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
            loss = super().training_step(model, *args, **kwargs)
            losses[:] = [loss]
            return loss

    class Pacing(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            pacer.step_done(losses[0])

    model = hugging_face_model(settings).to(settings.weight_dtype)
    pacer.units_per_step = settings.tokens_per_step
    arguments = TrainingArguments(
        output_dir="hf_trainer",
        per_device_train_batch_size=settings.rows,
        max_steps=pacer.total_steps,
        max_grad_norm=CLIP_NORM,
        lr_scheduler_type="constant",
        bf16=settings.precision == "bf16-mixed",
        torch_compile="compile" in settings.extras,
        use_cpu=settings.device == "cpu",
        train_sampling_strategy="sequential",
        save_strategy="no",
        report_to="none",
    )
    PacedTrainer(
        model=model,
        args=arguments,
        train_dataset=TokenRows(settings, pacer.total_steps, ("input_ids", "labels")),
        # None: the schedule that the arguments ask for.
        optimizers=(build_optimizer(model, settings), None),
        callbacks=[Pacing()],
    ).train()
