"""Pairs of texts: what is a target, which prompts validate, and what is refused."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from task_batches import SMALL, documents_as_text, targets_as_text, write_lines

from lightning_llm import CausalLM
from lightning_llm.data import TokenizerSpec, TranslationDataModule
from lightning_llm.data.loader import TokenLoader
from lightning_llm.models import TransformerConfig

SOURCES = [f"a small cat {i} sits on the {'very ' * (i % 4)}old mat" for i in range(30)]
TARGETS = [f"第{i}只小猫坐在{'很' * (i % 4)}旧的垫子上" for i in range(30)]
EOS = "<|endoftext|>"
LONG = "".join(chr(0x4E00 + i) for i in range(100))  # three tokens each


@pytest.fixture
def pairs(tmp_path: Path) -> dict[str, Path]:
    return {
        "train_source": write_lines(tmp_path / "train.en", SOURCES),
        "train_target": write_lines(tmp_path / "train.zh", TARGETS),
    }


def module(tmp_path: Path, **options: Any) -> TranslationDataModule:
    defaults: dict[str, Any] = {"tokenizer": SMALL, "seq_len": 160, "micro_batch_size": 2}
    return TranslationDataModule(cache_dir=tmp_path / "cache", **(defaults | options))


@pytest.mark.parametrize("packing", ["best_fit", "pad"])
def test_only_targets_and_the_end_of_text_are_predicted(
    tmp_path: Path, pairs: dict[str, Path], packing: Any
) -> None:
    data = module(tmp_path, **pairs, packing=packing)
    loader = data.train_dataloader()
    assert sorted(targets_as_text(data.tokenizer, loader)) == sorted(t + EOS for t in TARGETS)
    batch = next(iter(data.train_dataloader()))
    assert batch["input_ids"].shape == batch["shift_labels"].shape == (2, 160)
    assert ("document_ids" in batch) == ("position_ids" in batch) == (packing == "best_fit")


def test_a_label_is_the_next_token_of_its_own_document(
    tmp_path: Path, pairs: dict[str, Path]
) -> None:
    data = module(tmp_path, **pairs)
    texts = documents_as_text(data.tokenizer, data.train_dataloader())
    expected = [f"{source}\n{target}" for source, target in zip(SOURCES, TARGETS)]
    assert sorted(texts) == sorted(expected)  # the end of text is a target only
    for batch in data.train_dataloader():
        same = batch["document_ids"][:, 1:] == batch["document_ids"][:, :-1]
        inside = same & (batch["shift_labels"][:, :-1] != -100)
        assert inside.any()
        assert torch.equal(batch["shift_labels"][:, :-1][inside], batch["input_ids"][:, 1:][inside])


def test_packed_loss_is_that_of_single_examples(tmp_path: Path, pairs: dict[str, Path]) -> None:
    """Several examples in a row do not see each other."""
    losses = []
    for packing in ("best_fit", "pad"):
        data = module(tmp_path, **pairs, packing=packing)
        torch.manual_seed(0)
        config = TransformerConfig(
            vocab_size=data.vocab_size, max_seq_len=160, n_layers=2, dim=32, n_heads=2
        )
        model = CausalLM(config).double().eval()
        with torch.no_grad():
            sums = [model.compute_loss(batch) for batch in data.train_dataloader()]
        losses.append(torch.stack([torch.stack([nll, n.double()]) for nll, n in sums]).sum(0))
    assert losses[0][1] == losses[1][1]
    torch.testing.assert_close(losses[0][0], losses[1][0], rtol=1e-9, atol=0)


@pytest.mark.parametrize("packing", ["best_fit", "pad"])
@pytest.mark.parametrize("ranks", [1, 3])
def test_every_pair_validates_once_on_any_ranks(
    tmp_path: Path, pairs: dict[str, Path], packing: Any, ranks: int
) -> None:
    val = {name.replace("train", "val"): path for name, path in pairs.items()}
    data = module(tmp_path, **pairs, **val, packing=packing)
    data.setup("fit")
    rows = data.val_dataloader().rows  # type: ignore[union-attr]
    seen: Counter[tuple[str, str]] = Counter()
    for rank in range(ranks):
        for batch in TokenLoader(rows, micro_batch_size=2, rank=rank, world_size=ranks):
            seen.update(zip(batch["prompts"], batch["references"], strict=True))
    assert seen == Counter((f"{s}\n", t) for s, t in zip(SOURCES, TARGETS))


def test_validation_is_in_order_and_limited(tmp_path: Path, pairs: dict[str, Path]) -> None:
    val = {name.replace("train", "val"): path for name, path in pairs.items()}
    data = module(tmp_path, **pairs, **val, max_val_samples=7)
    batches = list(data.val_dataloader())
    assert [text for batch in batches for text in batch["references"]] == TARGETS[:7]
    assert targets_as_text(data.tokenizer, batches) == [t + EOS for t in TARGETS[:7]]


def test_workers_do_not_change_batches(tmp_path: Path, pairs: dict[str, Path]) -> None:
    val = {name.replace("train", "val"): path for name, path in pairs.items()}
    alone, helped = (module(tmp_path, **pairs, **val, num_workers=n) for n in (0, 2))
    for one, other in zip(alone.val_dataloader(), helped.val_dataloader(), strict=True):
        assert one["prompts"] == other["prompts"]
        assert one["references"] == other["references"]
        assert torch.equal(one["shift_labels"], other["shift_labels"])


def test_the_prompt_of_generation_has_the_ids_of_training(
    tmp_path: Path, pairs: dict[str, Path]
) -> None:
    from lightning_llm.generation.text import encode_prompts

    data = module(tmp_path, **pairs, template="{source} =", packing="pad", seq_len=200)
    data.setup()
    (prompt,) = encode_prompts(data.tokenizer, [f"{SOURCES[0]} ="])
    store = data.train_store
    assert store is not None
    assert store[0][: len(prompt)].tolist() == prompt
    assert data.tokenizer.decode(store[0][len(prompt) :]) == f" {TARGETS[0]}{EOS}"


def test_rows_in_other_files(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    rows = [{"pair": {"en": s, "zh": t}} for s, t in zip(SOURCES, TARGETS)]
    lines = write_lines(tmp_path / "a.jsonl", [json.dumps(row) for row in rows])
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(lines.read_bytes()))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet")
    pairs = [f"{s}\t{t}\r" for s, t in zip(SOURCES, TARGETS)]
    plain = write_lines(tmp_path / "d.tsv", pairs)
    headed = write_lines(tmp_path / "e.tsv", ["source\ttarget", *pairs])
    fields = {"source_field": "pair.en", "target_field": "pair.zh"}
    expected = sorted(t + EOS for t in TARGETS)
    for file in (lines, packed, tmp_path / "c.parquet", plain, headed):
        data = module(tmp_path, train_files=file, **(fields if file.suffix != ".tsv" else {}))
        assert sorted(targets_as_text(data.tokenizer, data.train_dataloader())) == expected, file


def test_a_share_of_the_rows_validates(tmp_path: Path, pairs: dict[str, Path]) -> None:
    data = module(tmp_path, **pairs, val_fraction=0.3, max_train_samples=20)
    val = [text for batch in data.val_dataloader() for text in batch["references"]]
    train = targets_as_text(data.tokenizer, data.train_dataloader())
    assert 1 < len(val) < 15
    assert sorted([*train, *(text + EOS for text in val)]) == sorted(t + EOS for t in TARGETS[:20])
    with pytest.raises(ValueError, match=r"the val part has no example.*val_fraction=1e-06"):
        module(tmp_path, **pairs, val_fraction=1e-6).prepare_data()


def test_rows_of_a_dataset(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"translation": {"en": s, "zh": t}} for s, t in zip(SOURCES, TARGETS)]
    split = datasets.Dataset.from_list(rows)
    datasets.DatasetDict({"train": split, "validation": split}).save_to_disk(tmp_path / "saved")
    data = module(
        tmp_path,
        dataset=tmp_path / "saved",
        val_split="validation",
        source_field="translation.en",
        target_field="translation.zh",
    )
    batch = next(iter(data.val_dataloader()))
    assert batch["references"][:2] == TARGETS[:2]


def test_long_examples_are_left_out_or_lose_their_end(
    tmp_path: Path, pairs: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    pairs["train_target"] = write_lines(tmp_path / "long.zh", [LONG, *TARGETS[1:]])
    texts = {}
    for too_long in ("drop", "truncate"):
        data = module(tmp_path, **pairs, too_long=too_long)
        texts[too_long] = targets_as_text(data.tokenizer, data.train_dataloader())
    assert sorted(texts["drop"]) == sorted(t + EOS for t in TARGETS[1:])
    assert len(texts["truncate"]) == 30
    assert "of 30 examples, 1 are left out and 0 lose their end" in caplog.text
    assert "of 30 examples, 0 are left out and 1 lose their end" in caplog.text
    with pytest.raises(ValueError, match="the train part has no example that fits seq_len=4"):
        module(tmp_path, **pairs, seq_len=4).train_dataloader()


def test_the_cache_is_that_of_the_content(tmp_path: Path, pairs: dict[str, Path]) -> None:
    def path(**options: Any) -> Path | None:
        data = module(tmp_path, **{**pairs, **options})
        data.prepare_data()
        data.setup()
        return data.train_store and data.train_store.path

    first = path()
    assert path(seq_len=80, packing="pad") == first
    assert path(template="{source}>") != first
    write_lines(tmp_path / "train.zh", [*TARGETS[:-1], "另一句"])
    assert path() != first


def test_test_data_does_not_change_the_tokenizer(tmp_path: Path, pairs: dict[str, Path]) -> None:
    alone = module(tmp_path, **pairs)
    alone.prepare_data()
    other = write_lines(tmp_path / "test.tsv", ["never seen\t从未见过"])
    tested = module(tmp_path, **pairs, test_files=other)
    assert next(iter(tested.test_dataloader()))["references"] == ["从未见过"]
    assert tested.tokenizer.get_vocab() == alone.tokenizer.get_vocab()
    assert len(list((tmp_path / "cache").glob("tokenizer-*/"))) == 1


def test_names_of_special_tokens_in_a_text_are_text(tmp_path: Path) -> None:
    lines = [f"say {EOS} now"] * 3
    files = {s: write_lines(tmp_path / s, lines) for s in ("train_source", "train_target")}
    data = module(tmp_path, **files)
    data.setup()
    assert data.train_store is not None
    eos = data.tokenizer.eos_token_id
    assert [list(document).count(eos) for document in data.train_store] == [1, 1, 1]


def test_what_is_wrong_with_files_is_said_with_the_place(
    tmp_path: Path, pairs: dict[str, Path]
) -> None:
    shorter = write_lines(tmp_path / "short.zh", TARGETS[:-2])
    with pytest.raises(ValueError, match=r"train.en has 30 lines, .*short.zh has 28: line i"):
        module(tmp_path, **{**pairs, "train_target": shorter}).prepare_data()
    tsv = write_lines(tmp_path / "bad.tsv", ["a\tb", "a\tb\tc"])
    with pytest.raises(ValueError, match=r"bad.tsv:2: 3 columns; expected 2.*source, target"):
        module(tmp_path, train_files=tsv).prepare_data()
    empty = write_lines(tmp_path / "empty.tsv", ["a\tb", "a\t "])
    with pytest.raises(ValueError, match=r"empty.tsv:2: target is empty.*skip"):
        module(tmp_path, train_files=empty).prepare_data()
    assert module(tmp_path, train_files=empty, empty="skip").train_dataloader() is not None
    jsonl = write_lines(tmp_path / "bad.jsonl", ['{"source": "a", "target": 3}'])
    with pytest.raises(ValueError, match=r"bad.jsonl:1: 'target': expected a string, got 3"):
        module(tmp_path, train_files=jsonl).prepare_data()
    with pytest.raises(ValueError, match=r"bad.jsonl:1: no field 'en'.*Set source_field"):
        module(tmp_path, train_files=jsonl, source_field="en").prepare_data()
    (tmp_path / "latin.en").write_bytes("caf\xe9\n".encode("latin-1") * 30)
    with pytest.raises(ValueError, match=r"latin.en:1: invalid UTF-8 byte 0xe9") as invalid:
        module(tmp_path, **{**pairs, "train_source": tmp_path / "latin.en"}).prepare_data()
    assert str(invalid.value).endswith("convert it to UTF-8.")  # there is no argument `errors`
    (tmp_path / "bad.jsonl").write_bytes('{"source": "é"}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"bad.jsonl:1: invalid UTF-8 .* convert it to UTF-8.$"):
        module(tmp_path, train_files=tmp_path / "bad.jsonl").prepare_data()
    (tmp_path / "a.csv").write_text("a,b")
    with pytest.raises(ValueError, match=r"a.csv:1: no column .source.; it has .a., .b."):
        module(tmp_path, train_files=tmp_path / "a.csv").prepare_data()


def test_arguments_are_checked_together(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as error:
        module(
            tmp_path,
            train_source="a",
            template="{target}",
            packing="concat",
            too_long="cut",
            seq_len=0,
            val_split="x",
            empty="no",
        )
    for part in (
        "give train_source and train_target together",
        "must contain {source} once",
        "and {target} would stay in it as it is",
        "packing='concat' must be one of best_fit, pad",
        "too_long='cut' must be one of drop, truncate",
        "seq_len=0 must be at least 1",
        "val_split='x' is a split of dataset",
        "empty='no'",
    ):
        assert part in str(error.value)
    with pytest.raises(ValueError, match="no training data: give train_files, train_source and"):
        module(tmp_path)


@pytest.mark.parametrize("pretrained", [False, True])
def test_a_split_that_leaves_no_row_to_train_on_is_said(tmp_path: Path, pretrained: bool) -> None:
    same = write_lines(tmp_path / "same.tsv", ["one\ttwo"] * 9)  # equal rows go to one side
    options: dict[str, Any] = {"train_files": same, "val_fraction": 0.99}
    if pretrained:
        folder = tmp_path / "tokenizer"
        module(tmp_path, train_files=same).tokenizer.save_pretrained(folder)
        options["tokenizer"] = TokenizerSpec(pretrained=str(folder))
    with pytest.raises(ValueError, match=r"val_fraction=0.99 .* a smaller fraction"):
        module(tmp_path, **options).prepare_data()
