"""HFCausalLM with adapters: what is trained, what a checkpoint holds, what is exported."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_modules import batch, loader, module, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from transformers import AutoModelForCausalLM

from lightning_llm import CausalLM, HFCausalLM
from lightning_llm.interop.hf.causal_lm import restore_hf_causal_lm

pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")

LORA = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"]}
KINDS = {"lora": LORA, "dora": {**LORA, "use_dora": True}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    module().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def trained(folder: Path, tmp_path: Path, peft: Any) -> tuple[HFCausalLM, Path]:
    """A module after three steps, and its checkpoint."""
    lm = HFCausalLM(folder, peft=peft, optimizer=lambda groups: torch.optim.Adam(groups, lr=0.1))
    saving = ModelCheckpoint(tmp_path / "checkpoints", filename="last")
    run = trainer(max_steps=3, enable_checkpointing=True, callbacks=[saving])
    run.fit(lm, loader([batch() for _ in range(3)]))
    return lm.eval(), tmp_path / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize("kind", KINDS)
def test_only_adapters_are_trained_and_saved(folder: Path, tmp_path: Path, kind: str) -> None:
    lm, path = trained(folder, tmp_path, KINDS[kind])
    base = module_weights(HFCausalLM(folder))
    saved = torch.load(path, weights_only=True)
    assert saved["state_dict"]
    assert all("lora_" in name for name in saved["state_dict"])
    for name, weight in base.items():
        kept = lm.network.state_dict()
        twin = name if name in kept else name.replace(".weight", ".base_layer.weight")
        assert torch.equal(kept[twin], weight)
    rows = batch()
    again = restore_hf_causal_lm(saved).eval()
    torch.testing.assert_close(again.compute_loss(rows)[0], lm.compute_loss(rows)[0])
    plain = HFCausalLM(folder).eval().compute_loss(rows)[0]
    assert (plain - lm.compute_loss(rows)[0]).abs() > 0.01


def module_weights(lm: HFCausalLM) -> dict[str, torch.Tensor]:
    return lm.network.state_dict()


@pytest.mark.parametrize("kind", KINDS)
def test_exports_merged_or_for_peft(folder: Path, tmp_path: Path, kind: str) -> None:
    from peft import PeftModel

    lm, _ = trained(folder, tmp_path, KINDS[kind])
    ids = batch()["input_ids"]
    with torch.no_grad():
        wanted = lm.network(input_ids=ids).logits
    before = {name: weight.clone() for name, weight in lm.state_dict().items()}
    lm.save_pretrained(tmp_path / "merged")
    lm.save_pretrained(tmp_path / "adapters", merge=False)
    assert all(torch.equal(weight, before[name]) for name, weight in lm.state_dict().items())
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    base = AutoModelForCausalLM.from_pretrained(folder)
    with_peft = PeftModel.from_pretrained(base, tmp_path / "adapters").eval()
    with torch.no_grad():
        torch.testing.assert_close(merged(input_ids=ids).logits, wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(with_peft(input_ids=ids).logits, wanted)
    for build in (HFCausalLM, CausalLM.from_pretrained):
        with pytest.raises(FileNotFoundError, match="holds adapters without their model"):
            build(tmp_path / "adapters")


def test_resume_goes_on_with_the_adapters(folder: Path, tmp_path: Path) -> None:
    lm, path = trained(folder, tmp_path, LORA)
    again = HFCausalLM(folder, peft=LORA)
    run = trainer(max_steps=3)
    run.fit(again, loader([batch()]), ckpt_path=path, weights_only=True)
    for name, weight in lm.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)
    other = HFCausalLM(folder, peft={**LORA, "target_modules": ["q_proj"]})
    with pytest.raises(ValueError, match=r"adapters are others than the module's.*left over"):
        trainer(max_steps=3).fit(other, loader([batch()]), ckpt_path=path, weights_only=True)
    with pytest.raises(ValueError, match="this module has none"):
        HFCausalLM(folder).on_load_checkpoint(torch.load(path, weights_only=True))


def test_a_config_object_and_a_trainable_head(folder: Path) -> None:
    from peft import LoraConfig

    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    lm, rows = HFCausalLM(folder, peft=config), batch()
    loss, _ = lm.compute_loss(rows)
    loss.backward()
    copied = lm.network.lm_head.modules_to_save["default"].weight
    assert copied.grad is not None
    assert lm.network.lm_head.original_module.weight.grad is None
    with torch.no_grad():
        copied.mul_(2.0)
    assert (lm.compute_loss(rows)[0] - loss).abs() > 0.1


def test_frozen_weights_have_no_gradient_of_their_own(folder: Path) -> None:
    full, adapters = HFCausalLM(folder), HFCausalLM(folder, peft=LORA)
    assert adapters.flops_per_token(8) < 0.8 * full.flops_per_token(8)


@pytest.mark.parametrize(
    ("peft", "match"),
    [
        ({"peft_type": "LORRA"}, r"peft_type='LORRA' is not one of .*LORA"),
        ({**LORA, "target_modules": ["lm_head"]}, "name them in modules_to_save"),
        (
            {**LORA, "target_modules": ["q_proj"], "trainable_token_indices": {"lm_head": [1]}},
            "modules_to_save, not in .* or trainable_token",
        ),
        ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2}, "PROMPT_TUNING learns a prompt"),
    ],
)
def test_what_cannot_be_trained(folder: Path, peft: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        HFCausalLM(folder, peft=peft)


def test_adapters_of_new_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="peft trains adapters of pretrained weights"):
        module(peft=LORA)


def test_the_extra_is_named_where_peft_is_missing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-llm\[peft\]'"):
        HFCausalLM(folder, peft=LORA)
