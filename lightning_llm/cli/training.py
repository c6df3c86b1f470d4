"""``fit``, ``validate``, ``test``, ``predict`` and ``prepare``: the commands that take a recipe."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as L
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.strategies import ParallelStrategy

import lightning_llm.strategies  # noqa: F401  # makes `strategy: fsdp2` known
from lightning_llm.cli import RECIPE_COMMANDS
from lightning_llm.cli.evaluation_data import take_checkpoint_tokenizer
from lightning_llm.cli.interruption import interruptions, tell_how_to_continue
from lightning_llm.cli.kept_log import LogOfRun, keep_rows
from lightning_llm.cli.named_overrides import with_named_overrides
from lightning_llm.cli.parse_errors import check_strategy
from lightning_llm.cli.predictions import write_predictions
from lightning_llm.cli.recipe import (
    RecipeParser,
    register_resolvers,
    restrict_imports,
    split_allow_import,
)
from lightning_llm.cli.recipe_text import install_guard
from lightning_llm.cli.resume import Resume, checkpoint_to_resume
from lightning_llm.cli.run_folder import folder_of_recipe, folder_of_trainer
from lightning_llm.cli.run_identity import RunIdentity, RunStamp
from lightning_llm.cli.run_start import check_folder, checkpoint_of_run, waiting_checkpoint
from lightning_llm.cli.safeguards import (
    missing_callbacks,
    missing_logger,
    missing_progress_bar,
    save_atomically,
    silence_advice,
    without_logger,
)
from lightning_llm.cli.save_recipe import SaveRecipe
from lightning_llm.cli.sharded_build import sharded_build
from lightning_llm.cli.shipped_recipes import use_shipped
from lightning_llm.errors import FileAccessError
from lightning_llm.strategies.launch import check_devices, check_launch

# Lightning's own default, where neither max_steps nor max_epochs is given.
NO_BOUND_OF_EPOCHS = 1000
_RUNS = ("fit", "validate", "test", "predict")


def run_training(command: str, arguments: list[str]) -> int:
    """Parse the recipe, build data, model and trainer, and run the command."""
    cli = RecipeCLI(command, prepare_parsing(arguments))
    if command == "prepare":
        return _prepare(cli)
    trainer = cli.trainer
    check_launch(
        trainer._accelerator_connector.cluster_environment,
        trainer.num_devices,
        trainer.num_nodes,
        alone=not isinstance(trainer.strategy, ParallelStrategy),
    )
    _probe_output(trainer)
    options = {name: cli.config[name] for name in cli.command_options if name in cli.config}
    if command == "fit":
        options = {"ckpt_path": checkpoint_of_run(cli)}
    else:
        options["ckpt_path"] = checkpoint_to_resume(
            "never",
            options["ckpt_path"],
            folder_of_trainer(trainer),
            cli.identity,
            evaluates=True,
        )
    if command != "fit" and options["ckpt_path"] is None:
        sys.stderr.write("no --ckpt_path: these are the weights that the model starts with\n")
    if command != "fit" or options["ckpt_path"] or waiting_checkpoint(trainer.default_root_dir):
        keep_rows(trainer)
    if command == "predict":
        output = Path(
            options.pop("output") or Path(cli.trainer.default_root_dir, "predictions.jsonl")
        )
        with interruptions(trainer, command):
            batches = trainer.predict(cli.model, datamodule=cli.datamodule, **options)
        write_predictions(trainer, batches or [], output)
        return 0
    tell_how_to_continue(trainer, arguments)
    with interruptions(trainer, command):
        getattr(trainer, command)(cli.model, datamodule=cli.datamodule, **options)
    return 0


def prepare_parsing(arguments: list[str]) -> list[str]:
    """Set up how recipes are read, and take ``--allow_import`` out of the arguments."""
    register_resolvers()
    install_guard()
    allowed, arguments = split_allow_import(use_shipped(arguments))
    restrict_imports(allowed)
    # The current folder is where a user's own module lies, as with `python -m`.
    if allowed and "" not in sys.path:
        sys.path.insert(0, "")
    return arguments


class RecipeCLI(LightningCLI):
    """LightningCLI with one flat parser per command.

    Lightning's own subcommands nest the recipe under the command's name, where an absolute
    ``${data.init_args.seq_len}`` is not found; a flat parser resolves it in every command.
    """

    def __init__(self, command: str, arguments: list[str]) -> None:
        self.command = command
        self.command_options: list[str] = []
        super().__init__(
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None if command in ("doctor", "plan") else SaveRecipe,
            save_config_kwargs={"overwrite": True},
            # Lightning takes its default back, with a warning, once max_steps is set.
            trainer_defaults={"max_epochs": NO_BOUND_OF_EPOCHS},
            seed_everything_default=0,
            parser_class=RecipeParser,
            parser_kwargs={
                "parser_mode": "omegaconf+",
                "prog": f"lightning-llm {command}",
                "description": f"lightning-llm {command}: {RECIPE_COMMANDS[command]}. "
                "Keys of the usual model and data: --model.help lightning_llm.CausalLM, "
                "--data.help lightning_llm.TextDataModule. "
                "--allow_import PACKAGE lets a recipe name classes of your own package. Recipes: "
                "lightning-llm recipes.",
            },
            args=arguments,
            run=False,
            auto_configure_optimizers=False,
            # Modules keep plain hyperparameters themselves; a checkpoint must stay plain data.
            load_from_checkpoint_support=False,
        )

    @property
    def identity(self) -> RunIdentity:
        """What tells the runs of this recipe from those of another."""
        data = self.config.get("data")
        arguments = data.get("init_args") if data is not None else None
        return RunIdentity(self.model, self.datamodule, arguments or {}, self._seed)

    def parse_arguments(self, parser: Any, args: Any) -> None:
        """Parse the given arguments; `sys.argv` plays no part."""
        args = with_named_overrides(args, parser.parse_args, parser.dump)
        self.config = parser.parse_args(args)
        seed = self.config.get("seed_everything")
        # With `true`, every start draws another.
        self._seed = None if isinstance(seed, bool) else seed
        strategy = self.config.trainer.strategy
        if isinstance(strategy, str) and "." in strategy:
            # A class path by itself, which Lightning's type takes for a name.
            entry = {"trainer": {"strategy": {"class_path": strategy}}}
            self.config = parser.parse_object(entry, cfg_base=self.config)

    def add_arguments_to_parser(self, parser: Any) -> None:
        """Add the command's own options, and link the vocabulary into the model."""
        parser.link_arguments(
            "data", "model.init_args.vocab_size", compute_fn=_vocab_size, apply_on="instantiate"
        )
        add = parser.add_argument
        if self.command == "prepare":
            add("--verify", action="store_true", help="Check the stores against their checksums.")
            self.command_options = ["verify"]
            return
        if self.command == "doctor":
            _add_doctor_options(add)
            return
        if self.command == "plan":
            _add_plan_options(add)
            return
        add("--ckpt_path", type=str | None, default=None, help="Checkpoint to load, or 'last'.")
        self.command_options = ["ckpt_path"]
        if self.command == "fit":
            add(
                "--resume",
                type=Resume,
                default="never",
                help="Continue the run of this recipe: from its checkpoint with the most steps.",
            )
            add(
                "--overwrite",
                action="store_true",
                help="Replace the run that is in the recipe's folders.",
            )
            self.command_options += ["resume", "overwrite"]
        if self.command == "predict":
            add("--output", type=str | None, default=None, help="File for one JSON row per sample.")
            self.command_options.append("output")

    def instantiate_classes(self) -> None:
        """Build data, model and trainer; `prepare` needs the data alone."""
        if self.command == "prepare":
            self.config.model = None
            self.config_init = self.parser.instantiate_classes(self.config)
            self.datamodule = self.config_init["data"]
            return
        if self.command in ("validate", "test", "predict"):
            take_checkpoint_tokenizer(self.command, self.config)
        if self.command == "fit":
            check_folder(self.config, folder_of_recipe(self.config.trainer))
        with sharded_build(self.config.trainer) if self.command in _RUNS else nullcontext():
            super().instantiate_classes()

    def _instantiate_trainer(
        self, config: dict[str, Any], callbacks: list[L.Callback]
    ) -> L.Trainer:
        """Build the trainer with what the recipe leaves to the command line."""
        given = config.get("callbacks") or []
        given = given if isinstance(given, list) else [given]
        if config.get("logger") is False:
            config["callbacks"] = given = without_logger(given)
        if self.command in ("fit", "doctor"):
            callbacks = [*callbacks, *missing_callbacks(given)]
        if self.command == "fit":
            callbacks += [RunStamp(self.identity), LogOfRun()]
        callbacks += missing_progress_bar(given, config.get("enable_progress_bar"))
        check_strategy(config.get("strategy"))
        check_devices(config.get("strategy"), config.get("devices"))
        config["logger"] = missing_logger(config) or config.get("logger")
        silence_advice()
        trainer = super()._instantiate_trainer(config, callbacks)
        save_atomically(trainer)
        return trainer

    def _parse_ckpt_path(self) -> None:
        """Leave the recipe alone: hyperparameters in a checkpoint never override it."""


