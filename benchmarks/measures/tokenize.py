"""`tokenize`: text to ids, MB/s on all cores."""

from __future__ import annotations

import json
import sysconfig
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.pacing import Pacer, UnavailableError
from benchmarks.plan import Pacing, Plan, against
from benchmarks.race import Task

PACE = Pacing(warmup=2, rounds=5, steps=1)
TEXTS, TOKENIZER = "texts", "tokenizer"
Encode = Callable[[list[str]], int]  # returns the number of ids


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--vocab", type=int, default=32_000, help="of the byte-level BPE")
    parser.add_argument("--megabytes", type=float, default=8.0, help="text of a step")
    parser.add_argument(
        "--files", nargs="+", help="UTF-8 text files; the Python standard library if not given"
    )


def plan(args: Namespace, folder: Path) -> list[Plan]:
    """Train the vocabulary, then plan the race."""
    from lightning_llm.data.tokenizer import TokenizerSpec, train_tokenizer

    size = 0.2 if args.quick else args.megabytes
    texts = read_texts(args.files, int(size * 1e6))
    (folder / TEXTS).mkdir()
    for number, text in enumerate(texts):
        (folder / TEXTS / f"{number:05}.txt").write_text(text, encoding="utf-8", newline="")
    spec = TokenizerSpec("bpe", vocab_size=1024 if args.quick else args.vocab)
    train_tokenizer(spec, texts).save_pretrained(folder / TOKENIZER)
    tasks = [
        Task(
            label, f"{__name__}:run", {"folder": str(folder), "encoder": label}, "cpu", args.threads
        )
        for label in ENCODERS
    ]
    settings = {
        "name_parts": [f"V{spec.vocab_size}"],
        "vocab": spec.vocab_size,
        "megabytes": round(sum(len(text.encode()) for text in texts) / 1e6, 2),
        "text": "given files" if args.files else "Python standard library",
    }
    title = f"Tokenizing: byte-level BPE of {spec.vocab_size:,}, {settings['megabytes']} MB of text"
    pace, baselines = PACE.resolve(args), against("ours", tasks)
    return [Plan("tokenize", title, "MB/s", tasks, pace, settings, baselines)]


def read_texts(files: list[str] | None, limit: int) -> list[str]:
    """Return whole files of UTF-8 text, ``limit`` bytes in all, in the order of their names."""
    library = Path(sysconfig.get_path("stdlib"))
    paths = [Path(name) for name in files] if files else sorted(library.glob("*.py"))
    paths += [] if files else sorted(library.glob("[a-z]*/*.py"))
    texts, size = [], 0
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if size >= limit:
            break
        texts.append(text)
        size += len(text.encode())
    return texts


def run(options: dict[str, Any], pacer: Pacer) -> None:
    """Encode the texts, again and again."""
    folder = Path(options["folder"])
    texts = [path.read_bytes().decode("utf-8") for path in sorted((folder / TEXTS).glob("*.txt"))]
    encode = ENCODERS[options["encoder"]](folder)
    pacer.units_per_step = sum(len(text.encode()) for text in texts) / 1e6
    pacer.facts["ids"] = encode(texts)
    for _ in range(pacer.total_steps):
        encode(texts)
        pacer.step_done()


def _ours(folder: Path) -> Encode:
    """As `prepare` does it: through tiktoken, once it has given the same ids for a first batch."""
    from lightning_llm.data.text_encoder import TextEncoder
    from lightning_llm.data.tokenizer import load_tokenizer

    encode = TextEncoder(load_tokenizer(folder / TOKENIZER))
    return lambda texts: sum(map(len, encode(texts)))


def _ours_to_store(folder: Path) -> Encode:
    """All of `prepare` but the tokenizer's training: files read, encoded, written, on the disk."""
    return lambda texts: _stored(folder, sorted((folder / TEXTS).glob("*.txt")))


def _ours_rows_to_store(folder: Path) -> Encode:
    """The same with a row of JSON for each line of the text, as instruction data has them."""
    rows = folder / "rows.jsonl"
    with rows.open("w", encoding="utf-8") as file:
        for path in sorted((folder / TEXTS).glob("*.txt")):
            for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
                file.write(json.dumps({"text": line}) + "\n")
    return lambda texts: _stored(folder, [rows])


def _stored(folder: Path, files: list[Path]) -> int:
    from lightning_llm.data.corpus import FileCorpus, Whole
    from lightning_llm.data.encoding import encode_documents
    from lightning_llm.data.sources import SourceStats
    from lightning_llm.data.store import TokenStore
    from lightning_llm.data.store_writer import TokenStoreWriter
    from lightning_llm.data.tokenizer import load_tokenizer, vocabulary_size

    tokenizer = load_tokenizer(folder / TOKENIZER)
    with TemporaryDirectory() as place:
        path = Path(place) / "store"
        with TokenStoreWriter(path, vocab_size=vocabulary_size(tokenizer)) as writer:
            documents = Whole(FileCorpus(tuple(files))).documents(SourceStats())
            encode_documents(documents, tokenizer, {"train": writer})
        store = TokenStore(path)
        return store.num_tokens - len(store)  # an end-of-text id for each document


def _ours_without_tiktoken(folder: Path) -> Encode:
    from lightning_llm.data.tokenizer import encode_texts, load_tokenizer

    tokenizer = load_tokenizer(folder / TOKENIZER)
    return lambda texts: sum(map(len, encode_texts(tokenizer, texts)))


def _backend(folder: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / TOKENIZER / "tokenizer.json"))


def _encode_batch(folder: Path) -> Encode:
    backend = _backend(folder)
    return lambda texts: sum(len(encoding.ids) for encoding in backend.encode_batch(texts))


def _encode_batch_fast(folder: Path) -> Encode:
    backend = _backend(folder)
    return lambda texts: sum(len(encoding.ids) for encoding in backend.encode_batch_fast(texts))


def _hugging_face(folder: Path) -> Encode:
    """Calls of the tokenizer with a batch of texts, as `datasets.map` makes them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / TOKENIZER)
    return lambda texts: sum(map(len, tokenizer(texts)["input_ids"]))


def _tiktoken(folder: Path) -> Encode:
    """tiktoken with the merges of the same vocabulary."""
    try:
        import tiktoken
    except ImportError as error:
        raise UnavailableError(f"{error}; pip install tiktoken") from error
    from lightning_llm.data.tokenizer_encoding import BYTE_OF_CHARACTER

    content = json.loads((folder / TOKENIZER / "tokenizer.json").read_text(encoding="utf-8"))
    added = {token["content"] for token in content["added_tokens"]}
    ranks = {
        bytes(BYTE_OF_CHARACTER[character] for character in token): rank
        for token, rank in content["model"]["vocab"].items()
        if token not in added
    }
    steps = content["pre_tokenizer"]
    parts = steps["pretokenizers"] if steps["type"] == "Sequence" else [steps]
    pattern = next(part["pattern"]["Regex"] for part in parts if part["type"] == "Split")
    encoding = tiktoken.Encoding(
        "benchmark", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}
    )
    return lambda texts: sum(map(len, encoding.encode_ordinary_batch(texts)))


ENCODERS: dict[str, Callable[[Path], Encode]] = {
    "ours": _ours,
    "ours_to_store": _ours_to_store,
    "ours_rows_to_store": _ours_rows_to_store,
    "ours_without_tiktoken": _ours_without_tiktoken,
    "encode_batch": _encode_batch,
    "encode_batch_fast": _encode_batch_fast,
    "transformers": _hugging_face,
    "tiktoken": _tiktoken,
}
