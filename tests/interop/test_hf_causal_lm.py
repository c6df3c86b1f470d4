"""HFCausalLM against the models' own loss, gradients and generation."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_modules import CONFIGS, VOCAB, batch, loader, module, trainer
from torch import Tensor
from transformers import AutoModelForCausalLM

from lightning_llm import CausalLM, HFCausalLM
from lightning_llm.interop.hf import from_hf_config
from lightning_llm.interop.hf.decoder import positions_in_documents


def own_loss(network: Any, rows: dict[str, Tensor]) -> Tensor:
    """The sum of token losses that ``transformers`` computes."""
    count = (rows["labels"][:, 1:] != -100).sum()
    return network(input_ids=rows["input_ids"], labels=rows["labels"]).loss * count


def gradients(network: Any, loss: Tensor) -> dict[str, Tensor]:
    network.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", CONFIGS)
def test_loss_and_gradients_are_those_of_transformers(name: str) -> None:
    lm, rows = module(name, loss_chunk_size=5), batch()
    assert lm.network.training
    wanted = own_loss(lm.network, rows)
    found, count = lm.compute_loss(rows)
    assert count == (rows["labels"][:, 1:] != -100).sum()
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    theirs, ours = gradients(lm.network, wanted), gradients(lm.network, lm.compute_loss(rows)[0])
    assert set(ours) == set(theirs)
    for key, gradient in theirs.items():
        torch.testing.assert_close(ours[key], gradient, rtol=1e-4, atol=1e-4, msg=key)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("gemma2", "final_logit_softcapping", 30.0),
        ("granite", "logits_scaling", 1.0),
        ("cohere", "logit_scale", 1.0),
    ],
)
def test_scales_and_caps_matter(name: str, field: str, value: float) -> None:
    rows = batch()
    lm = module(name)
    other = HFCausalLM({**CONFIGS[name], field: value})
    other.load_state_dict(lm.state_dict())
    assert (lm.compute_loss(rows)[0] - other.compute_loss(rows)[0]).abs() > 1


def test_a_scale_of_unknown_meaning_is_refused() -> None:
    """This architecture multiplies by the field that others divide by."""
    config = {**CONFIGS["granite"], "model_type": "hyperclovax", "logits_scaling": 4.0}
    with pytest.raises(ValueError, match=r"the loss would be wrong.*'logits_scaling': 4.0"):
        HFCausalLM(config)


def test_router_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="output_router_logits=True of model_type='mixtral'"):
        HFCausalLM({**CONFIGS["mistral"], "model_type": "mixtral", "output_router_logits": True})


def test_positions_start_anew() -> None:
    ids = torch.tensor([[0, 0, 1, 2, 2, 2], [-1, -1, -1, 0, 0, 0]])
    wanted = [[0, 1, 0, 0, 1, 2], [0, 1, 2, 0, 1, 2]]
    assert positions_in_documents(ids).tolist() == wanted


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral", "gemma2", "gpt_neox", "granitemoe"])
def test_packed_documents_do_not_see_each_other(name: str) -> None:
    lm = module(name).eval()
    documents = [torch.randint(2, VOCAB, (length,)) for length in (5, 1, 7)]
    targets = [torch.randint(2, VOCAB, (len(document),)) for document in documents]
    packed = {
        "input_ids": torch.cat(documents)[None],
        "shift_labels": torch.cat(targets)[None],
        "document_ids": torch.tensor([[0] * 5 + [1] + [2] * 7]),
    }
    alone = sum(
        lm.compute_loss({"input_ids": ids[None], "shift_labels": labels[None]})[0]
        for ids, labels in zip(documents, targets)
    )
    torch.testing.assert_close(lm.compute_loss(packed)[0], alone, rtol=1e-5, atol=1e-4)
    del packed["document_ids"]
    assert (lm.compute_loss(packed)[0] - alone).abs() > 0.01


def test_an_architecture_that_cannot_keep_documents_apart() -> None:
    config = {"model_type": "bloom", "vocab_size": VOCAB, "hidden_size": 32, "n_layer": 1}
    lm = HFCausalLM({**config, "n_head": 4, "bos_token_id": 0, "eos_token_id": 1})
    rows = batch()
    torch.testing.assert_close(lm.compute_loss(rows)[0], own_loss(lm.network, rows))
    rows["document_ids"] = torch.arange(12).expand(3, 12) // 6
    with pytest.raises(ValueError, match=r"'bloom'.* does not keep packed documents apart"):
        lm.compute_loss(rows)


def test_padding_on_the_left_changes_nothing() -> None:
    lm, rows = module().eval(), batch(1)
    padded = {key: torch.nn.functional.pad(value, (3, 0)) for key, value in rows.items()}
    padded["labels"][:, :4] = -100
    padded["attention_mask"] = torch.nn.functional.pad(torch.ones_like(rows["labels"]), (3, 0))
    torch.testing.assert_close(lm.compute_loss(padded)[0], lm.compute_loss(rows)[0])


def test_two_micro_batches_are_one_batch() -> None:
    """The gradient of a step is that of all its target tokens."""
    rows = batch(4)
    start = module()
    trained = []
    for parts in (1, 2):
        lm = module(optimizer=lambda groups: torch.optim.SGD(groups, lr=0.5))
        lm.load_state_dict(start.state_dict())
        size = 4 // parts
        batches = [{k: v[i * size : (i + 1) * size] for k, v in rows.items()} for i in range(parts)]
        run = trainer(accumulate_grad_batches=parts)
        run.fit(lm, loader(batches))
        assert run.global_step == 1
        trained.append(lm.state_dict())
    tokens = (rows["labels"][:, 1:] != -100).sum()
    wanted = gradients(start.network, own_loss(start.network, rows) / tokens)
    for name, gradient in wanted.items():
        stepped = start.network.get_parameter(name) - 0.5 * gradient
        for state in trained:
            torch.testing.assert_close(state[f"model.{name}"], stepped, rtol=1e-4, atol=1e-5)


def test_pretrained_weights_and_export(tmp_path: Path) -> None:
    lm = module("gemma2").eval()
    lm.save_pretrained(tmp_path / "a")
    again = HFCausalLM(tmp_path / "a").eval()
    assert next(again.parameters()).dtype == torch.float32
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "a").eval()
    rows = batch()
    with torch.no_grad():
        torch.testing.assert_close(again.compute_loss(rows)[0], lm.compute_loss(rows)[0])
        torch.testing.assert_close(own_loss(theirs, rows), lm.compute_loss(rows)[0])
    assert HFCausalLM(tmp_path / "a", dtype="bfloat16").network.dtype == torch.bfloat16


def test_checkpoint_is_plain_data() -> None:
    lm = module()
    rows = loader([batch()])
    run = trainer(max_steps=1)
    run.fit(lm, rows)
    file = io.BytesIO()
    torch.save(run._checkpoint_connector.dump_checkpoint(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert saved["lightning_llm"]["hf_config"]["model_type"] == "llama"
    with pytest.raises(ValueError, match="model_type is 'llama' in the checkpoint, 'gpt2' here"):
        module("gpt2").on_load_checkpoint(saved)


def test_flops_are_those_of_our_own_model() -> None:
    lm = module("llama")
    ours = CausalLM(from_hf_config(lm._config_dict()))
    for causal in (False, True):
        wanted = ours.flops_per_token(48, causal=causal)
        assert lm.flops_per_token(48, causal=causal) == wanted
    assert module("llama-tied").flops_per_token(48) == lm.flops_per_token(48)


@pytest.mark.parametrize(
    ("source", "error", "match"),
    [
        ({"model_type": "llamma"}, ValueError, "model_type='llamma', which transformers does not"),
        ({"vocab_size": 3}, ValueError, "model_type=None"),
        ({"model_type": "vit"}, ValueError, "'vit' has no causal language model"),
        ("no/such/model/at/all", FileNotFoundError, "neither a folder nor a model"),
    ],
)
def test_what_is_no_model(source: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        HFCausalLM(source)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        HFCausalLM(tmp_path)
    with pytest.raises(ValueError, match="dtype='int8' is not one of"):
        module(dtype="int8")


def test_weights_that_lack_tensors(tmp_path: Path) -> None:
    lm = module("llama")
    kept = {k: v for k, v in lm.network.state_dict().items() if "layers.1.mlp.up" not in k}
    lm.network.save_pretrained(tmp_path, state_dict=kept)
    with pytest.raises(ValueError, match=r"lack 1 tensors .*layers\.1\.mlp\.up_proj\.weight"):
        HFCausalLM(tmp_path)


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    lm = module("llama")
    with torch.no_grad():
        lm.network.model.norm.weight[3] = float("nan")
    lm.network.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"not finite: 1 of .* model\.norm\.weight .* diverged"):
        HFCausalLM(tmp_path)


@pytest.mark.parametrize("name", ["llama-tied", "gpt2"])
def test_a_tied_head_is_not_missed(name: str, tmp_path: Path) -> None:
    lm = module(name)
    lm.network.save_pretrained(tmp_path)
    assert HFCausalLM(tmp_path).network.lm_head.weight is not None
