"""What to switch on or mend next: one rule per function, the most valuable first.

A rule reads the report and returns a sentence that names the key to set, or ``None``.
"""

from __future__ import annotations

from lightning_llm.diagnostics.allocator import settings_for_shell
from lightning_llm.diagnostics.report import Report

_DATA_WAIT = 0.05
_PADDING = 0.10
_CALLBACK = 0.05
_OPTIMIZER = 0.30
_ALLOCATOR_GAIN = 0.05  # below it, two short runs do not tell
_SMALL_MICRO_BATCH_TOKENS = 2048


def advise(report: Report) -> list[str]:
    """Return what to do next; empty when nothing was found."""
    return [text for rule in RULES if (text := rule(report)) is not None]


def mend_documents(report: Report) -> str | None:
    """A model that sees across documents the batch tells apart learns from the wrong text."""
    if not report.document_leak:
        return None
    return (
        "documents leak: the batch has document_ids or position_ids, and tokens see the document "
        "before theirs all the same. Give the attention a mask of documents, as "
        "lightning_llm.CausalLM does"
    )


def mend_causality(report: Report) -> str | None:
    """A model that sees the future has a loss that means nothing."""
    if report.causal is not False:
        return None
    return (
        "tokens see what comes after them: a change of later tokens changes earlier states. Make "
        "the attention causal; until then the loss means nothing"
    )


def use_bf16(report: Report) -> str | None:
    """bfloat16 matrix units stand idle in float32."""
    setup = report.setup
    if not (setup.precision.startswith("32") and setup.has_fast_bf16):
        return None
    return (
        f"precision is {setup.precision} and this device multiplies bfloat16 in hardware: set "
        f"trainer.precision to bf16-mixed (${{fast_precision:}} in a recipe), or "
        f"trainer.plugins to lightning_llm.plugins.BF16MixedPrecision, which allows fused "
        f"optimizers together with clipping"
    )


def use_compile(report: Report) -> str | None:
    """Compiled blocks fuse what eager mode reads and writes operation by operation."""
    setup = report.setup
    if setup.compiles or not setup.can_compile:
        return None
    name = "DDPStrategy" if setup.world_size > 1 else "SingleDeviceStrategy"
    if setup.strategy == "FSDP2Strategy":
        name = setup.strategy
    return (
        f"the blocks are not compiled: set trainer.strategy to class_path: "
        f"lightning_llm.strategies.{name} with init_args: compile: true (costs a minute or less "
        f"at the start)"
    )


def tune_allocator(report: Report) -> str | None:
    """What glibc's own settings bring on a CPU."""
    gain, setup = report.allocator_speedup, report.setup
    if setup.device_type != "cpu" or setup.allocator != "glibc":
        return None
    if gain is None:
        return (
            f"the C library's allocator returns memory to the system in every step. Start the "
            f"command with {settings_for_shell()} in front; doctor --measure_allocator true "
            f"measures what that brings"
        )
    if gain < 1 + _ALLOCATOR_GAIN:
        return None
    return (
        f"the C library's allocator returns memory to the system in every step: with its settings "
        f"the same steps ran {gain:.2f} times as fast (one short run each: load on the machine "
        f"distorts it). Start the command with "
        f"{settings_for_shell()} in front"
    )


def mend_host_syncs(report: Report) -> str | None:
    """A host that waits cannot queue the next step."""
    if not report.host_syncs_per_step:
        return None
    places = [place for place in report.host_sync_places if place["between_log_points"]]
    named = f": {places[0]['what']} at {places[0]['where']}" if places else ""
    if report.setup.log_every_n_steps == 1:
        return (
            f"the host waits {report.host_syncs_per_step:.3g} times per step{named}. Every step is "
            f"a log point: raise trainer.log_every_n_steps"
        )
    return (
        f"the host waits for the device {report.host_syncs_per_step:.3g} times per step between "
        f"log points{named}. Keep values on the device and read them at log points; leave "
        f"prog_bar=True out of self.log in training_step"
    )


def mend_graph_breaks(report: Report) -> str | None:
    """Each break ends a graph: nothing is fused across it."""
    if not report.graph_breaks:
        return None
    reason = f": {report.break_reasons[0]}" if report.break_reasons else ""
    return (
        f"compiled code returns to Python in {report.graph_breaks} places{reason}. Move this out "
        f"of the blocks; fullgraph=True makes a break an error"
    )


def mend_recompiles(report: Report) -> str | None:
    """Compilation after the warm-up costs seconds each time."""
    if not report.recompiles:
        return None
    reason = f": {report.recompile_reasons[0]}" if report.recompile_reasons else ""
    return (
        f"{report.recompiles} graphs were compiled after the warm-up{reason}. If shapes differ "
        f"from batch to batch, pack or pad to one length and set drop_last: true"
    )


