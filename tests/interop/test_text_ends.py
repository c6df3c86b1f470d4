"""What ends a text is one thing: generation, checkpoints, exports and the command line agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_modules import trainer
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM

from lightning_llm import CausalLM, HFCausalLM
from lightning_llm.callbacks import SampleText
from lightning_llm.cli import main
from lightning_llm.data import ChatDataModule, TokenizerSpec
from lightning_llm.data.tokenizer import train_tokenizer
from lightning_llm.models import TransformerConfig

EOS, TURN = "<|endoftext|>", "<end_of_turn>"
SETTINGS = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "house_rule": 3, "bos_token_id": 5}
TEMPLATE = "{% for m in messages %}{{ m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}"
CLASSES = [CausalLM, HFCausalLM]


def load(kind: Any, folder: Path) -> Any:
    return CausalLM.from_pretrained(folder) if kind is CausalLM else HFCausalLM(str(folder))


def going_round(folder: Path, settings: dict[str, Any] | None, template: str | None = None) -> Any:
    """A folder of a model that continues ``P`` with ``A<end_of_turn>B<eos>P A …``."""
    tokenizer = train_tokenizer(TokenizerSpec("byte", special_tokens=(TURN,)), [])
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=None,
    )
    network = LlamaForCausalLM(config)
    order = [*tokenizer.encode("PA"), tokenizer.convert_tokens_to_ids(TURN), *tokenizer.encode("B")]
    order.append(tokenizer.eos_token_id)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(1.0 if parameter.ndim == 1 else 0.0)
        embedding, head = network.model.embed_tokens.weight, network.lm_head.weight
        for dim, (token, after) in enumerate(zip(order, [*order[1:], order[0]])):
            embedding[token, dim] = head[after, dim] = 1.0
        embedding[:, 31] = 0.01
    network.save_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    if settings is not None:
        (folder / "generation_config.json").write_text(json.dumps(settings))
    return tokenizer


def theirs(folder: Path, tokenizer: Any) -> str:
    """What ``transformers`` generates greedily, with the ends that the folder names."""
    ids = torch.tensor([tokenizer.encode("P")])
    network = AutoModelForCausalLM.from_pretrained(folder)
    out = network.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False
    )
    return tokenizer.decode(out[0, 1:], skip_special_tokens=True)


def stored(folder: Path, name: str = "generation_config.json") -> dict[str, Any]:
    return json.loads((folder / name).read_text())


def checkpoint(module: Any, path: Path) -> Path:
    run = trainer()
    run.strategy.connect(module)
    run.strategy._lightning_module = module
    run.save_checkpoint(path)
    return path


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("where", ["generation_config", "chat_template", "config", "tokenizer"])
def test_ends_hold_through_generation_checkpoint_and_export(
    kind: Any, where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    settings = None if where == "config" else dict(SETTINGS)
    tokenizer = going_round(source, settings, TEMPLATE if where == "chat_template" else None)
    eos, turn = tokenizer.convert_tokens_to_ids([EOS, TURN])
    if where == "generation_config":
        settings = {**SETTINGS, "eos_token_id": [turn, eos]}
        (source / "generation_config.json").write_text(json.dumps(settings))
    elif where == "config":
        config = stored(source, "config.json") | {"eos_token_id": [turn]}
        (source / "config.json").write_text(json.dumps(config))
    elif where == "chat_template":
        settings |= {"eos_token_id": eos}
        (source / "generation_config.json").write_text(json.dumps(settings))
    ends, text = ({eos}, "AB") if where == "tokenizer" else ({eos, turn}, "A")

    module = load(kind, source)
    if where in ("generation_config", "config"):
        assert theirs(source, tokenizer) == text
    path = checkpoint(module, tmp_path / "model.ckpt")
    saved = torch.load(path, weights_only=True)["lightning_llm"]["generation_config"]
    assert set(saved["eos_token_id"]) == ends
    if kind is CausalLM:
        assert set(CausalLM.load_from_checkpoint(path).text_ends()) == ends
    exports = [tmp_path / "direct", tmp_path / "of_checkpoint"]
    module.save_pretrained(exports[0])
    assert main(["export", "--checkpoint", str(path), "--output", str(exports[1])]) == 0
    for folder in exports:
        found = stored(folder)
        given = found["eos_token_id"]
        assert (set(given) if isinstance(given, list) else {given}) == ends
        assert stored(folder, "config.json")["eos_token_id"] == given
        assert {name: found[name] for name in SETTINGS if settings} == (
            SETTINGS if settings else {}
        )
        if where == "generation_config":
            assert given == [turn, eos]  # as it was
        assert theirs(folder, tokenizer) == text
        assert load(kind, folder).generate(["P"], max_new_tokens=20) == [text]
    assert module.generate(["P"], max_new_tokens=20) == [text]
    capsys.readouterr()
    words = ["--prompt", "P", "--temperature", "0", "--max_new_tokens", "20", "--device", "cpu"]
    assert main(["generate", "--checkpoint", str(path), *words]) == 0
    assert capsys.readouterr().out == text + "\n"
    assert main(["generate", "--checkpoint", str(path), *words, "--eos_token_id", "[]"]) == 0
    assert capsys.readouterr().out.startswith("ABPAB")


@pytest.mark.parametrize("kind", CLASSES)
def test_a_text_may_end_nowhere(kind: Any, tmp_path: Path) -> None:
    tokenizer = going_round(tmp_path, {"eos_token_id": [1, 2]}, TEMPLATE)
    module = load(kind, tmp_path)
    assert module.generate(["P"], max_new_tokens=12, eos_token_id=[]) == ["ABPABPA"]
    ids = torch.tensor([tokenizer.encode("P")])
    free = module.generate(ids, max_new_tokens=12, eos_token_id=[], num_beams=2)
    assert free.shape == (1, 13)
    assert module.generate(ids, max_new_tokens=12, eos_token_id=tokenizer.encode("B")).shape[1] == 4


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize(
    ("stop", "text"),
    [(TURN, "A"), ("A<end", ""), ("<", "A"), (f"{TURN}B", "A"), ("BP", "A"), (EOS, "AB")],
)
def test_special_tokens_in_stop_strings(kind: Any, stop: str, text: str, tmp_path: Path) -> None:
    """Oracle: the text of transformers' ids with names of special tokens, up to the string."""
    tokenizer = going_round(tmp_path, None)
    module = load(kind, tmp_path)
    ids = torch.tensor([tokenizer.encode("P")])
    free = AutoModelForCausalLM.from_pretrained(tmp_path).generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12
    )
    named = tokenizer.decode(free[0, 1:])
    if stop != "BP":  # which is in the text alone: a token that is no text stands between
        assert named.partition(stop)[0].replace(TURN, "").replace(EOS, "") == text
    assert module.generate(["P"], max_new_tokens=12, stop=[stop], eos_token_id=[]) == [text]
    batch = module.generate(["P", "AP"], max_new_tokens=12, stop=[stop, "?"], eos_token_id=[])
    assert batch == [text] * 2


