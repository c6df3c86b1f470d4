"""What causal language models share as LightningModules, whatever network they hold.

A subclass supplies the network's hidden states and its output head. What is here: the chunked
loss on them, optimizers on decay groups, checks of data against model, and the tokenizer that
travels in checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lightning_llm.batches import IGNORE_INDEX, describe, targets_of
from lightning_llm.errors import InvalidTypeError, InvalidValueError
from lightning_llm.generation.ends import of_another_vocabulary, same_ends, text_ends
from lightning_llm.losses import (
    BackendName,
    linear_cross_entropy,
    linear_cross_entropy_with_nll,
)
from lightning_llm.optim import AdamW, parameter_groups
from lightning_llm.runtime.hyperparameters import (
    PlainHyperparameters,
    arguments_to_rebuild,
    notes_of,
)
from lightning_llm.runtime.learning_rate import LearningRate, leave_out_finders, rate_of
from lightning_llm.runtime.lightning_api import on_the_class_only, undoes_search
from lightning_llm.steps import TokenLossModule

CHECKPOINT_KEY = "lightning_llm"


class OutputHead(NamedTuple):
    """How logits follow from hidden states: ``softcap(hidden @ weight.T + bias)``."""

    weight: Tensor  # (V, D)
    bias: Tensor | None = None  # (V,)
    logit_softcap: float | None = None


class LanguageModule(PlainHyperparameters, TokenLossModule):
    """A causal language model trained by next-token prediction.

    Subclasses set ``self.model`` and define ``hidden_states``, ``output_head``, ``size_limits``,
    ``checkpoint_entry`` and ``check_checkpoint_entry``.

    Args:
        optimizer: Called with parameter groups; `lightning_llm.optim.AdamW` when not given.
        lr_scheduler: Called with the optimizer; stepped once per optimizer step.
        max_tokens: Stop after this many input tokens, over all ranks.
        label_smoothing: Mass given to the uniform distribution, in training only.
        z_loss: Weight of the squared log-partition function, in training only.
        loss_chunk_size: Rows of logits alive at a time; chosen automatically when not given.
        loss_backend: Implementation of the loss in training: ``auto``, ``chunked``, ``torch``,
            ``liger`` or ``cce``; see `lightning_llm.losses.linear_cross_entropy`.

    Attributes:
        tokenizer: The Hugging Face tokenizer of the model, or None.
        generation_config: The contents of the ``generation_config.json`` that came with the
            weights; empty without one. Exports keep its fields.
    """

    model: Any  # the network

    def __init__(
        self,
        *,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        max_tokens: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        loss_chunk_size: int | None = None,
        loss_backend: BackendName = "auto",
    ) -> None:
        super().__init__(max_tokens=max_tokens)
        _ = self._rate  # a module has the same attributes before and after a run
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.label_smoothing = label_smoothing
        self.z_loss = z_loss
        self.loss_chunk_size = loss_chunk_size
        self.loss_backend = loss_backend
        self.tokenizer: Any = None
        self.generation_config: dict[str, Any] = {}
        self._restored_tokenizer: dict[str, str] | None = None
        self._saved_optimizers: list[str] = []  # classes, of the checkpoint that is resumed

    # ------------------------------------------------------------------ what a network supplies

    def hidden_states(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return what the output head is applied to, ``(B, T, D)``."""
        raise InvalidTypeError(f"{type(self).__name__} must define hidden_states(batch)")

    def output_head(self) -> OutputHead:
        """Return the output projection."""
        raise InvalidTypeError(f"{type(self).__name__} must define output_head()")

    def aux_loss(self) -> Tensor | None:
        """Return what training adds to the mean loss per token, a scalar, or ``None``."""
        return None

    def size_limits(self) -> tuple[int, int | None]:
        """Return how many token ids the network knows, and its longest sequence if it has one."""
        raise InvalidTypeError(f"{type(self).__name__} must define size_limits()")

    def checkpoint_entry(self) -> dict[str, Any]:
        """Return plain data from which the network can be built again."""
        raise InvalidTypeError(f"{type(self).__name__} must define checkpoint_entry()")

    def check_checkpoint_entry(self, saved: dict[str, Any]) -> None:
        """Raise `ValueError` if a checkpoint's entry is of another model."""

    # ------------------------------------------------------------------ loss and optimizer

    def loss_hyperparameters(self) -> dict[str, Any]:
        """Return the arguments about length and loss as plain data, for ``hparams``."""
        names = ("max_tokens", "label_smoothing", "z_loss", "loss_chunk_size", "loss_backend")
        return {name: getattr(self, name) for name in names}

    def compute_loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return ``(nll_sum, num_tokens)``, two scalars on the device.

        ``nll_sum`` has the value of the plain negative log-likelihood in nats; in training its
        gradient also holds label smoothing, z-loss and the routers' balancing loss.
        """
        labels = targets_of(batch).flatten()
        hidden = self.hidden_states(batch).flatten(0, 1)
        num_tokens = (labels != IGNORE_INDEX).sum()
        weight, options = self._loss_options()
        aux_loss = self.aux_loss() if self.training else None
        if not self.training or not (self.label_smoothing or self.z_loss or aux_loss is not None):
            nll_sum = linear_cross_entropy(hidden, weight, labels, reduction="sum", **options)
            return nll_sum, num_tokens
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

    def _loss_options(self) -> tuple[Tensor, dict[str, Any]]:
        head = self.output_head()
        return head.weight, {
            "bias": head.bias,
            "logit_softcap": head.logit_softcap,
            "chunk_size": self.loss_chunk_size,
            # Evaluation reports one likelihood, whatever computed the gradients.
            "backend": self.loss_backend if self.training else "chunked",
        }

    @property
    def lr(self) -> Any:
        """The learning rate: of the optimizer, or what was assigned in its place.

        Assign before ``fit`` to train at another rate than the optimizer's own; groups with rates
        of their own keep their proportion to it. Lightning's `LearningRateFinder` and
        ``Tuner.lr_find`` assign what they suggest.
        """
        rate = self._rate
        if rate.shown is not None:
            return rate.shown
        return rate_of(self.optimizer or AdamW)

    @lr.setter
    def lr(self, value: Any) -> None:
        self._rate.assign(self, value)

    @property
    def learning_rate(self) -> Any:
        """The same as `lr`, for `attr_name="learning_rate"`."""
        return self.lr

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self.lr = value

    @property
    def _rate(self) -> LearningRate:
        # Subclasses may assign before they call the constructor.
        rate: LearningRate = self.__dict__.setdefault("_learning_rate", LearningRate())
        return rate

    def on_fit_start(self) -> None:
        """Put the rate in place that a finder may have found just before."""
        super().on_fit_start()
        self._rate.put_in_place()

    def on_train_batch_start(self, batch: Mapping[str, Tensor], batch_idx: int) -> int | None:
        """Train from the first batch on at the rate that was found."""
        self._rate.batch_started()
        return super().on_train_batch_start(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        """Build the optimizer on decay groups, and the schedule on the optimizer."""
        optimizer = (self.optimizer or AdamW)(parameter_groups(self.model))
        if not isinstance(optimizer, Optimizer):
            raise InvalidTypeError(
                f"optimizer={_name_of(self.optimizer)} returned {describe(optimizer)}; it must "
                "take the parameters and return a torch.optim.Optimizer"
            )
        self._check_optimizers_of_checkpoint([optimizer])
        self._rate.apply_to(optimizer, self.hparams, self.hparams_initial)
        if self.lr_scheduler is None:
            return optimizer
        scheduler = self.lr_scheduler(optimizer)
        if not isinstance(scheduler, LRScheduler | ReduceLROnPlateau):
            raise InvalidTypeError(
                f"lr_scheduler={_name_of(self.lr_scheduler)} returned {describe(scheduler)}; it "
                "must take the optimizer and return a torch.optim.lr_scheduler.LRScheduler"
            )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def predict_step(
        self, batch: Mapping[str, Tensor], batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Tensor]:
        """Return the likelihood of each row.

        Returns:
            ``nll``: of each target in nats, ``(B, T)``, 0 where ignored; ``num_tokens``: the
            targets of each row, ``(B,) int64``.
        """
        labels = targets_of(batch)
        hidden = self.hidden_states(batch)
        weight, options = self._loss_options()
        nll = linear_cross_entropy(
            hidden.flatten(0, 1), weight, labels.flatten(), reduction="none", **options
        )
        return {"nll": nll.view_as(labels), "num_tokens": (labels != IGNORE_INDEX).sum(-1)}

    # ------------------------------------------------------------------ data and tokenizer

    def setup(self, stage: str) -> None:
        """Take the tokenizer from the data and check that data and model fit together."""
        for name, child in self.named_children():
            if hasattr(child, "_orig_mod"):
                raise InvalidValueError(
                    f"{name} is wrapped by torch.compile, so its weights would have other names in "
                    f"checkpoints. Compile it in place, module.{name}.compile(), or use "
                    "lightning_llm.strategies.SingleDeviceStrategy(compile=True)"
                )
        data = getattr(self.trainer, "datamodule", None)
        known_ids, max_seq_len = self.size_limits()
        vocab_size = getattr(data, "vocab_size", None)
        if vocab_size is not None and vocab_size > known_ids:
            raise InvalidValueError(
                f"the data has vocab_size={vocab_size}, the model config.vocab_size="
                f"{known_ids}; every token id needs a row of the embedding: set the "
                f"model's vocab_size to at least {vocab_size}, or use the tokenizer the model was "
                f"trained with"
            )
        seq_len = getattr(data, "seq_len", None)
        if seq_len is not None and max_seq_len is not None and seq_len > max_seq_len:
            raise InvalidValueError(
                f"data seq_len={seq_len} is longer than the model's max_seq_len="
                f"{max_seq_len}; lower seq_len or raise config.max_seq_len"
            )
        tokenizer = getattr(data, "tokenizer", None)
        if tokenizer is not None and hasattr(tokenizer, "save_pretrained"):
            if not same_ends(self.tokenizer, tokenizer, self.generation_config):
                self.generation_config = of_another_vocabulary(self.generation_config)
            self.tokenizer = tokenizer

    def text_ends(self) -> list[int]:
        """Return the ids that end a text, wherever this model generates or is exported.

        They are those of ``generation_config``, the tokenizer's end-of-text token, and what closes
        the assistant's turn in its chat template.
        """
        return text_ends(self.tokenizer, self.generation_config)

    # ------------------------------------------------------------------ checkpoints

    @on_the_class_only
    def load_from_checkpoint(
        cls,  # noqa: N805
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """Build the module that a checkpoint holds: Lightning's method of this name.

        A subclass gets the configurations of this package as the objects that it was built with.

        The file is read as plain data and builds this class, whatever functions and classes its
        hyperparameters name; an optimizer or schedule that they describe is left out.

        Args:
            checkpoint_path: Local file or open file.
            map_location: Where to put the weights.
            hparams_file: File of hyperparameters in place of the checkpoint's.
            strict: Whether the names of the weights must be the module's.
            weights_only: Always on: all that is needed is plain data.
            **kwargs: Arguments of the constructor, in place of the saved ones.

        Raises:
            ValueError: The path is an address, or ``weights_only=False`` asks for running code.
            TypeError: An argument that the constructor was given is not saved, because it is no
                plain data or was left out, and is not given now.
        """
        from lightning_llm.plugins.io.sealed_file import local_path

        if isinstance(checkpoint_path, str | Path):
            checkpoint_path = local_path(checkpoint_path)
        if weights_only is False:
            raise InvalidValueError(
                f"weights_only=False would run code from {checkpoint_path}; checkpoints of this "
                "package need none"
            )
        saved = _peek(checkpoint_path)
        # LightningCLI notes a function that builds the module from what the file names.
        kwargs["_instantiator"] = None
        for name in ("optimizer", "lr_scheduler"):
            if isinstance((saved.get("hyper_parameters") or {}).get(name), Mapping):
                kwargs.setdefault(name, None)
        arguments = (saved.get(CHECKPOINT_KEY) or {}).get("arguments")
        if arguments:
            kwargs |= arguments_to_rebuild(
                saved.get("hyper_parameters") or {},
                arguments["rebuilt"],
                arguments["missing"],
                kwargs,
                f"{cls.__name__}, {checkpoint_path}",
            )
        return super().load_from_checkpoint(  # type: ignore[no-any-return]
            checkpoint_path, map_location, hparams_file, strict, True, **kwargs
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add config and tokenizer, so that the file alone can generate and export."""
        super().on_save_checkpoint(checkpoint)
        if self._restored_tokenizer is None and self.tokenizer is not None:
            from lightning_llm.interop.hf import pack_tokenizer

            self._restored_tokenizer = pack_tokenizer(self.tokenizer)
        checkpoint[CHECKPOINT_KEY] = {
            **self.checkpoint_entry(),
            "optimizers": [] if self._trainer is None else _classes_of(self.trainer.optimizers),
            "tokenizer": self._restored_tokenizer,
            "generation_config": self._settings_with_ends(),
            "arguments": {
                "rebuilt": dict(notes_of(self).rebuilt),
                "missing": dict(notes_of(self).missing),
            },
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the tokenizer; refuse a checkpoint that does not belong to this model or data.

        Raises:
            ValueError: The checkpoint's architecture or vocabulary differs; every differing field
                is named. Or a run cannot resume from it: it holds weights alone, or the state of
                another optimizer.
        """
        super().on_load_checkpoint(checkpoint)
        self._rate.restored()
        trainer = self._trainer
        is_resumed = trainer is not None and trainer.training and checkpoint.get("optimizer_states")
        if trainer is not None and is_resumed and not undoes_search(trainer):
            leave_out_finders(trainer)
        saved = checkpoint.get(CHECKPOINT_KEY)
        if trainer is not None and trainer.training:
            self._check_resumable(checkpoint, saved or {})
        if saved is None:
            return
        self.check_checkpoint_entry(saved)
        if saved.get("generation_config") is not None:  # older checkpoints have none
            self.generation_config = dict(saved["generation_config"])
        files = saved["tokenizer"]
        if files is None:
            return
        from lightning_llm.interop.hf import pack_tokenizer, unpack_tokenizer

        if self.tokenizer is None:
            self.tokenizer = unpack_tokenizer(files)
        elif pack_tokenizer(self.tokenizer).get("tokenizer.json") != files.get("tokenizer.json"):
            raise InvalidValueError(
                "the checkpoint was trained with another vocabulary than the one this data uses: "
                "the same ids stand for different text. Give the data the checkpoint's tokenizer, "
                "tokenizer={'pretrained': 'RUN.ckpt'}; to evaluate other files it needs no "
                "train_files then. `lightning-llm validate --ckpt_path` does so where val_files "
                "are given"
            )
        self._restored_tokenizer = files

    def _check_resumable(self, checkpoint: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
        """Refuse to train on from weights alone, or with an optimizer of another class."""
        path = self.trainer.ckpt_path or "the checkpoint"
        if "optimizer_states" not in checkpoint:
            raise InvalidValueError(
                f"{path} holds weights alone (it was saved with save_weights_only): there is no "
                "optimizer state to resume from. To begin a new run from these weights, write them "
                f"with `lightning-llm export --checkpoint {path} --output DIR` and load them with "
                f"{type(self).__name__}.from_pretrained or HFCausalLM"
            )
        self._saved_optimizers = list(saved.get("optimizers") or [])
        if self.trainer.optimizers:  # made before, where weights are sharded
            self._check_optimizers_of_checkpoint(self.trainer.optimizers)

    def _check_optimizers_of_checkpoint(self, optimizers: Sequence[Optimizer]) -> None:
        saved, self._saved_optimizers = self._saved_optimizers, []
        now = _classes_of(optimizers)
        if saved and [_family(name) for name in saved] != [_family(name) for name in now]:
            raise InvalidValueError(
                f"{self.trainer.ckpt_path or 'the checkpoint'} holds the state of "
                f"{', '.join(saved)}, which {', '.join(now)} cannot go on from: resume with the "
                "optimizer it was trained with, or begin a new run from its weights "
                "(`lightning-llm export`, then from_pretrained)"
            )

    def _settings_with_ends(self) -> dict[str, Any]:
        ends = self.text_ends()
        return {**self.generation_config, **({"eos_token_id": ends} if ends else {})}


def _classes_of(optimizers: Sequence[Any]) -> list[str]:
    """Return the class paths of optimizers, as plain data."""
    kinds = [type(getattr(optimizer, "optimizer", optimizer)) for optimizer in optimizers]
    return [f"{kind.__module__}.{kind.__qualname__}" for kind in kinds]


def _family(class_path: str) -> str:
    """Return what optimizers have in common whose states are the same."""
    name = class_path.rpartition(".")[2]
    return "Adam" if name == "AdamW" else name


def _name_of(factory: Any) -> str:
    factory = getattr(factory, "func", factory)  # of a partial
    return getattr(factory, "__qualname__", None) or repr(factory)


def _peek(path: Any) -> Mapping[str, Any]:
    """Return what a checkpoint file says of itself, its tensors left on the disk."""
    if not isinstance(path, str | Path) or not Path(path).is_file():
        return {}
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # Lightning, or what reads it, says best what is wrong
        return {}
    return saved if isinstance(saved, Mapping) else {}