def load_ahead(report: Report) -> str | None:
    """Training that waits for data."""
    share, workers = report.share_of("data"), report.setup.num_workers
    if share <= _DATA_WAIT:
        return None
    more = "1" if not workers else str(2 * workers)
    return (
        f"training waits for data {share:.0%} of the time: raise num_workers of the data to "
        f"{more}, and prepare in advance what is computed per batch (lightning-llm prepare)"
    )


def pack_rows(report: Report) -> str | None:
    """Padding costs as much as text."""
    padding = report.padding_fraction
    if padding is None or padding <= _PADDING:
        return None
    how = "set packing: best_fit" if report.setup.packing else "pack several documents into a row"
    return (
        f"{padding:.0%} of all positions are padding: {how} (lightning_llm.TextDataModule fills "
        f"rows without letting documents see each other)"
    )


def pin_memory(report: Report) -> str | None:
    """Pageable memory is copied twice, and the copy is waited for."""
    if report.setup.device_type != "cuda" or report.setup.is_pinned is not False:
        return None
    return "batches lie in pageable memory: set pin_memory=True in the DataLoader"


def fuse_optimizer(report: Report) -> str | None:
    """One kernel for all parameters; on a CPU it brings nothing."""
    setup = report.setup
    if setup.device_type != "cuda" or setup.is_fused is not False:
        return None
    return (
        f"{setup.optimizer} updates parameters in several passes: use lightning_llm.optim.AdamW, "
        f"or give it fused: true"
    )


def shorten_optimizer(report: Report) -> str | None:
    """Updates that are a large share of a step come too often for so little text."""
    share = report.share_of("optimizer")
    if share <= _OPTIMIZER:
        return None
    return (
        f"the optimizer takes {share:.0%} of a step: more text per step "
        f"(micro_batch_size, trainer.accumulate_grad_batches) makes it a smaller part"
    )


def enlarge_micro_batch(report: Report) -> str | None:
    """Accumulation of small micro-batches where larger ones fit."""
    setup, memory = report.setup, report.peak_memory_bytes
    if setup.accumulate == 1 or setup.micro_batch_size is None or setup.seq_len is None:
        return None
    if setup.micro_batch_size * setup.seq_len >= _SMALL_MICRO_BATCH_TOKENS:
        return None
    if setup.device_memory_bytes and memory and 2 * memory > setup.device_memory_bytes:
        return None
    return (
        f"{setup.accumulate} micro-batches of {setup.micro_batch_size} rows make a step: raise "
        f"micro_batch_size to {2 * setup.micro_batch_size} and halve "
        f"trainer.accumulate_grad_batches; the gradient stays the same"
    )


def drop_checkpointing(report: Report) -> str | None:
    """Recomputation saves memory that is not needed."""
    setup, memory = report.setup, report.peak_memory_bytes
    if setup.activation_checkpointing == "none" or not setup.device_memory_bytes or not memory:
        return None
    if 2 * memory > setup.device_memory_bytes:
        return None
    return (
        f"activation_checkpointing: {setup.activation_checkpointing} computes blocks again, and "
        f"half of the memory is free: set it to none"
    )


def round_vocabulary(report: Report) -> str | None:
    """Matrix units work on multiples of 64."""
    size = report.setup.vocab_size
    if report.setup.device_type != "cuda" or size is None or size % 64 == 0:
        return None
    return (
        f"the vocabulary of {size:,} ids is no multiple of 64, which slows the output head: set "
        f"the model's vocab_size to {-(-size // 64) * 64:,}; ids beyond the tokenizer's are "
        f"never used"
    )


def quiet_callbacks(report: Report) -> str | None:
    """A callback that takes part of every step."""
    step = report.step_seconds
    slow = {
        k: v / step for k, v in report.callback_seconds.items() if step and v / step > _CALLBACK
    }
    if not slow:
        return None
    named = ", ".join(f"{name} {share:.0%}" for name, share in slow.items())
    return f"callbacks take a part of every step: {named}. Have them work less often"


def use_all_cores(report: Report) -> str | None:
    """Threads that torch does not start."""
    setup = report.setup
    if setup.device_type != "cpu" or setup.threads >= setup.cores or setup.world_size > 1:
        return None
    return (
        f"torch computes with {setup.threads} of {setup.cores} cores: start the command with "
        f"OMP_NUM_THREADS={setup.cores}"
    )


def stop_checking(report: Report) -> str | None:
    """Modes for finding faults, left on."""
    found = []
    if report.setup.detects_anomalies:
        found.append("trainer.detect_anomaly")
    if report.setup.is_deterministic:
        found.append("trainer.deterministic")
    return f"set {' and '.join(found)} to false: each slows every step" if found else None


RULES = (
    mend_causality,
    mend_documents,
    stop_checking,
    use_bf16,
    use_compile,
    mend_graph_breaks,
    mend_recompiles,
    mend_host_syncs,
    load_ahead,
    pack_rows,
    use_all_cores,
    tune_allocator,
    fuse_optimizer,
    enlarge_micro_batch,
    shorten_optimizer,
    drop_checkpointing,
    round_vocabulary,
    pin_memory,
    quiet_callbacks,
)