class _ParserOnly(RecipeCLI):
    """Builds the parser and nothing else."""

    def parse_arguments(self, parser: Any, args: Any) -> None:
        """Parse nothing, and set no seed."""
        self.config = {"seed_everything": False}

    def instantiate_classes(self) -> None:
        """Build nothing."""


def recipe_parser(command: str) -> Any:
    """Return the parser of a command that takes a recipe."""
    return _ParserOnly(command, []).parser


def _add_doctor_options(add: Callable[..., Any]) -> None:
    report: Any = Literal["text", "json"]
    add("--format", type=report, default="text", help="Of the report on standard output.")
    add("--steps", type=int, default=8, help="Optimizer steps to time.")
    add("--warmup", type=int, default=3, help="Optimizer steps before those.")
    add(
        "--measure_allocator",
        type=bool,
        default=True,
        help="On a CPU, run the steps again with the settings of glibc's allocator.",
    )


def _add_plan_options(add: Callable[..., Any]) -> None:
    report: Any = Literal["text", "json"]
    add("--format", type=report, default="text", help="Of the report on standard output.")
    add("--world_size", type=int | None, default=None, help="Ranks; those of the recipe if not.")
    add("--device", type=str, default="h100", help="Short name of the device of every rank.")
    add("--tokens", type=int | None, default=None, help="Of the run, where the recipe has none.")


