"""``lightning-llm export``: a checkpoint in the Hugging Face layout, checked once written."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_llm.cli.parse_errors import command_parser

if TYPE_CHECKING:
    from lightning_llm.plugins.io.sharded import ShardedCheckpoint


def export_parser() -> Any:
    """Return the parser of the command."""
    parser = command_parser(
        "export", "Write a checkpoint as a directory that transformers' Auto classes load."
    )
    parser.add_argument("--checkpoint", required=True, help="A .ckpt file or folder.")
    parser.add_argument("--output", required=True, help="The directory to write.")
    parser.add_argument(
        "--check_logits",
        type=bool | None,
        default=None,
        help="Load the result with transformers and compare logits, which takes the memory of two "
        "models. By default it is done for a file; a folder of shards is written and compared "
        "weight by weight, and by the logits of as many leading layers as fit into "
        "max_shard_bytes, without holding the model.",
    )
    parser.add_argument(
        "--max_shard_bytes",
        type=int,
        default=5_000_000_000,
        help="Above it, weights of a CausalLM are split into several files; exporting a folder of "
        "shards holds as much in memory.",
    )
    return parser


def run_export(arguments: Sequence[str]) -> int:
    """Write the model so that `transformers` loads it, and check what was written."""
    options = export_parser().parse_args(list(arguments))
    # After the arguments: --help and a misspelt option need no torch.
    from lightning_llm.cli.checkpoint import load_trained, model_of_run
    from lightning_llm.language import CHECKPOINT_KEY
    from lightning_llm.module import CausalLM
    from lightning_llm.plugins.io.sealed_file import local_path
    from lightning_llm.plugins.io.sharded import ShardedCheckpoint, is_sharded

    path = model_of_run(local_path(options.checkpoint), exported=False)
    if options.check_logits is not True and is_sharded(path):
        source = ShardedCheckpoint(path)
        if "config" in source.plain.get(CHECKPOINT_KEY, {}):  # of a network of our own
            export_folder(source, Path(options.output), options.max_shard_bytes)
            sys.stderr.write(f"exported to {options.output}; weights equal those of {path}\n")
            return 0
    module = load_trained(path, device="cpu")
    if not isinstance(module, CausalLM):
        module.save_pretrained(options.output)
        sys.stderr.write(f"exported to {options.output}; logits equal those of the checkpoint\n")
        return 0
    from lightning_llm.interop.hf import save_pretrained

    check = options.check_logits is not False
    save_pretrained(
        module.model,
        options.output,
        tokenizer=module.tokenizer,
        generation_config=module.generation_config,
        check=check,
        max_shard_bytes=options.max_shard_bytes,
    )
    checked = "; logits equal those of transformers" if check else ""
    sys.stderr.write(f"exported to {options.output}{checked}\n")
    return 0


def export_folder(source: ShardedCheckpoint, directory: Path, max_shard_bytes: int) -> None:
    """Write a folder of shards tensor by tensor; optimizer states stay on the disk.

    Raises:
        DamagedCheckpointError: A file is not what was written.
        ExportError: No Hugging Face architecture expresses the configuration; names the fields.
    """
    from lightning_llm.interop.hf.export_stored import export_stored
    from lightning_llm.language import CHECKPOINT_KEY
    from lightning_llm.plugins.io.stored_weights import StoredWeights

    source.verify()
    weights = StoredWeights(source, "model.")
    saved = source.plain[CHECKPOINT_KEY]
    export_stored(saved, weights, weights.shapes, directory, max_shard_bytes=max_shard_bytes)
