"""`HFCausalLM`: any causal language model of ``transformers``, trained the way `CausalLM` is."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_llm.batches import documents_of, inputs_of
from lightning_llm.errors import InvalidValueError, LightningLLMError, MissingFileError
from lightning_llm.generation.ends import id_list, of_another_vocabulary
from lightning_llm.interop.hf.adapters import (
    BaseWeights,
    adapter_config,
    check_mergeable,
    note_own_head,
    with_adapters,
)
from lightning_llm.interop.hf.comparison import as_exported, coarsest, sample_ids
from lightning_llm.interop.hf.continuation import generate_with_transformers
from lightning_llm.interop.hf.decoder import Decoder, network_logits
from lightning_llm.interop.hf.flops import network_flops_per_token
from lightning_llm.interop.hf.generation_settings import (
    generation_settings,
    stored_generation_config,
)
from lightning_llm.interop.hf.load import check_model_folder
from lightning_llm.interop.hf.network_export import (
    Sample,
    check_exported_tokenizer,
    merge_adapters,
    write_adapters,
    write_network,
)
from lightning_llm.interop.hf.text_config import longest_sequence
from lightning_llm.interop.hf.tokenizer import stored_tokenizer
from lightning_llm.language import CHECKPOINT_KEY, LanguageModule, OutputHead
from lightning_llm.losses import BackendName

_DTYPES = ("float32", "bfloat16", "float16", "auto")


class HFCausalLM(LanguageModule):
    """A model of ``transformers.AutoModelForCausalLM`` with our loss, optimizers and callbacks.

    Logits are never whole in memory: the loss is computed in chunks from the hidden states and the
    output embeddings, logit scales and soft-caps of the configuration included. That this gives
    the model's own logits is tried out on a few tokens when the module is built.

    Args:
        name_or_path: A folder in the Hugging Face layout or a name on the hub, for pretrained
            weights (safetensors); or the contents of a ``config.json`` as a mapping, with its
            ``model_type``, for new ones.
        peft: Train adapters alone: a ``peft.PeftConfig``, or a mapping such as
            ``{"peft_type": "LORA", "r": 8, "target_modules": "all-linear"}`` (DoRA:
            ``use_dora: true``). Checkpoints then hold the adapters, and the name of the model
            they belong to. Needs the extra ``[peft]``.
        optimizer: Called with parameter groups; `lightning_llm.optim.AdamW` when not given.
        lr_scheduler: Called with the optimizer; stepped once per optimizer step.
        vocab_size: Of a new model; overrides the mapping's. The command line links it to the data.
        max_tokens: Stop after this many input tokens, over all ranks.
        label_smoothing: Mass given to the uniform distribution, in training only.
        z_loss: Weight of the squared log-partition function, in training only.
        loss_chunk_size: Rows of logits alive at a time; chosen automatically when not given.
        loss_backend: Implementation of the loss in training: ``auto``, ``chunked``, ``torch``,
            ``liger`` or ``cce``; see `lightning_llm.losses.linear_cross_entropy`.
        dtype: Of the weights in memory: ``float32``, ``bfloat16``, ``float16``, or ``auto`` for
            the stored one.
        revision: Branch, tag or commit on the hub.

    Raises:
        ValueError: A model whose logits follow from its hidden states in an unknown way; the
            fields of its configuration are named.
        ModuleNotFoundError: ``peft`` is given and not installed.
    """

    def __init__(
        self,
        name_or_path: str | Path | dict[str, Any],
        *,
        peft: dict[str, Any] | Any | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        vocab_size: int | None = None,
        max_tokens: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        loss_chunk_size: int | None = None,
        loss_backend: BackendName = "auto",
        dtype: str = "float32",
        revision: str | None = None,
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
        if dtype not in _DTYPES:
            raise InvalidValueError(f"dtype={dtype!r} is not one of {', '.join(_DTYPES)}")
        self._base: dict[str, Any] | None = None  # where pretrained weights came from
        if isinstance(name_or_path, Mapping):
            if peft is not None:
                raise InvalidValueError(
                    "peft trains adapters of pretrained weights, and name_or_path is a "
                    "configuration, which has none; give a folder or a name"
                )
            network = _new_network(name_or_path, vocab_size, dtype)
        else:
            network = _pretrained_network(name_or_path, dtype, revision)
            self.tokenizer = stored_tokenizer(name_or_path, revision=revision)
            self.generation_config = stored_generation_config(name_or_path, revision=revision)
            if not self.generation_config and not Path(name_or_path).is_dir():
                settings: Any = network.generation_config
                self.generation_config = settings.to_diff_dict()
            folder = Path(name_or_path)
            name = str(folder.resolve() if folder.is_dir() else name_or_path)
            self._base = {"name_or_path": name, "revision": revision, "dtype": dtype}
        network.train()
        self._has_adapters = peft is not None
        self._beyond_base: frozenset[str] = frozenset()
        if peft is None:
            self.model = network
        else:
            before = BaseWeights(network)
            self.model = with_adapters(network, peft)
            self._beyond_base = frozenset(f"model.{name}" for name in before.beyond(self.model))
        self._decoder = Decoder(network)
        self.config: Any = network.config
        self.strict_loading = not self._has_adapters
        # Plain data only: a checkpoint then loads with weights_only=True.
        self.save_own_hyperparameters(
            {
                "name_or_path": self._base["name_or_path"] if self._base else self._config_dict(),
                "peft": adapter_config(self.model) if self._has_adapters else None,
                **self.loss_hyperparameters(),
                "dtype": dtype,
                "revision": revision,
            }
        )

    @property
    def network(self) -> Any:
        """The model of ``transformers``, adapters injected."""
        return self.model.get_base_model() if self._has_adapters else self.model

    # ------------------------------------------------------------------ what the loss needs

    def hidden_states(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return what the output head is applied to, ``(B, T, D)``."""
        return self._decoder.hidden_states(
            inputs_of(batch),
            position_ids=batch.get("position_ids"),
            document_ids=documents_of(batch),
        )

    def output_head(self) -> OutputHead:
        """Return the output embeddings and the soft-cap of the configuration."""
        return self._decoder.head()

    def size_limits(self) -> tuple[int, int | None]:
        """Return the rows of the embedding, and the longest sequence if there is one."""
        rows = self.network.get_input_embeddings().weight.shape[0]
        return rows, longest_sequence(self.network)

    # ------------------------------------------------------------------ use

    def generate(self, prompts: list[str] | Tensor, **options: Any) -> Any:
        """Continue prompts, through ``transformers``.

        Args:
            prompts: Strings (the continuations are returned, without the prompts), or token ids
                ``(B, T) int64`` (returned with the new ids appended).
            **options: Those of `lightning_llm.generation.generate`.
        """
        return generate_with_transformers(
            self.network, prompts, tokenizer=self.tokenizer, ends=self.text_ends(), **options
        )

    def text_ends(self) -> list[int]:
        """Return the ids that end a text, as for `CausalLM`.

        A new network without a tokenizer ends at the id of its configuration.
        """
        return super().text_ends() or id_list(self.network.generation_config.eos_token_id)

    def flops_per_token(self, seq_len: int, *, causal: bool = False) -> int:
        """Floating-point operations per trained token; frozen weights cost two thirds."""
        return network_flops_per_token(self.network, seq_len, causal=causal)

    def save_pretrained(self, directory: str | Path, *, merge: bool = True) -> None:
        """Write weights, config and tokenizer so that `transformers` loads them.

        All ranks call it; rank zero writes. The export is loaded again, and its logits and the ids
        of its tokenizer are compared, which takes the memory of one more model. An error leaves
        what was there.

        Args:
            directory: Folder to write. An earlier export in it is replaced.
            merge: Add adapters to the weights they belong to (on a copy), and write a whole model;
                otherwise write the adapters alone, for ``peft``. Where an adapter changes one of
                two tied weights, they are tied no more.

        Raises:
            ValueError: Weights are not finite, adapters cannot be merged, ``AutoTokenizer`` would
                make another tokenizer, or the folder is that of the model itself.
            RuntimeError: What was written computes other logits.
        """
        from lightning_llm.strategies.sharding import gathered_state, is_sharded

        directory, merge = Path(directory), merge and self._has_adapters
        self._refuse_base_folder(directory)
        sample = self._sample()
        sharded = is_sharded(self.model)
        if sharded:
            weights = self._gathered_adapters() if merge else gathered_state(self.model)
        if self._trainer is None or self._trainer.is_global_zero:
            options: Any = {"tokenizer": self.tokenizer}
            if sharded and not merge:
                options["state_dict"] = weights
            if self._has_adapters and not merge:
                assert self._base is not None
                write_adapters(self.model, directory, base=self._base, sample=sample, **options)
            else:
                model = self.model
                if merge and sharded:
                    # The frozen weights are those of the base, which rank zero reads once more.
                    whole = HFCausalLM(**self._base, peft=adapter_config(model))  # type: ignore[arg-type]
                    whole.load_state_dict(weights, strict=False)
                    model = whole.model
                if merge:
                    model, sample = merge_adapters(model, sample)
                write_network(model, directory, settings=self._settings(), sample=sample, **options)
        if self._trainer is not None:
            self._trainer.strategy.barrier("save_pretrained")

    def check_export(self, directory: str | Path) -> None:
        """Raise now what `save_pretrained` would raise after training; HFExport asks first."""
        from lightning_llm.strategies.sharding import is_sharded

        self._refuse_base_folder(Path(directory))
        if self._has_adapters and not is_sharded(self.model):
            check_mergeable(self.model)
        if self.tokenizer is not None:
            with tempfile.TemporaryDirectory() as folder:
                check_exported_tokenizer(self.network, self.tokenizer, Path(folder))

    def _refuse_base_folder(self, directory: Path) -> None:
        if self._has_adapters and self._base is not None:
            base = Path(self._base["name_or_path"])
            if base.is_dir() and directory.exists() and base.samefile(directory):
                raise InvalidValueError(
                    f"{directory} is the folder of the model that the adapters belong to, which "
                    "checkpoints need as it is; choose another folder"
                )

    def _sample(self) -> Sample:
        """The logits that an export has to give again; all ranks call it."""
        from lightning_llm.strategies.sharding import outer_weights

        rows, longest = self.size_limits()
        ids = sample_ids(rows, longest)
        with outer_weights(self), as_exported(self.model):
            logits = network_logits(self.network, ids.to(self.device)).float()
        dtypes = {weight.dtype for weight in self.model.parameters()}
        return Sample(ids, logits, coarsest(*dtypes, logits.dtype))

    def _settings(self) -> dict[str, Any]:
        """What the export's ``generation_config.json`` holds."""
        settings = self.generation_config
        if not settings:  # a new network: its ids are of the vocabulary it is trained on
            settings = self.network.generation_config.to_diff_dict()
            settings = settings if self.tokenizer is None else of_another_vocabulary(settings)
        return generation_settings(settings, self.tokenizer)

    # ------------------------------------------------------------------ checkpoints

    def checkpoint_entry(self) -> dict[str, Any]:
        """Return configuration and adapters as plain data."""
        return {
            "hf_config": self._config_dict(),
            "base": self._base,
            "peft": adapter_config(self.model) if self._has_adapters else None,
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out what the base has when adapters are trained."""
        super().on_save_checkpoint(checkpoint)
        if self._has_adapters:
            kept = self._kept_names()
            weights = checkpoint["state_dict"]
            checkpoint["state_dict"] = {k: v for k, v in weights.items() if k in kept}

    def check_checkpoint_entry(self, saved: dict[str, Any]) -> None:
        """Refuse a checkpoint of another architecture, or of other adapters.

        Raises:
            ValueError: Says what differs.
        """
        theirs = saved.get("hf_config", {}).get("model_type")
        if theirs != self.config.model_type:
            raise InvalidValueError(
                f"the checkpoint is of another model: model_type is {theirs!r} in the checkpoint, "
                f"{self.config.model_type!r} here"
            )
        if bool(saved["peft"]) != self._has_adapters:
            raise InvalidValueError(
                f"the checkpoint was trained with peft={saved['peft']}, this module has "
                f"{'adapters' if self._has_adapters else 'none'}; use the same peft="
            )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint has exactly the adapters of this module.

        Raises:
            ValueError: Names what is missing or left over.
        """
        super().on_load_checkpoint(checkpoint)
        if self._has_adapters:
            found, wanted = set(checkpoint["state_dict"]), self._kept_names()
            missing = wanted - found
            if missing and not missing & self._trained_names():
                self._refuse_random_start(missing)  # written when trained weights alone were kept
                missing = set()
            if missing or found - wanted:
                raise InvalidValueError(
                    f"the checkpoint's adapters are others than the module's: missing "
                    f"{sorted(missing)[:3]}, left over {sorted(found - wanted)[:3]}; use "
                    f"the checkpoint's peft="
                )

    def _refuse_random_start(self, missing: set[str]) -> None:
        initial = adapter_config(self.model).get("init_lora_weights")
        if isinstance(initial, str) and initial.startswith("pissa_niter"):
            raise InvalidValueError(
                f"the checkpoint lacks frozen weights, {min(missing)} among them, which "
                f"init_lora_weights={initial!r} drew at random: an earlier version did not keep "
                "them, and the trained model cannot be had again from it"
            )

    def _kept_names(self) -> set[str]:
        """What a checkpoint holds: all that the base does not give again."""
        return self._trained_names() | self._beyond_base

    def _trained_names(self) -> set[str]:
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}

    def _gathered_adapters(self) -> dict[str, Tensor]:
        """What the base does not have, whole, on rank zero; all ranks call it."""
        from lightning_llm.strategies.sharding import gathered

        keep = self.trainer.is_global_zero
        kept = self._kept_names()
        return {
            name: gathered(value, keep=keep)
            for name, value in self.state_dict().items()
            if name in kept
        }

    def _config_dict(self) -> dict[str, Any]:
        return json.loads(self.network.config.to_json_string(use_diff=False))


