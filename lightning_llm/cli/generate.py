"""``lightning-llm generate``: continue prompts with a checkpoint or an exported model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from lightning_llm.cli.parse_errors import command_parser
from lightning_llm.errors import InvalidValueError


def generate_parser() -> Any:
    """Return the parser of the command."""
    parser = command_parser("generate", "Continue prompts with a trained model.")
    add = parser.add_argument
    add(
        "--checkpoint",
        required=True,
        help="A .ckpt file, a Hugging Face model directory, or a run.",
    )
    add("--prompt", action="append", required=True, help="Text to continue; may be repeated.")
    add("--max_new_tokens", type=int, default=128)
    add(
        "--temperature",
        type=float | None,
        default=None,
        help="0 takes the likeliest token each time. Default: 0.8, with beams 0.",
    )
    add("--top_k", type=int | None, default=None)
    add("--top_p", type=float | None, default=None)
    add("--num_beams", type=int, default=1)
    add("--stop", type=list[str] | None, default=None, help="Strings that end a completion.")
    add(
        "--eos_token_id",
        type=int | list[int] | None,
        default=None,
        help="Ids that end a completion; [] for none. Default: those of the tokenizer, its chat "
        "template and generation_config.json.",
    )
    add("--seed", type=int | None, default=None)
    add("--device", type=str | None, default=None, help="cpu, cuda, cuda:1; default: cuda if any.")
    return parser


def run_generate(arguments: Sequence[str]) -> int:
    """Write one completion per prompt to standard output, everything else to standard error."""
    options = generate_parser().parse_args(list(arguments))
    # After the arguments: --help and a misspelt option need no torch.
    from lightning_llm.callbacks._console import printable
    from lightning_llm.cli.checkpoint import load_trained

    module = load_trained(options.checkpoint, device=options.device)
    if module.tokenizer is None:
        raise InvalidValueError(
            f"{options.checkpoint} holds no tokenizer, so text cannot be generated; it was trained "
            f"on data without one"
        )
    limit = getattr(module.model.config, "max_seq_len", None)
    if limit is not None and options.max_new_tokens >= limit:
        sys.stderr.write(
            f"prompt and completion together end at the model's max_seq_len={limit} tokens\n"
        )
    temperature = options.temperature
    if temperature is None:
        temperature = 0.8 if options.num_beams == 1 else 0.0
    completions = module.generate(
        list(options.prompt),
        max_new_tokens=options.max_new_tokens,
        temperature=temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        num_beams=options.num_beams,
        stop=options.stop,
        eos_token_id=options.eos_token_id,
        seed=options.seed,
    )
    for completion in completions:
        # A file or a pipe gets the text as it is.
        shown = printable(completion) if sys.stdout.isatty() else completion
        sys.stdout.write(shown + "\n")
    return 0
