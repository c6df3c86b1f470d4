"""Exports and checkpoints of HFCausalLM give the trained model again, or there are none."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_modules import CONFIGS, batch, module
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_llm import CausalLM, HFCausalLM
from lightning_llm.callbacks import HFExport
from lightning_llm.data import TokenizerSpec
from lightning_llm.data.tokenizer_training import train_tokenizer
from lightning_llm.interop.hf.causal_lm import restore_hf_causal_lm
from lightning_llm.models import TransformerConfig
from lightning_llm.plugins.precision.float8_linear import Float8Linear, to_float8

pytest.importorskip("peft")
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft.*"),
]

IDS = batch()["input_ids"]
LORA: dict[str, Any] = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj", "v_proj"]}
NITER = {**LORA, "init_lora_weights": "pissa_niter_4"}
KINDS: dict[str, dict[str, Any]] = {
    "pissa_niter": NITER,
    "pissa": {**LORA, "init_lora_weights": "pissa"},
    "olora": {**LORA, "init_lora_weights": "olora"},
    "orthogonal": {**LORA, "init_lora_weights": "orthogonal"},
    "rslora": {**LORA, "use_rslora": True},
    "biases": {**LORA, "bias": "all"},
    "tokens": {**LORA, "trainable_token_indices": [1, 5]},
    "replicated": {**LORA, "layer_replication": [[0, 2], [0, 2]]},
    "ia3": {"peft_type": "IA3", "target_modules": ["v_proj"], "feedforward_modules": []},
    "vera": {"peft_type": "VERA", "r": 4, "target_modules": ["q_proj"]},
    "fourier": {"peft_type": "FOURIERFT", "n_frequency": 9, "target_modules": ["q_proj"]},
    "norms": {"peft_type": "LN_TUNING", "target_modules": ["norm", "input_layernorm"]},
    "adalora": {"peft_type": "ADALORA", "total_step": 9, "target_modules": ["q_proj"]},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bases")
    for name in ("llama", "llama-tied"):
        torch.manual_seed(2)
        module(name).save_pretrained(directory / name)
    return directory


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    lines = [f"They didn't train {i * 12345} models in {1900 + i}.\n" for i in range(60)]
    return train_tokenizer(TokenizerSpec("bpe", vocab_size=280), iter(lines))


def moved(folder: Path, peft: dict[str, Any], seed: int = 0) -> HFCausalLM:
    """A module whose trained weights are not where they started."""
    torch.manual_seed(seed)
    lm = HFCausalLM(folder, peft=copy.deepcopy(peft)).eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    return lm


def logits_of(network: Any) -> Tensor:
    with torch.no_grad():
        return network.eval()(input_ids=IDS).logits


def checkpoint(lm: HFCausalLM) -> dict[str, Any]:
    contents: dict[str, Any] = {"state_dict": lm.state_dict()}
    lm.on_save_checkpoint(contents)
    file = io.BytesIO()
    torch.save(contents, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_and_exports_give_the_model_again(
    kind: str, folders: Path, tmp_path: Path
) -> None:
    lm = moved(folders / "llama", KINDS[kind])
    wanted = logits_of(lm.model)
    base = logits_of(AutoModelForCausalLM.from_pretrained(folders / "llama"))
    assert (wanted - base).abs().max() > 1e-2
    saved = checkpoint(lm)
    torch.manual_seed(123)  # what is drawn at random is drawn differently now
    assert torch.equal(logits_of(restore_hf_causal_lm(saved).model), wanted)
    resumed = HFCausalLM(folders / "llama", peft=copy.deepcopy(KINDS[kind]))
    resumed.on_load_checkpoint(saved)
    resumed.load_state_dict(saved["state_dict"], strict=resumed.strict_loading)
    assert torch.equal(logits_of(resumed.model), wanted)
    lm.save_pretrained(tmp_path / "merged")
    whole = logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    torch.testing.assert_close(whole, wanted, rtol=1e-4, atol=1e-4)


def test_plain_adapters_alone_are_kept(folders: Path) -> None:
    lm = moved(folders / "llama", LORA)
    lm.model.base_model.model.model.layers[0].requires_grad_(False)
    assert len(checkpoint(lm)["state_dict"]) == 8  # of two layers, whatever is trained now
    kept = checkpoint(moved(folders / "llama", NITER))["state_dict"]
    assert sum(name.endswith("base_layer.weight") for name in kept) == 4


def test_adapters_alone_of_a_random_start_are_refused(folders: Path, tmp_path: Path) -> None:
    lm = moved(folders / "llama", NITER)
    with pytest.raises(RuntimeError, match=r"init_lora_weights='pissa_niter_4'.*merge=True"):
        lm.save_pretrained(tmp_path / "out", merge=False)
    assert not list(tmp_path.iterdir())
    saved = checkpoint(lm)
    saved["state_dict"] = {k: v for k, v in saved["state_dict"].items() if "lora_" in k}
    with pytest.raises(ValueError, match="the checkpoint lacks frozen weights"):
        restore_hf_causal_lm(saved)  # as written by earlier versions
    saved = checkpoint(lm := moved(folders / "llama", KINDS["pissa"]))
    saved["state_dict"] = {k: v for k, v in saved["state_dict"].items() if "lora_" in k}
    assert torch.equal(logits_of(restore_hf_causal_lm(saved).model), logits_of(lm.model))


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"]},
    ],
    ids=["embedding", "saved-embedding", "saved-head", "none"],
)
def test_tied_weights_are_merged_each_by_itself(
    changes: dict[str, Any], folders: Path, tmp_path: Path
) -> None:
    lm = moved(folders / "llama-tied", {**LORA, **changes})
    wanted = logits_of(lm.model)
    lm.save_pretrained(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits_of(theirs), wanted, rtol=1e-4, atol=1e-4)
    untouched = changes == {"target_modules": ["q_proj"]}
    assert theirs.config.tie_word_embeddings is untouched
    assert torch.equal(logits_of(lm.model), wanted)  # the export worked on a copy


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_of_merged_weights_is_no_fault(dtype: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    HFCausalLM({**CONFIGS["llama"], "num_hidden_layers": 12}).save_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    lm = HFCausalLM(tmp_path / "base", dtype=dtype, peft={**LORA, "target_modules": "all-linear"})
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    exact = HFCausalLM(tmp_path / "base", peft={**LORA, "target_modules": "all-linear"})
    exact.network.load_state_dict(lm.network.state_dict())
    lm.save_pretrained(tmp_path / "half")
    exact.save_pretrained(tmp_path / "exact")
    half, whole = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype="auto").state_dict()
        for name in ("half", "exact")
    )
    for name, weight in half.items():
        assert weight.dtype == getattr(torch, dtype)
        assert torch.equal(weight, whole[name].to(weight.dtype)), name  # rounded once


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"init_lora_weights": "corda"}, "init_lora_weights='corda' computes the start"),
        ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens activates"),
        ({"rank": 3}, "no configuration of LORA: .*'rank'"),
        ({"target_modules": ["c_attn"]}, "cannot be put into LlamaForCausalLM: .*c_attn"),
    ],
)
def test_what_would_not_be_what_was_asked_for(
    changes: dict[str, Any], match: str, folders: Path
) -> None:
    with pytest.raises(ValueError, match=match):
        HFCausalLM(folders / "llama", peft={**LORA, **changes})


def test_what_cannot_be_merged_is_said_before_training(folders: Path, tmp_path: Path) -> None:
    lm = moved(folders / "llama", {**LORA, "lora_bias": True})
    for refuses in (lm.check_export, lm.save_pretrained):
        with pytest.raises(ValueError, match=r"LORA cannot be merged .*merge=False"):
            refuses(tmp_path / "out")
    lm.save_pretrained(tmp_path / "adapters", merge=False)
    base = folders / "llama"
    for refuses in (lm.check_export, lm.save_pretrained):
        with pytest.raises(ValueError, match="is the folder of the model that the adapters"):
            refuses(base)


def test_a_class_of_tokenizer_that_is_forced_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    lm = HFCausalLM({**CONFIGS["llama"], "model_type": "qwen2"}, vocab_size=len(tokenizer))
    lm.tokenizer = tokenizer
    for refuses in (lm.check_export, lm.save_pretrained):
        with pytest.raises(ValueError, match="AutoTokenizer loads as Qwen2Tokenizer, encodes"):
            refuses(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_difference_leaves_what_was_there(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = HFCausalLM(CONFIGS["llama"], vocab_size=len(tokenizer))
    lm.tokenizer = tokenizer
    lm.save_pretrained(tmp_path / "good")
    before = {path.name: path.read_bytes() for path in (tmp_path / "good").iterdir()}
    save = type(lm.network).save_pretrained

    def slip(network: Any, folder: Any, **options: Any) -> None:
        other = copy.deepcopy(network)
        with torch.no_grad():
            other.model.layers[1].mlp.up_proj.weight[3] += 0.2
        save(other, folder, **options)

    with torch.no_grad():
        lm.network.lm_head.weight *= 2
    with monkeypatch.context() as patch:
        patch.setattr(type(lm.network), "save_pretrained", slip)
        for name in ("good", "new"):
            with pytest.raises(RuntimeError, match="computes other logits"):
                lm.save_pretrained(tmp_path / name)
    with torch.no_grad():
        lm.network.model.norm.weight[3] = torch.inf
    with pytest.raises(ValueError, match=r"1 of the 32 values of model\.norm\.weight are NaN or"):
        lm.save_pretrained(tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["good"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "good").iterdir()} == before


def test_an_export_replaces_an_export_and_nothing_else(folders: Path, tmp_path: Path) -> None:
    lm = moved(folders / "llama", LORA)
    target = tmp_path / "out"
    target.mkdir()
    (target / "notes.txt").write_text("mine")
    lm.save_pretrained(target, merge=False)
    assert (target / "adapter_config.json").is_file()
    lm.save_pretrained(target)
    assert not list(target.glob("adapter*"))  # transformers would add them to the merged weights
    assert (target / "notes.txt").read_text() == "mine"
    theirs = AutoModelForCausalLM.from_pretrained(target)
    torch.testing.assert_close(logits_of(theirs), logits_of(lm.model), rtol=1e-4, atol=1e-4)


def test_a_tokenizer_given_to_the_callback_is_compared_too(tokenizer: Any, tmp_path: Path) -> None:
    export = HFExport(tmp_path, tokenizer=tokenizer)
    lm = HFCausalLM({**CONFIGS["llama"], "model_type": "qwen2"}, vocab_size=len(tokenizer))
    with export._own_tokenizer(lm), pytest.raises(ValueError, match="Qwen2Tokenizer"):
        lm.check_export(tmp_path)
    lm = HFCausalLM(CONFIGS["llama"], vocab_size=len(tokenizer))
    with export._own_tokenizer(lm):
        lm.save_pretrained(tmp_path)
    assert lm.tokenizer is None
    assert (
        AutoTokenizer.from_pretrained(tmp_path)("It's")["input_ids"]
        == (tokenizer("It's")["input_ids"])
    )


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "theirs"])
def test_layers_in_eight_bits_are_exported_as_what_they_hold(ours: bool, tmp_path: Path) -> None:
    if ours:
        config = TransformerConfig(vocab_size=64, n_layers=1, dim=32, n_heads=2, max_seq_len=32)
        lm: Any = CausalLM(config)
        layers = lm.model.blocks
    else:
        lm = HFCausalLM(CONFIGS["llama"])
        layers = lm.network.model.layers
    for layer in layers.modules():
        if isinstance(layer, torch.nn.Linear):
            to_float8(layer, "tensorwise")
    lm.save_pretrained(tmp_path)
    assert any(type(layer) is Float8Linear for layer in layers.modules())  # as before