def restore_hf_causal_lm(checkpoint: Mapping[str, Any]) -> HFCausalLM:
    """Build the module of a checkpoint, read as data, again.

    A checkpoint of adapters also needs the model they belong to, under the name it had.
    """
    saved = checkpoint[CHECKPOINT_KEY]
    if saved["peft"] is None:
        dtype = str(next(iter(checkpoint["state_dict"].values())).dtype).removeprefix("torch.")
        module = HFCausalLM(saved["hf_config"], dtype=dtype)
    else:
        module = HFCausalLM(**saved["base"], peft=saved["peft"])
    module.on_load_checkpoint({**checkpoint})
    module.load_state_dict(checkpoint["state_dict"], strict=module.strict_loading)
    return module


def _new_network(contents: Mapping[str, Any], vocab_size: int | None, dtype: str) -> nn.Module:
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

    fields = dict(contents)
    model_type = fields.pop("model_type", None)
    if model_type not in CONFIG_MAPPING:
        raise InvalidValueError(
            f"name_or_path is a configuration with model_type={model_type!r}, which transformers "
            "does not know; a config.json names it, for example 'llama'"
        )
    if vocab_size is not None:
        fields["vocab_size"] = vocab_size
    try:
        config = AutoConfig.for_model(model_type, **fields)
        _refuse_no_causal_lm(config)
        return AutoModelForCausalLM.from_config(config, dtype=_torch_dtype(dtype))
    except (LightningLLMError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a model's own code makes of a configuration
        raise InvalidValueError(
            f"transformers builds no model of this configuration of model_type={model_type!r}: "
            f"{type(error).__name__}: {error}"
        ) from error


def _pretrained_network(name_or_path: str | Path, dtype: str, revision: str | None) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    path = Path(name_or_path)
    if path.is_dir():
        check_model_folder(path)
    options: dict[str, Any] = {"revision": revision or "main", "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(name_or_path, **options)
    except OSError as error:
        raise MissingFileError(
            f"{name_or_path} is neither a folder nor a model of the Hugging Face hub that can be "
            f"reached from here ({error})"
        ) from error
    _refuse_no_causal_lm(config)
    found: Any = AutoModelForCausalLM.from_pretrained(
        name_or_path,
        config=config,
        dtype=_torch_dtype(dtype),
        use_safetensors=True,
        output_loading_info=True,
        **options,
    )
    network, loaded = found
    missing = sorted(loaded["missing_keys"])
    if missing:
        raise InvalidValueError(
            f"{name_or_path}: the weights lack {len(missing)} tensors of model_type="
            f"{config.model_type!r}, {', '.join(missing[:3])} among them, which would start from "
            f"noise; get the whole model, or give a configuration to train a new one"
        )
    note_own_head(network)
    return network


def _refuse_no_causal_lm(config: Any) -> None:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InvalidValueError(
            f"model_type={config.model_type!r} has no causal language model in transformers"
        )


def _torch_dtype(name: str) -> Any:
    return "auto" if name == "auto" else getattr(torch, name)
