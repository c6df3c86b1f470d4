"""Text from HFCausalLM: transformers' tokens, our options; the command line on its checkpoints."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_modules import CONFIGS, module, trainer
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_llm import HFCausalLM
from lightning_llm.cli import main
from lightning_llm.data import TokenizerSpec
from lightning_llm.data.tokenizer_training import train_tokenizer

TEXT = "the cat sat on the mat and two old dogs slept near it all night long "


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(TokenizerSpec("char"), iter([TEXT * 3]))


@pytest.fixture
def lm(tokenizer: Any) -> HFCausalLM:
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    lm = HFCausalLM({**CONFIGS["llama"], **ends}, vocab_size=len(tokenizer))
    lm.tokenizer = tokenizer
    return lm


@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "length_penalty": 0.5}])
def test_ids_are_those_of_transformers(lm: HFCausalLM, options: dict[str, Any]) -> None:
    ids = torch.randint(2, 16, (2, 5))
    found = lm.generate(ids, max_new_tokens=7, **options)
    assert lm.training  # as before
    lm.eval()
    padding = {"pad_token_id": lm.tokenizer.pad_token_id}
    wanted = lm.network.generate(ids, max_new_tokens=7, do_sample=False, **padding, **options)
    assert torch.equal(found, wanted)
    assert found.shape[0] == 2
    assert torch.equal(found[:, :5], ids)


def test_texts_of_a_batch_are_those_of_each_alone(lm: HFCausalLM) -> None:
    prompts = ["the cat", "on", "two old dogs slept"]
    together = lm.generate(prompts, max_new_tokens=8)
    assert together == [lm.generate([prompt], max_new_tokens=8)[0] for prompt in prompts]
    [ids] = lm.generate(torch.tensor([lm.tokenizer("on")["input_ids"]]), max_new_tokens=8).tolist()
    assert "on" + together[1] == lm.tokenizer.decode(ids, skip_special_tokens=True)


def test_sampling_is_repeatable_and_leaves_the_generator_alone(lm: HFCausalLM) -> None:
    options = {"max_new_tokens": 12, "temperature": 1.0}
    state = torch.random.get_rng_state()
    first = lm.generate(["the"], seed=3, **options)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert lm.generate(["the"], seed=3, **options) == first
    assert lm.generate(["the"], seed=4, **options) != first
    assert lm.generate(["the"], seed=3, top_k=1, **options) == lm.generate(
        ["the"], max_new_tokens=12
    )


def test_settings_of_the_model_do_not_apply(lm: HFCausalLM) -> None:
    before = lm.generate(["the"], max_new_tokens=8)
    lm.network.generation_config.repetition_penalty = 5.0
    lm.network.generation_config.do_sample = True
    assert lm.generate(["the"], max_new_tokens=8) == before


def test_stop_strings_end_a_text(lm: HFCausalLM) -> None:
    options = {"max_new_tokens": 12, "temperature": 1.5, "seed": 5}
    [whole] = lm.generate(["the"], **options)
    assert len(whole) > 8
    stop = whole[4:6]
    [text] = lm.generate(["the"], stop=stop, **options)
    ids = torch.tensor([lm.tokenizer("the")["input_ids"]])
    assert lm.generate(ids, stop=[stop], **options).shape[1] == 3 + whole.index(stop) + 2
    assert text == whole[: whole.index(stop)]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}])
def test_each_prompt_has_its_own_room(tokenizer: Any, kind: str, options: dict[str, Any]) -> None:
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    torch.manual_seed(1)
    lm = HFCausalLM({**CONFIGS[kind], **ends}, vocab_size=len(tokenizer))
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.eos_token = None  # every continuation takes all the room it has
    lm.tokenizer = tokenizer
    longest = lm.size_limits()[1]
    assert longest is not None
    lengths = [3, longest - 2, longest - 30, longest - 1, 5, longest - 2]
    prompts = [(TEXT * 9)[number : number + length] for number, length in enumerate(lengths)]
    network = lm.eval().network
    found = lm.generate(prompts, max_new_tokens=20, **options)
    for prompt, length, text in zip(prompts, lengths, found, strict=True):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        room = min(20, longest - length)
        wanted = network.generate(
            ids, max_new_tokens=room, do_sample=False, pad_token_id=0, **options
        )[0]
        assert len(wanted) == length + room
        assert prompt + text == tokenizer.decode(wanted, skip_special_tokens=True)


def test_a_batch_ends_at_the_longest_sequence_of_the_model(lm: HFCausalLM) -> None:
    ids = torch.randint(2, 16, (1, 60))
    assert lm.generate(ids, max_new_tokens=50, eos_token_id=0).shape == (1, 64)
    with pytest.raises(ValueError, match="has 64 tokens and the model's max_seq_len is 64"):
        lm.generate(torch.randint(2, 16, (1, 64)))
    with pytest.raises(TypeError, match="tokenizer is None"):
        module().generate(["the"])
    assert lm.generate([]) == []


def test_command_line_generates_and_exports(
    lm: HFCausalLM, tokenizer: Any, tmp_path: Path, capsys: Any
) -> None:
    run = trainer()
    run.strategy.connect(lm)
    run.strategy._lightning_module = lm
    path = tmp_path / "hf.ckpt"
    run.save_checkpoint(path)
    words = ["--checkpoint", str(path), "--prompt", "the cat", "--temperature", "0"]
    assert main(["generate", *words, "--max_new_tokens", "6", "--device", "cpu"]) == 0
    assert capsys.readouterr().out == lm.generate(["the cat"], max_new_tokens=6)[0] + "\n"
    assert main(["export", "--checkpoint", str(path), "--output", str(tmp_path / "out")]) == 0
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = torch.randint(2, 16, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, lm.eval().network(ids).logits)
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
