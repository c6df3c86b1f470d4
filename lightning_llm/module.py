"""`CausalLM`: the LightningModule around the causal Transformer.

It is the system, not the network: it computes the loss of a batch, normalises gradients by the
number of target tokens, logs without waiting for the device, and writes checkpoints that need
nothing else to generate or export. To change one thing, subclass and override one method:
`build_model`, `compute_loss` or `configure_optimizers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lightning_llm.losses import linear_cross_entropy, linear_cross_entropy_with_nll
from lightning_llm.models import Transformer, TransformerConfig
from lightning_llm.optim import AdamW, parameter_groups
from lightning_llm.steps import TokenLossModule, documents_of, targets_of

CHECKPOINT_KEY = "lightning_llm"


class CausalLM(TokenLossModule):
    """A causal language model trained by next-token prediction.

    The gradient of one optimizer step is the sum of the token losses divided by the number of
    target tokens, over all micro-batches and ranks of that step: accumulating k micro-batches,
    one batch k times as large, and k ranks give the same gradient, masks and short last windows
    included.

    Args:
        config: A `TransformerConfig`, or a mapping of its fields.
        optimizer: Called with parameter groups (see `lightning_llm.optim.parameter_groups`);
            `lightning_llm.optim.AdamW` when not given.
        lr_scheduler: Called with the optimizer; stepped once per optimizer step. Schedules that
            need the length of the run are told it by the trainer.
        vocab_size: Overrides ``config.vocab_size``; the command line links it to the data.
        max_tokens: Stop after this many input tokens, over all ranks. The number of steps and
            the schedule follow from it.
        label_smoothing: Mass given to the uniform distribution, in training only.
        z_loss: Weight of the squared log-partition function, in training only
            (PaLM, https://arxiv.org/abs/2204.02311). The reported loss is without it.
        loss_chunk_size: Rows of logits alive at a time; chosen automatically when not given.

    Batches: ``input_ids (B, T) int64`` with ``shift_labels (B, T)`` (the target of each position)
    or ``labels (B, T)`` (Hugging Face: aligned with the inputs), ``-100`` ignored; optionally
    ``document_ids (B, T)``, ``position_ids (B, T)`` or ``attention_mask (B, T)``.

    Logged: ``train_loss``, ``grad_norm`` every ``log_every_n_steps`` optimizer steps; ``val_loss``,
    ``test_loss`` as exact token means over all batches and ranks.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        vocab_size: int | None = None,
        max_tokens: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        loss_chunk_size: int | None = None,
    ) -> None:
        super().__init__(max_tokens=max_tokens)
        self.config = resolve_config(config, vocab_size)
        # Plain data only: a checkpoint then loads with weights_only=True.
        self.save_hyperparameters(
            {
                "config": asdict(self.config),
                "max_tokens": max_tokens,
                "label_smoothing": label_smoothing,
                "z_loss": z_loss,
                "loss_chunk_size": loss_chunk_size,
            }
        )
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.label_smoothing = label_smoothing
        self.z_loss = z_loss
        self.loss_chunk_size = loss_chunk_size
        self.tokenizer: Any = None
        self._restored_tokenizer: dict[str, str] | None = None
        self.model = self.build_model()

    # ------------------------------------------------------------------ what subclasses override

    def build_model(self) -> Transformer:
        """Return the network: ``backbone(ids) -> hidden``, ``head_weight``, ``config``."""
        return Transformer(self.config)

    def compute_loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return ``(nll_sum, num_tokens)``, two scalars on the device.

        ``nll_sum`` has the value of the plain negative log-likelihood in nats; in training its
        gradient also holds label smoothing, z-loss and the routers' balancing loss.
        """
        labels = targets_of(batch).flatten()
        hidden = self.model.backbone(
            batch["input_ids"],
            position_ids=batch.get("position_ids"),
            document_ids=documents_of(batch),
        ).flatten(0, 1)
        num_tokens = (labels != -100).sum()
        options: dict[str, Any] = {
            "logit_softcap": self.config.logit_softcap,
            "chunk_size": self.loss_chunk_size,
        }
        weight = self.model.head_weight
        aux_loss = self.model.aux_loss() if self.training else None
        if not self.training or not (self.label_smoothing or self.z_loss or aux_loss is not None):
            return linear_cross_entropy(hidden, weight, labels, **options), num_tokens
        loss_sum, nll_sum = linear_cross_entropy_with_nll(
            hidden,
            weight,
            labels,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            **options,
        )
        if aux_loss is not None:
            loss_sum = loss_sum + aux_loss * num_tokens
        # Value of the likelihood, gradient of the regularised loss.
        return loss_sum + (nll_sum - loss_sum).detach(), num_tokens

    def configure_optimizers(self) -> Any:
        """Build the optimizer on decay groups, and the schedule on the optimizer."""
        optimizer = (self.optimizer or AdamW)(parameter_groups(self.model))
        if self.lr_scheduler is None:
            return optimizer
        scheduler = self.lr_scheduler(optimizer)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def predict_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return ``{"nll"}``: the NLL of each target in nats, ``(B, T)``, 0 where ignored."""
        labels = targets_of(batch)
        hidden = self.model.backbone(
            batch["input_ids"],
            position_ids=batch.get("position_ids"),
            document_ids=documents_of(batch),
        )
        nll = linear_cross_entropy(
            hidden.flatten(0, 1),
            self.model.head_weight,
            labels.flatten(),
            logit_softcap=self.config.logit_softcap,
            chunk_size=self.loss_chunk_size,
            reduction="none",
        )
        return {"nll": nll.view_as(labels)}

    # ------------------------------------------------------------------ data and tokenizer

    def setup(self, stage: str) -> None:
        """Take the tokenizer from the data and check that data and model fit together."""
        data = getattr(self.trainer, "datamodule", None)
        vocab_size = getattr(data, "vocab_size", None)
        if vocab_size is not None and vocab_size > self.config.vocab_size:
            raise ValueError(
                f"the data has vocab_size={vocab_size}, the model config.vocab_size="
                f"{self.config.vocab_size}; every token id needs a row of the embedding: set the "
                f"model's vocab_size to at least {vocab_size}, or use the tokenizer the model was "
                f"trained with"
            )
        seq_len = getattr(data, "seq_len", None)
        if seq_len is not None and seq_len > self.config.max_seq_len:
            raise ValueError(
                f"data seq_len={seq_len} is longer than the model's max_seq_len="
                f"{self.config.max_seq_len}; lower seq_len or raise config.max_seq_len"
            )
        tokenizer = getattr(data, "tokenizer", None)
        if tokenizer is not None and hasattr(tokenizer, "save_pretrained"):
            self.tokenizer = tokenizer

    def generate(self, prompts: list[str] | Tensor, **options: Any) -> Any:
        """Continue prompts: see `lightning_llm.generation.generate` for the options.

        Args:
            prompts: Strings (the continuations are returned, without the prompts), or token ids
                ``(B, T) int64`` (returned with the new ids appended).
            **options: ``max_new_tokens``, ``temperature`` (0 is greedy), ``top_k``, ``top_p``,
                ``num_beams``, ``seed``, ``stop``, ...
        """
        from lightning_llm.generation import generate

        return generate(self.model, prompts, tokenizer=self.tokenizer, **options)

    def flops_per_token(self, seq_len: int, **options: Any) -> int:
        """Floating-point operations per trained token; see `Transformer.flops_per_token`."""
        return self.model.flops_per_token(seq_len, **options)

    # ------------------------------------------------------------------ Hugging Face layout

    @classmethod
    def from_pretrained(cls, path_or_name: str | Path, **options: Any) -> CausalLM:
        """Load weights, configuration and tokenizer from a Hugging Face directory or name.

        Args:
            path_or_name: A directory with ``config.json`` and safetensors, or a hub name.
            **options: Passed to the constructor.
        """
        from lightning_llm.interop.hf import load_pretrained

        model, tokenizer = load_pretrained(path_or_name)
        # The constructor's own network would only be thrown away: build it without memory.
        with torch.device("meta"):
            module = cls(model.config, **options)
        module.model = model
        module.tokenizer = tokenizer
        return module

    def save_pretrained(self, directory: str | Path) -> None:
        """Write weights, config and tokenizer so that `transformers` loads them.

        All ranks call it; rank zero writes. The export is loaded again and its logits compared.

        Raises:
            ValueError: The configuration has no Hugging Face counterpart; the fields are named.
        """
        from lightning_llm.interop.hf import save_pretrained

        if self._trainer is None or self._trainer.is_global_zero:
            save_pretrained(self.model, directory, tokenizer=self.tokenizer)
        if self._trainer is not None:
            self._trainer.strategy.barrier("save_pretrained")

    # ------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add config and tokenizer, so that the file alone can generate and export."""
        super().on_save_checkpoint(checkpoint)
        if self._restored_tokenizer is None and self.tokenizer is not None:
            from lightning_llm.interop.hf import pack_tokenizer

            self._restored_tokenizer = pack_tokenizer(self.tokenizer)
        checkpoint[CHECKPOINT_KEY] = {
            "config": asdict(self.config),
            "tokenizer": self._restored_tokenizer,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the tokenizer; refuse a checkpoint that does not belong to this model or data.

        Raises:
            ValueError: The checkpoint's architecture or vocabulary differs; every differing field
                is named.
        """
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint.get(CHECKPOINT_KEY)
        if saved is None:
            return
        ours = asdict(self.config)
        differing = [
            f"{name}: checkpoint {value!r}, model {ours[name]!r}"
            for name, value in saved["config"].items()
            if name in ours and ours[name] != value and name not in _FREE_TO_CHANGE
        ]
        if differing:
            raise ValueError("the checkpoint is of another model: " + "; ".join(differing))
        files = saved["tokenizer"]
        if files is None:
            return
        from lightning_llm.interop.hf import pack_tokenizer, unpack_tokenizer

        if self.tokenizer is None:
            self.tokenizer = unpack_tokenizer(files)
        elif pack_tokenizer(self.tokenizer).get("tokenizer.json") != files.get("tokenizer.json"):
            raise ValueError(
                "the checkpoint was trained with another vocabulary than the one this data uses: "
                "the same ids stand for different text. Give the data the checkpoint's tokenizer "
                "(export it with `lightning-llm export`, then `tokenizer: {pretrained: DIR}`)"
            )
        self._restored_tokenizer = files


# These do not change what the weights mean.
_FREE_TO_CHANGE = {"dropout", "initializer", "init_std", "router_aux_loss_weight"}


def resolve_config(
    config: TransformerConfig | Mapping[str, Any], vocab_size: int | None
) -> TransformerConfig:
    """Return a `TransformerConfig` from one or a mapping, with the data's vocabulary size."""
    if isinstance(config, Mapping):
        unknown = sorted(set(config) - {field.name for field in fields(TransformerConfig)})
        if unknown:
            raise ValueError(f"config has the unknown fields {unknown}; see TransformerConfig")
        config = TransformerConfig(**config)
    if not isinstance(config, TransformerConfig):
        raise TypeError(
            f"config must be a TransformerConfig or a mapping of its fields, got {type(config)}"
        )
    if vocab_size is not None and vocab_size != config.vocab_size:
        config = replace(config, vocab_size=vocab_size)
    return config


__all__ = ["CausalLM"]