def _vocab_size(data: Any) -> int | None:
    return getattr(data, "vocab_size", None)


def _prepare(cli: RecipeCLI) -> int:
    data = cli.datamodule
    data.prepare_data()
    data.setup("fit")
    for name in ("train_store", "val_store"):
        store = getattr(data, name, None)
        if store is None:
            continue
        if cli.config["verify"]:
            store.verify()
        # Only a store of ours has checksums.
        checked = ", checksums right" if store.meta else ", ids within the vocabulary"
        checked = checked if cli.config["verify"] else ""
        size = f"{len(store):,} documents, {store.num_tokens:,} tokens{checked}"
        sys.stderr.write(f"{name}: {size}: {store.path}\n")
    sys.stderr.write(f"vocabulary: {data.vocab_size:,} ids\n")
    return 0


def _probe_output(trainer: L.Trainer) -> None:
    """Fail now, not after an hour, when a folder the run will write to cannot be written."""
    folders = {Path(trainer.default_root_dir)}
    folders |= {
        Path(folder)
        for callback in trainer.checkpoint_callbacks
        if (folder := getattr(callback, "dirpath", None))
    }
    folders |= {Path(log.save_dir) for log in trainer.loggers if log.save_dir}
    if not trainer.is_global_zero:
        return
    for folder in sorted(folders):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # A file of its own, whatever lies there: the name cannot be guessed, no link followed.
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".write-probe-") as probe:
                probe.write(b"x")
        except OSError as error:
            raise FileAccessError(
                f"the output folder {folder} cannot be written ({error.strerror}); set "
                f"trainer.default_root_dir, or the logger's or checkpoint callback's folder, to "
                f"one that can"
            ) from error