def test_ids_stop_after_a_special_token(tmp_path: Path) -> None:
    tokenizer = going_round(tmp_path, None)
    ids = torch.tensor([tokenizer.encode("P")])
    for kind in CLASSES:
        found = load(kind, tmp_path).generate(ids, max_new_tokens=12, stop=TURN)
        assert tokenizer.decode(found[0]) == f"PA{TURN}"


def test_monitors_end_where_the_model_ends(tmp_path: Path) -> None:
    going_round(tmp_path, {"eos_token_id": 1}, TEMPLATE)
    module, heard = load(CausalLM, tmp_path), []
    module.print = heard.append
    SampleText(["P"], temperature=0.0).on_train_end(trainer(), module)
    assert heard[0].splitlines()[1] == "PA"


def test_ids_of_another_vocabulary_do_not_end_a_text(tmp_path: Path) -> None:
    """A module that is trained on data with another tokenizer forgets the ids of its first one."""
    going_round(tmp_path, {**SETTINGS, "eos_token_id": [65, 66]})
    module = load(CausalLM, tmp_path)
    assert module.text_ends()[:2] == [65, 66]

    class Data:
        tokenizer = train_tokenizer(TokenizerSpec("char"), ["".join(map(chr, range(33, 200)))])

    module._trainer = type("Run", (), {"datamodule": Data()})()
    module.setup("fit")
    assert module.text_ends() == [Data.tokenizer.eos_token_id]
    assert module.generation_config["temperature"] == 0.6


def test_a_new_network_ends_where_its_tokenizer_does(tmp_path: Path) -> None:
    """The configuration's default, id 2, is a plain byte here."""
    tokenizer = train_tokenizer(TokenizerSpec("byte"), [])
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = {"model_type": "llama", **sizes, "num_attention_heads": 1, "vocab_size": 257}
    module = HFCausalLM(config)
    assert module.text_ends() == [2]
    module.tokenizer = tokenizer
    assert module.text_ends() == [tokenizer.eos_token_id]
    module.save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == tokenizer.eos_token_id
    assert stored(tmp_path, "config.json")["eos_token_id"] == tokenizer.eos_token_id


def test_settings_that_transformers_would_not_write_are_kept(tmp_path: Path) -> None:
    """Published folders have such; transformers raises when it is to save them itself."""
    going_round(tmp_path / "source", {"do_sample": False, "temperature": 0.9, "eos_token_id": 3})
    load(HFCausalLM, tmp_path / "source").save_pretrained(tmp_path / "out")
    assert stored(tmp_path / "out")["temperature"] == 0.9


def test_the_turn_end_that_is_trained_ends_a_text(tmp_path: Path) -> None:
    """The tokenizer's own end is another one; the checkpoint and the export know both."""
    chat = {"messages": [{"role": "user", "content": "P"}, {"role": "assistant", "content": "A"}]}
    (tmp_path / "chats.jsonl").write_text(f"{json.dumps(chat)}\n" * 4)
    data = ChatDataModule(
        train_files=tmp_path / "chats.jsonl",
        tokenizer=TokenizerSpec("byte", special_tokens=(TURN,)),
        chat_template=TEMPLATE,
        seq_len=32,
        micro_batch_size=1,
        cache_dir=tmp_path / "cache",
    )
    config = TransformerConfig(vocab_size=258, n_layers=1, dim=16, n_heads=1, max_seq_len=32)
    module = CausalLM(config)
    trainer(max_steps=1).fit(module, data)
    ends = set(data.tokenizer.convert_tokens_to_ids([TURN, EOS]))
    labels = next(iter(data.train_dataloader()))["shift_labels"]
    assert labels[labels != -100].tolist()[-1] in ends - {data.tokenizer.eos_token_id}
    assert set(module.text_ends()) == ends
    module.save_pretrained(tmp_path / "out")
    assert set(stored(tmp_path / "out")["eos_token_id"]) == ends
    assert set(CausalLM.from_pretrained(tmp_path / "out").text_ends()) == ends
