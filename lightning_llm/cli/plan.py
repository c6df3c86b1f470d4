"""``plan``: what a recipe will need and cost, without data, weights or a device."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pkgutil import resolve_name
from typing import Any

import torch

from lightning_llm import HFCausalLM
from lightning_llm.cli.training import NO_BOUND_OF_EPOCHS, RecipeCLI, prepare_parsing
from lightning_llm.errors import InvalidValueError
from lightning_llm.planning import (
    Numerics,
    Parallelism,
    Run,
    as_text,
    find_device,
    make_plan,
)


def run_plan(arguments: Sequence[str]) -> int:
    """Build the recipe's model on the meta device, plan its training, write the report."""
    with redirect_stdout(sys.stderr):  # libraries write there; the report has it alone
        cli = PlanCLI("plan", prepare_parsing(list(arguments)))
        options = cli.config
        device = find_device(options["device"])
        plan = make_plan(run_of(cli), device)
    for note in cli.notes:
        sys.stderr.write(f"note: {note}\n")
    if options["format"] == "json":
        sys.stdout.write(json.dumps(plan.as_dict(), indent=2) + "\n")
    else:
        sys.stdout.write(as_text(plan))
    return 0


class PlanCLI(RecipeCLI):
    """Builds the model, the strategy and the precision plugin of a recipe, and nothing else."""

    def instantiate_classes(self) -> None:
        """Build on the meta device, with the vocabulary the recipe names."""
        given = (self.config.data or {}).get("init_args")
        self.data_options = given.as_dict() if given else {}
        config = self.config.clone()
        _check_class(config.model.class_path)
        self.scheduling = _accumulation_by_epoch(config.trainer.callbacks)
        self.notes = list(_notes(config.trainer, self.scheduling))
        config.data = None
        config.trainer.callbacks = config.trainer.logger = None
        size = _named_vocabulary(self.data_options)
        model_options = config.model.init_args
        network = model_options.get("config")
        if size is not None and network is not None:
            network["vocab_size"] = size
        with torch.device("meta"):
            self.config_init = self.parser.instantiate_classes(config)
        self.model = self.config_init["model"]


def run_of(cli: PlanCLI) -> Run:
    """What the recipe and the command's options say of the run.

    Raises:
        ValueError: The recipe does not say how long or how many its sequences are.
    """
    options, trainer = cli.config, cli.config_init["trainer"]
    if options["tokens"] is not None and options["tokens"] < 1:
        raise InvalidValueError(f"tokens={options['tokens']} must be at least 1")
    asked = options["world_size"]
    world_size = _ranks_of(trainer) if asked is None else asked
    strategy = trainer.get("strategy") or "auto"
    micro_batch_size, seq_len = _batch_shape(cli.data_options)
    run = Run(
        module=cli.model,
        parallelism=Parallelism.of(strategy, world_size),
        numerics=Numerics.of(_precision_of(trainer)),
        world_size=world_size,
        micro_batch_size=micro_batch_size,
        seq_len=seq_len,
        accumulate_grad_batches=(
            cli.scheduling.get(0) or trainer.get("accumulate_grad_batches") or 1
        ),
        clips_gradients=bool(trainer.get("gradient_clip_val")),
        tokens=options["tokens"],
        documents=_keeps_documents_apart(cli.data_options),
    )
    if run.tokens is not None:
        return run
    return replace(run, tokens=_tokens_of(cli.model, trainer, run))


def _accumulation_by_epoch(callbacks: Any) -> dict[int, int]:
    """Return what a ``GradientAccumulationScheduler`` of the recipe plans; empty without one."""
    entries = callbacks if isinstance(callbacks, list | tuple) else [callbacks]
    for entry in entries:
        if str(getattr(entry, "class_path", "")).endswith(".GradientAccumulationScheduler"):
            scheduling = entry.init_args.scheduling
            return {int(epoch): int(factor) for epoch, factor in dict(scheduling).items()}
    return {}


def _notes(trainer: Any, scheduling: dict[int, int]) -> Iterator[str]:
    """Yield what the plan cannot know of the run's length: the data is not read."""
    epochs = trainer.get("max_epochs")
    if epochs is not None and 0 < epochs < NO_BOUND_OF_EPOCHS:
        yield (
            f"max_epochs={epochs} may end the run before the tokens planned here: the steps of an "
            "epoch are in the data, which a plan does not read. fit shows them at its start; "
            "--tokens plans a number of your own"
        )
    if scheduling:
        yield (
            "GradientAccumulationScheduler changes the tokens of a step from epoch to epoch; this "
            f"is planned with the {scheduling.get(0, 1)} micro-batches of epoch 0"
        )


def _check_class(class_path: str) -> None:
    """Refuse modules around a network of transformers, which would read weights to be built."""
    named = resolve_name(class_path)  # a class, or a classmethod that builds one
    if isinstance(named, type) and issubclass(named, HFCausalLM):
        raise InvalidValueError(
            f"{named.__name__} cannot be planned: activations and operations of networks of "
            "transformers are not known. For an architecture that has a table, the plan of "
            "recipes/finetune/full.yaml with the same model (--model.init_args.path_or_name) tells "
            "what training all of its weights takes"
        )


def _named_vocabulary(data: dict[str, Any]) -> int | None:
    """The size a tokenizer is to be trained to; others have theirs in files that are not read."""
    tokenizer = data.get("tokenizer")
    get = getattr(tokenizer, "get", None)
    size = get("vocab_size") if callable(get) else None
    if size is None:
        size = getattr(tokenizer, "vocab_size", None)
    if size is None:
        size = data.get("vocab_size")
    return None if size is None else int(size)


def _batch_shape(data: dict[str, Any]) -> tuple[int, int]:
    found = [data.get(name) for name in ("micro_batch_size", "seq_len")]
    if any(not isinstance(value, int) for value in found):
        raise InvalidValueError(
            f"the recipe's data has micro_batch_size={found[0]} and seq_len={found[1]}; a plan "
            f"needs both: give --data.init_args.micro_batch_size and --data.init_args.seq_len"
        )
    return int(found[0] or 0), int(found[1] or 0)


def _keeps_documents_apart(data: dict[str, Any]) -> bool:
    """Whether batches have ``document_ids``."""
    asked = data.get("mask_documents")
    return data.get("packing") == "best_fit" if asked is None else bool(asked)


def _ranks_of(trainer: Any) -> int:
    """Devices of the recipe; one where it takes all that there are."""
    devices, nodes = trainer.get("devices"), trainer.get("num_nodes") or 1
    if isinstance(devices, list | tuple):
        devices = len(devices)
    known = isinstance(devices, int | str) and str(devices).isdigit() and int(devices) > 0
    return (int(devices) if known else 1) * nodes


def _precision_of(trainer: Any) -> Any:
    plugins = trainer.get("plugins") or []
    for plugin in plugins if isinstance(plugins, list | tuple) else [plugins]:
        if hasattr(plugin, "convert_module"):
            return plugin
    return trainer.get("precision") or "32-true"


def _tokens_of(module: Any, trainer: Any, run: Run) -> int | None:
    """Tokens of the whole run: whichever of ``max_tokens`` and ``max_steps`` ends it first."""
    limits = []
    if getattr(module, "max_tokens", None):
        limits.append(int(module.max_tokens))
    if (trainer.get("max_steps") or -1) > 0:
        limits.append(trainer["max_steps"] * run.tokens_per_step)
    return min(limits) if limits else None
