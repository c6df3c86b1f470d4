"""`CausalLM`: the LightningModule around the causal Transformer.

It is the system, not the network: it computes the loss of a batch, normalises gradients by the
number of target tokens, logs without waiting for the device, and writes checkpoints that need
nothing else to generate or export. To change one thing, subclass and override one method:
`build_model`, `compute_loss` or `configure_optimizers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lightning_llm.batches import documents_of, inputs_of
from lightning_llm.errors import InvalidTypeError, InvalidValueError
from lightning_llm.language import LanguageModule, OutputHead
from lightning_llm.losses import BackendName
from lightning_llm.models import Transformer, TransformerConfig
from lightning_llm.models.config import check_field_names
from lightning_llm.models.drawn_later import building, leave_to_first_rank, left_to_first_rank


class CausalLM(LanguageModule):
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
        loss_backend: Implementation of the loss in training: ``auto``, ``chunked``, ``torch``,
            ``liger`` or ``cce``; see `lightning_llm.losses.linear_cross_entropy`.

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
        loss_backend: BackendName = "auto",
    ) -> None:
        super().__init__(
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            max_tokens=max_tokens,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            loss_chunk_size=loss_chunk_size,
            loss_backend=loss_backend,
        )
        self.config = resolve_config(config, vocab_size)
        # Plain data only: a checkpoint then loads with weights_only=True.
        self.save_own_hyperparameters(
            {"config": asdict(self.config), **self.loss_hyperparameters()}
        )
        with building(self, of=CausalLM):
            self.model = self.build_model()

    # ------------------------------------------------------------------ what subclasses override

    def build_model(self) -> Transformer:
        """Return the network: ``backbone(ids) -> hidden``, ``head_weight``, ``config``."""
        return Transformer(self.config)

    def hidden_states(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return what the output head is applied to, ``(B, T, D)``."""
        return self.model.backbone(
            inputs_of(batch),
            position_ids=batch.get("position_ids"),
            document_ids=documents_of(batch),
        )

    def output_head(self) -> OutputHead:
        """Return the output projection."""
        return OutputHead(self.model.head_weight, logit_softcap=self.config.logit_softcap)

    def aux_loss(self) -> Tensor | None:
        """Return the routers' balancing loss of the last training forward."""
        return self.model.aux_loss()

    def size_limits(self) -> tuple[int, int]:
        """Return ``config.vocab_size`` and ``config.max_seq_len``."""
        return self.config.vocab_size, self.config.max_seq_len

    # ------------------------------------------------------------------ use

    def generate(self, prompts: list[str] | Tensor, **options: Any) -> Any:
        """Continue prompts: see `lightning_llm.generation.generate` for the options.

        Args:
            prompts: Strings (the continuations are returned, without the prompts), or token ids
                ``(B, T) int64`` (returned with the new ids appended).
            **options: ``max_new_tokens``, ``temperature`` (0 is greedy), ``top_k``, ``top_p``,
                ``num_beams``, ``seed``, ``stop``, ``eos_token_id`` (by default `text_ends`), ...
        """
        from lightning_llm.generation import generate

        if options.get("eos_token_id") is None:
            options["eos_token_id"] = self.text_ends()
        return generate(self.model, prompts, tokenizer=self.tokenizer, **options)

    def flops_per_token(self, seq_len: int, **options: Any) -> int:
        """Floating-point operations per trained token; see `Transformer.flops_per_token`."""
        return self.model.flops_per_token(seq_len, **options)

    # ------------------------------------------------------------------ Hugging Face layout

    @classmethod
    def from_pretrained(
        cls,
        path_or_name: str | Path | None = None,
        *,
        name_or_path: str | Path | None = None,
        dtype: torch.dtype | None = torch.float32,
        **options: Any,
    ) -> CausalLM:
        """Load weights, configuration and tokenizer from a Hugging Face directory or name.

        Args:
            path_or_name: A directory with ``config.json`` and safetensors, or a hub name.
            name_or_path: The same, as `HFCausalLM` spells it; it wins where both are given, as on
                the command line beside a recipe.
            dtype: Of the weights: float32, which training needs also where bfloat16 was stored;
                None keeps the stored one.
            **options: Passed to the constructor; of ``vocab_size``, which the command line links
                to the data, no notice is taken: the model keeps its rows.

        In a recipe it is a ``class_path``: ``lightning_llm.CausalLM.from_pretrained``.

        Raises:
            TypeError: Neither spelling of the folder or name is given.
        """
        from lightning_llm.interop.hf.generation_settings import stored_generation_config
        from lightning_llm.interop.hf.load import find_pretrained, load_pretrained

        options.pop("vocab_size", None)
        chosen = path_or_name if name_or_path is None else name_or_path
        if chosen is None:
            raise InvalidTypeError(
                f"{cls.__name__}.from_pretrained needs path_or_name (or name_or_path): a folder in "
                "the Hugging Face layout, or a name on the hub"
            )
        # Under a strategy that hands out the first rank's weights, the others need none.
        left = dtype is not None and left_to_first_rank(cls, of=CausalLM)
        folder = find_pretrained(chosen)
        model, tokenizer = load_pretrained(folder, dtype=dtype, weights=not left)
        # The constructor's own network would only be thrown away: build it without memory.
        with torch.device("meta"):
            module = cls(model.config, **options)
        module.model = model
        module.tokenizer = tokenizer
        module.generation_config = stored_generation_config(folder)
        if left:
            leave_to_first_rank(module)
        return module

    def save_pretrained(self, directory: str | Path) -> None:
        """Write weights, config and tokenizer so that `transformers` loads them.

        All ranks call it; rank zero writes. The export is loaded again, and its logits and the ids
        of its tokenizer are compared.

        Raises:
            ValueError: The configuration has no Hugging Face counterpart; the fields are named.
                Or weights are not finite, or ``AutoTokenizer`` would make another tokenizer.
        """
        from lightning_llm.interop.hf import save_pretrained
        from lightning_llm.strategies.sharding import gathered_state, is_sharded

        model = self.model
        sharded = is_sharded(model)
        weights = gathered_state(model) if sharded else {}
        if self._trainer is None or self._trainer.is_global_zero:
            if sharded:
                with torch.device("meta"):
                    model = self.build_model()
                model.load_state_dict(weights, assign=True)
            save_pretrained(
                model,
                directory,
                tokenizer=self.tokenizer,
                generation_config=self.generation_config,
            )
        if self._trainer is not None:
            self._trainer.strategy.barrier("save_pretrained")

    def check_export(self, directory: str | Path) -> None:
        """Raise now what `save_pretrained` would raise after training; HFExport asks first."""
        from lightning_llm.interop.hf import check_export

        check_export(self.config, directory, self.tokenizer)

    # ------------------------------------------------------------------ checkpoints

    def checkpoint_entry(self) -> dict[str, Any]:
        """Return the configuration as plain data."""
        return {"config": asdict(self.config)}

    def check_checkpoint_entry(self, saved: dict[str, Any]) -> None:
        """Refuse a checkpoint of another architecture.

        Raises:
            ValueError: Names every differing field.
        """
        ours = asdict(self.config)
        differing = [
            f"{name}: checkpoint {value!r}, model {ours[name]!r}"
            for name, value in saved.get("config", {}).items()
            if name in ours and ours[name] != value and name not in _FREE_TO_CHANGE
        ]
        if "config" not in saved:
            differing = ["it holds no TransformerConfig"]
        if differing:
            raise InvalidValueError(
                f"the checkpoint is of another model: {'; '.join(differing)}. Give the model the "
                "checkpoint's config, or start without the checkpoint"
            )


# These do not change what the weights mean.
_FREE_TO_CHANGE = {"dropout", "initializer", "init_std", "router_aux_loss_weight"}


def resolve_config(
    config: TransformerConfig | Mapping[str, Any], vocab_size: int | None
) -> TransformerConfig:
    """Return a `TransformerConfig` from one or a mapping, with the data's vocabulary size."""
    if isinstance(config, Mapping):
        check_field_names(config)
        config = TransformerConfig(**config)
    if not isinstance(config, TransformerConfig):
        raise InvalidTypeError(
            f"config must be a TransformerConfig or a mapping of its fields, got {type(config)}"
        )
    if vocab_size is not None and vocab_size != config.vocab_size:
        config = replace(config, vocab_size=vocab_size)
    return config


__all__ = ["CausalLM"]
