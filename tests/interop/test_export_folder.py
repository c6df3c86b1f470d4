"""Exports of folders of shards: the same weights, without holding the model."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from reference_models import randomised, token_ids
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_llm import CausalLM
from lightning_llm.cli import main
from lightning_llm.cli.export import export_folder
from lightning_llm.data import TokenizerSpec
from lightning_llm.data.tokenizer_training import train_tokenizer
from lightning_llm.interop.hf import decoder_tensors, export_stored
from lightning_llm.interop.hf.families import FAMILIES
from lightning_llm.models import TransformerConfig
from lightning_llm.plugins.io.sharded import ShardedCheckpoint, weight_key
from lightning_llm.plugins.io.sharded_save import save_sharded

SMALL: dict[str, Any] = {"vocab_size": 258, "max_seq_len": 64, "n_layers": 2, "dim": 32}


def saved(module: CausalLM, path: Path) -> Path:
    """A checkpoint as ranks would write it, by one that has everything."""
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    contents: dict[str, Any] = {}
    module.on_save_checkpoint(contents)
    tensors = {weight_key(name): value for name, value in module.state_dict().items()}
    try:
        save_sharded(tensors, {**contents, "state_dict": {}}, path)
    finally:
        dist.destroy_process_group()
    return path


@pytest.mark.parametrize(
    "fields",
    [{"n_kv_heads": 2}, {"tie_embeddings": False}, {"n_experts": 4}],
    ids=["llama", "untied", "mixtral"],
)
@pytest.mark.parametrize("check", [[], ["--check_logits", "true"]], ids=["weights", "logits"])
def test_transformers_computes_the_same(
    tmp_path: Path, fields: dict[str, Any], check: list[str], capsys: Any
) -> None:
    module = CausalLM(TransformerConfig(**SMALL, n_heads=4, **fields)).eval()
    randomised(module.model)
    module.tokenizer = train_tokenizer(TokenizerSpec("byte"), iter(["text"]))
    path = saved(module, tmp_path / "a.ckpt")
    arguments = ["export", "--checkpoint", str(path), "--output", str(tmp_path / "hf")]
    assert main([*arguments, "--max_shard_bytes", "40000", *check]) == 0
    assert ("logits" if check else "weights") in capsys.readouterr().err
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    ids = token_ids(258)
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, module.model(ids), rtol=1e-5, atol=1e-5)
    assert AutoTokenizer.from_pretrained(tmp_path / "hf")("text")["input_ids"] == [*b"text"]
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 1


def test_what_reads_back_differently_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(CausalLM(TransformerConfig(**SMALL, n_heads=4)), tmp_path / "a.ckpt")

    def slip(*arguments: Any) -> Any:
        for name, tensor in iterate(*arguments):
            yield name, tensor + 1e-3 if name.endswith("final_norm.weight") else tensor

    iterate = export_stored.iterate_from_hf
    monkeypatch.setattr(export_stored, "iterate_from_hf", slip)
    source = ShardedCheckpoint(path)
    with pytest.raises(RuntimeError, match=r"final_norm.weight reads back as another weight"):
        export_folder(source, tmp_path / "hf", 1 << 30)
    assert [file.name for file in tmp_path.iterdir()] == ["a.ckpt"]


PEAK = """
import sys
from pathlib import Path
import torch, transformers, torch.distributed.checkpoint
from lightning_llm.cli.export import export_folder
from lightning_llm.plugins.io.sharded import ShardedCheckpoint

def high_water():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

before = high_water()
export_folder(ShardedCheckpoint(Path(sys.argv[1])), Path(sys.argv[2]), 16 << 20)
print(high_water() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_the_model_is_never_whole(tmp_path: Path) -> None:
    config = TransformerConfig(vocab_size=4096, max_seq_len=64, n_layers=20, dim=512, n_heads=8)
    module = CausalLM(config)
    size = 4 * module.model.num_parameters() / 1024
    assert size > 200_000  # KiB
    path = saved(module, tmp_path / "a.ckpt")
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(path), str(tmp_path / "hf")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < size / 3


def test_logits_of_the_leading_layers_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table that is wrong both ways reads back the same weights."""
    windows: dict[str, Any] = {"sliding_window": 4, "sliding_window_pattern": 2, "qk_norm": True}
    module = CausalLM(TransformerConfig(**SMALL | {"n_layers": 3}, n_heads=4, **windows))
    randomised(module.model)
    path = saved(module, tmp_path / "a.ckpt")
    export_folder(ShardedCheckpoint(path), tmp_path / "hf", 1_000_000)

    def slip(ours: str, theirs: str) -> Any:
        swaps = {"q_norm": "k_norm", "k_norm": "q_norm"}
        name = next((name for name in swaps if name in theirs), "")
        return decoder_tensors.same(ours, theirs.replace(name, swaps.get(name, "")))

    family = FAMILIES["qwen3"]
    wrong = replace(family, tensors=partial(decoder_tensors.decoder_tensors, norm=slip))
    monkeypatch.setitem(FAMILIES, "qwen3", wrong)
    with pytest.raises(RuntimeError, match=r"computes other logits.*weight table of qwen3"):
        export_folder(ShardedCheckpoint(path), tmp_path / "hf", 1_000_000)
    export_folder(ShardedCheckpoint(path), tmp_path / "hf", 20_000)  # not even one layer fits
