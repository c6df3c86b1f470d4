"""Documents from Hugging Face datasets: on the hub, in a local folder, or saved to disk."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_llm.data.cache import content_hash
from lightning_llm.data.file_patterns import Walk, leads_nowhere
from lightning_llm.data.readers_base import Document, SourceStats, check_text, invalid_utf8
from lightning_llm.data.readers_rows import emit, missing_field, nested_field
from lightning_llm.data.sources import fingerprint_files
from lightning_llm.errors import InvalidValueError, MissingFileError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

DataFiles = str | Sequence[str] | Mapping[str, str | Sequence[str]]

_ROWS = 256


def read_dataset(
    name_or_path: str | Path,
    *,
    name: str | None = None,
    split: str = "train",
    streaming: bool = False,
    text_field: str = "text",
    data_files: DataFiles | None = None,
    revision: str | None = None,
    max_documents: int | None = None,
    stats: SourceStats | None = None,
) -> Iterator[Document]:
    """Yield the documents of a dataset, one for each row, in order; empty ones are only counted.

    Args:
        name_or_path: A directory written by ``save_to_disk``, a local dataset folder, or a name on
            the hub.
        name: Configuration of the dataset, such as ``wikitext-2-raw-v1``.
        split: One split; with map-style loading also a slice, such as ``train[:1%]``.
        streaming: Read over the network as needed, and keep nothing on disk.
        text_field: The column that holds the text; ``meta.text`` is field ``text`` of column
            ``meta``, unless a column has that very name.
        data_files: Which files of the dataset to take.
        revision: Branch, tag or commit on the hub.
        max_documents: Stop after this many.
        stats: Counters to add to.

    Raises:
        FileNotFoundError: A path that does not exist.
        ValueError: The dataset, split or column is not there, or a row holds no text; the dataset
            and row (from 0) are named.
    """
    if max_documents is not None and max_documents < 1:
        raise InvalidValueError(
            f"max_documents={max_documents} must be at least 1, or None for all."
        )
    dataset = open_dataset(
        name_or_path,
        name=name,
        split=split,
        streaming=streaming,
        data_files=data_files,
        revision=revision,
    )
    label = f"{name_or_path}[{split}]"
    stats = SourceStats() if stats is None else stats
    return _documents(dataset, label, text_field, max_documents, stats)


def open_dataset(
    name_or_path: str | Path,
    *,
    name: str | None = None,
    split: str = "train",
    streaming: bool = False,
    data_files: DataFiles | None = None,
    revision: str | None = None,
) -> Dataset | IterableDataset:
    """Load one split; the arguments are those of ``read_dataset``."""
    path = os.path.expanduser(os.fspath(name_or_path))
    if os.path.isfile(path):
        raise InvalidValueError(
            f"dataset {path!r} is a file: give files as train_files, not as dataset."
        )
    if not os.path.isdir(path) and (path.startswith((".", os.sep)) or path.count("/") > 1):
        raise MissingFileError(
            f"dataset {path!r}: no such directory (working directory: {os.getcwd()})."
        )
    if os.path.isdir(path):
        for file, kind in Walk().below(path, ("**", "*")):
            if kind == "broken":  # which the library leaves out
                raise leads_nowhere(file)
    if _saved_to_disk(path):
        return _from_disk(path, split, streaming)
    from datasets import load_dataset

    try:
        return load_dataset(
            path,
            name=name,
            split=split,
            streaming=streaming,
            data_files=data_files,
            revision=revision,
        )
    except Exception as error:  # a dozen kinds, hardly any of which names the dataset
        raise InvalidValueError(
            f"dataset {path!r} (name={name!r}, split={split!r}) cannot be loaded: {_cause(error)}"
        ) from error


def _saved_to_disk(path: str) -> bool:
    saved = ("dataset_dict.json", "state.json")
    return any(os.path.isfile(os.path.join(path, file)) for file in saved)


def _from_disk(path: str, split: str, streaming: bool) -> Dataset | IterableDataset:
    from datasets import DatasetDict, load_from_disk

    try:
        loaded = load_from_disk(path)
    except Exception as error:
        raise InvalidValueError(f"dataset {path!r} cannot be loaded: {_cause(error)}") from error
    if isinstance(loaded, DatasetDict):
        if split not in loaded:
            raise InvalidValueError(
                f"dataset {path!r} has no split {split!r}; it has {sorted(loaded)}."
            )
        chosen = loaded[split]
    else:
        chosen = loaded
        held = str(loaded.split or "train")
        if split != held:
            raise InvalidValueError(
                f"dataset {path!r} has no split {split!r}; it is one split, {held!r}."
            )
    return chosen.to_iterable_dataset() if streaming else chosen


def _cause(error: BaseException) -> str:
    """Return the messages of an error and its causes: the outermost often says nothing."""
    messages = []
    while error is not None:
        messages.append(f"{type(error).__name__}: {error}".strip())
        error = error.__cause__  # type: ignore[assignment]
    return " <- ".join(messages)


def _documents(
    dataset: Dataset | IterableDataset,
    label: str,
    text_field: str,
    max_documents: int | None,
    stats: SourceStats,
) -> Iterator[Document]:
    # A stream may not know its columns before its first row.
    if dataset.column_names is not None:
        column = _column(text_field, dataset.column_names)
        if column not in dataset.column_names:
            raise missing_field(f"dataset {label}", text_field, dataset.column_names, "column")
        dataset = dataset.select_columns([column])
    return _rows(dataset.with_format(None), label, text_field, max_documents, stats)


def _rows(
    dataset: Dataset | IterableDataset,
    label: str,
    text_field: str,
    max_documents: int | None,
    stats: SourceStats,
) -> Iterator[Document]:
    row = yielded = 0
    for batch in _batches(dataset, label):
        column = _column(text_field, batch)
        if column not in batch:
            raise missing_field(f"dataset {label}", text_field, batch, "column")
        for value in batch[column]:
            where = f"{label}:row {row}"
            if column != text_field:
                value = nested_field({column: value}, text_field, where)
            if isinstance(value, bytes):
                value = _text(value, text_field, where)
            for document in emit(check_text(value, text_field, where, "strict"), where, stats):
                yield document
                yielded += 1
                if yielded == max_documents:
                    return
            row += 1


def _column(text_field: str, columns: Container[str]) -> str:
    """Return the column that holds a field: of its name, or of the first part of its path."""
    return text_field if text_field in columns else text_field.partition(".")[0]


def _text(value: bytes, key: str, where: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise invalid_utf8(f"{where}: {key!r}", error, choice=False) from None


def _batches(dataset: Dataset | IterableDataset, label: str) -> Iterator[dict[str, list[Any]]]:
    """Batches of rows, with the dataset and the place named when reading one fails."""
    batches = dataset.iter(batch_size=_ROWS)
    done = 0
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except Exception as error:
            raise InvalidValueError(
                f"dataset {label}: cannot be read after row {done}: {_cause(error)}"
            ) from error
        yield batch
        done += _ROWS


def dataset_fingerprint(
    name_or_path: str | Path,
    *,
    name: str | None = None,
    split: str = "train",
    data_files: DataFiles | None = None,
    revision: str | None = None,
    dataset: Dataset | IterableDataset | None = None,
) -> str:
    """Return a SHA-256 that changes with the dataset's content, as far as that can be known.

    A local folder and local ``data_files`` count by their bytes. A map-style dataset of the hub,
    given as ``dataset``, counts by its own fingerprint; a stream by its name and revision alone,
    so name a commit as ``revision`` where its content may change.
    """
    path = Path(name_or_path).expanduser()
    content: list[Any] = [name, split, revision, data_files]
    local = [Path(file) for file in _listed(data_files) if os.path.isfile(file)]
    if path.is_dir():
        # The folder's own name is no content: a moved folder keeps its fingerprint.
        files = sorted(file for file in path.rglob("*") if file.is_file())
        content.append([file.relative_to(path).as_posix() for file in files])
        local += files
    else:
        content.append(str(name_or_path))
        content.append(getattr(dataset, "_fingerprint", None) if _is_map_style(dataset) else None)
    content.append(fingerprint_files(local))
    return content_hash(content)


def split_fingerprint(
    name_or_path: str | Path, *, name: str | None, split: str, revision: str | None, streaming: bool
) -> str:
    """Return the ``dataset_fingerprint`` of a split that is about to be read.

    Args:
        name_or_path: See ``read_dataset``.
        name: Configuration of the dataset.
        split: One split.
        revision: Branch, tag or commit on the hub.
        streaming: Whether it is read over the network; otherwise a dataset of the hub is loaded
            now, for its own fingerprint.
    """
    where: dict[str, Any] = {"name": name, "split": split, "revision": revision}
    remote = not Path(name_or_path).expanduser().is_dir()
    opened = open_dataset(name_or_path, **where) if remote and not streaming else None
    return dataset_fingerprint(name_or_path, **where, dataset=opened)


def _listed(data_files: DataFiles | None) -> list[str]:
    if data_files is None:
        return []
    groups = data_files.values() if isinstance(data_files, Mapping) else [data_files]
    return [file for g in groups for file in ([g] if isinstance(g, str) else list(g))]


def _is_map_style(dataset: Any) -> bool:
    return hasattr(dataset, "__len__")


def read_rows(
    name_or_path: str | Path,
    *,
    name: str | None = None,
    split: str = "train",
    revision: str | None = None,
    streaming: bool = False,
) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield all columns of each row, and the row's place, for messages.

    Args:
        name_or_path: See ``read_dataset``.
        name: Configuration of the dataset.
        split: One split.
        revision: Branch, tag or commit on the hub.
        streaming: Read over the network as needed.

    Raises:
        FileNotFoundError: A path that does not exist.
        ValueError: The dataset or split is not there, or a row cannot be read.
    """
    dataset = open_dataset(
        name_or_path, name=name, split=split, revision=revision, streaming=streaming
    )
    label = f"{name_or_path}[{split}]"
    number = 0
    for batch in _batches(dataset.with_format(None), label):
        for values in zip(*batch.values()):
            yield dict(zip(batch, values)), f"{label}:row {number}"
            number += 1
