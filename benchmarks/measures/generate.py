"""`generate`: greedy decoding with a cache of keys and values, tokens/s."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.pacing import Pacer, UnavailableError
from benchmarks.plan import Pacing, Plan, against
from benchmarks.race import Task
from benchmarks.training import TrainOptions, random_tokens
from benchmarks.workloads import WORKLOADS

PACE = Pacing(warmup=1, rounds=5, steps=1)
PRECISIONS = ("32-true", "bf16-true")


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--workload", choices=sorted(WORKLOADS), default="M")
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16-true")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=128)


def plan(args: Namespace, folder: Path) -> list[Plan]:
    """Plan a race for each batch size."""
    context = WORKLOADS[args.workload].seq_len
    prompt, new = args.prompt_tokens, args.new_tokens
    if args.quick or prompt + new > context:
        prompt, new = context // 4, context // 2
    plans = []
    for batch in args.batches:
        options = {
            "model": {"workload": args.workload, "precision": args.precision, "batch": batch}
            | {"device": args.device},
            "prompt_tokens": prompt,
            "new_tokens": new,
        }
        tasks = [
            Task(
                label,
                f"{__name__}:run",
                {**options, "decoder": label},
                args.device,
                args.threads,
                args.python.get(label),
            )
            for label in DECODERS
        ]
        settings = {
            "name_parts": [args.workload, args.precision, f"batch{batch}", args.device],
            **{"workload": args.workload, "precision": args.precision, "batch": batch},
            **{"prompt_tokens": prompt, "new_tokens": new},
        }
        title = (
            f"Generating with {args.workload} at batch {batch}: {new} tokens after {prompt}, "
            f"greedy, {args.precision}"
        )
        pace, baselines = PACE.resolve(args), against("ours", tasks)
        plans.append(Plan("generate", title, "tokens/s", tasks, pace, settings, baselines))
    return plans


def run(options: dict[str, Any], pacer: Pacer) -> None:
    """Continue the same prompts, again and again."""
    settings = TrainOptions(**options["model"])
    prompts = random_tokens(settings)[: settings.rows, : options["prompt_tokens"]]
    prompts = prompts.to(settings.device)
    new = options["new_tokens"]
    decode = DECODERS[options["decoder"]](settings)
    pacer.units_per_step = len(prompts) * new
    with torch.no_grad():
        continued = decode(prompts, new)
        assert continued.shape == (len(prompts), prompts.shape[1] + new)
        pacer.facts["first_ids"] = continued[0, prompts.shape[1] :][:16].tolist()
        for _ in range(pacer.total_steps):
            decode(prompts, new)
            pacer.step_done()


Decode = Callable[[Tensor, int], Any]


def _ours(options: TrainOptions) -> Decode:
    from benchmarks.weights import our_model
    from lightning_llm.generation import generate

    model = our_model(options).to(options.device, options.weight_dtype)
    return lambda prompts, new: generate(model, prompts, max_new_tokens=new)


def _hugging_face(options: TrainOptions) -> Decode:
    from benchmarks.weights import hugging_face_model

    model = hugging_face_model(options).to(options.device, options.weight_dtype).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return lambda prompts, new: model.generate(
        input_ids=prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=new,
        do_sample=False,
        use_cache=True,
    )


def _litgpt(options: TrainOptions) -> Decode:
    """Its model with its cache, in the loop that its own `generate` has, for a whole batch."""
    try:
        from benchmarks.contenders.litgpt_loop import build_model, renamed
        from benchmarks.weights import hugging_face_weights

        model = build_model(options.work)
    except ImportError as error:
        raise UnavailableError(f"{error}; pip install --no-deps litgpt") from error
    if not options.work.is_gpt2:
        model.load_state_dict(renamed(hugging_face_weights(options)))
    model.to(options.device, options.weight_dtype).eval()

    def decode(prompts: Tensor, new: int) -> Tensor:
        model.set_kv_cache(len(prompts), device=prompts.device, dtype=options.weight_dtype)
        ids, place = prompts, torch.arange(prompts.shape[1], device=prompts.device)
        tokens = prompts
        for step in range(new):
            logits = model(ids, place, input_pos_maxp1=prompts.shape[1] + step)
            ids = logits[:, -1].argmax(-1, keepdim=True)
            place = place[-1:] + 1
            tokens = torch.cat((tokens, ids), dim=1)
        model.clear_kv_cache()
        return tokens

    return decode


DECODERS: dict[str, Callable[[TrainOptions], Decode]] = {
    "ours": _ours,
    "transformers": _hugging_face,
    "litgpt": _litgpt,
}
