"""The index of a sharded checkpoint is read as plain values, whatever its pickle says."""

from __future__ import annotations

import pickle
import random
import resource
import struct
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from lightning_llm.plugins.io.sealed_file import DamagedCheckpointError
from lightning_llm.plugins.io.sharded_metadata import read_metadata


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    path: Path = tmp_path_factory.mktemp("sharded")
    state = {
        "weights": {"a": torch.ones(3, 4), "b": torch.zeros(2, dtype=torch.bfloat16)},
        "scalar": torch.tensor(1.0),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no process group: one process saves
        dcp.save(state, checkpoint_id=path)
    return path


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def index(folder: Path) -> Metadata:
    metadata: Metadata = pickle.loads((folder / ".metadata").read_bytes())
    return metadata


def rewrite(folder: Path, metadata: Any) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


@pytest.mark.parametrize("protocol", range(2, 6))
def test_what_torch_writes_is_read_as_it_is(copy: Path, protocol: int) -> None:
    want = index(copy)
    (copy / ".metadata").write_bytes(pickle.dumps(want, protocol))
    got = read_metadata(copy)
    assert got.state_dict_metadata == want.state_dict_metadata
    assert got.storage_data == want.storage_data
    assert got.planner_data == want.planner_data
    assert got.version == want.version


class Anything:
    pass


@pytest.mark.parametrize("where", ["metadata", "storage", "meta", "size"])
def test_attributes_that_a_file_adds_do_not_arrive(copy: Path, where: str) -> None:
    metadata = index(copy)
    stored = next(iter(metadata.storage_data.values()))
    {
        "metadata": lambda: metadata.__dict__.update(load="anything"),
        "storage": lambda: stored.__dict__.update(relative_path_of="anything"),
        "meta": lambda: metadata.storage_meta.__dict__.update(modules=["os"]),
        "size": lambda: metadata.__dict__.update(version="1.0.0"),
    }[where]()
    rewrite(copy, metadata)
    got = read_metadata(copy)
    assert not hasattr(got, "load")
    assert got.storage_meta == StorageMeta()
    assert not any(hasattr(s, "relative_path_of") for s in got.storage_data.values())


def _set(metadata: Metadata, name: str, value: Any) -> None:
    stored = next(iter(metadata.storage_data.values()))
    tensor = metadata.state_dict_metadata["weights.a"]
    owner = {"storage_data": metadata, "state_dict_metadata": metadata}.get(name)
    if owner is None:
        owner = tensor.properties if name in ("dtype", "layout") else stored
    object.__setattr__(owner, name, value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("relative_path", "../outside", "which is not in the folder"),
        ("relative_path", 3, "a int stands where a str belongs"),
        ("offset", -1, "-1 is no size or place"),
        ("length", 1 << 40, "refers to bytes"),
        ("length", 1 << 70, "is no size or place"),
        ("transform_descriptors", ["zstd"], "stored transformed"),
        ("dtype", "float32", "a str stands where a dtype belongs"),
        ("storage_data", None, "it has no storage_data"),
        ("storage_data", [], "a list stands where a dict belongs"),
        ("state_dict_metadata", {"a": 1}, "a int is no TensorStorageMetadata"),
    ],
)
def test_a_field_of_another_kind_is_named(copy: Path, name: str, value: Any, message: str) -> None:
    metadata = index(copy)
    _set(metadata, name, value)
    rewrite(copy, metadata)
    with pytest.raises(DamagedCheckpointError, match=message):
        read_metadata(copy)


def test_a_few_bytes_ask_for_little_memory(copy: Path) -> None:
    """A place in the memo costs eight bytes, whatever its number."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for data in (
        b"]r" + struct.pack("<I", 0x0FFFFFFF) + b"0.",
        b"]p268435455\n.",
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b".",
        b"L" + b"9" * 5000 + b"L\n.",
        b"(" * 200_000 + b".",
    ):
        (copy / ".metadata").write_bytes(data)
        with pytest.raises(DamagedCheckpointError):
            read_metadata(copy)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 200 * 1024  # KiB


@pytest.mark.parametrize(
    "data",
    [
        b"cos\nsystem\n(S'touch x'\ntR.",
        b"cbuiltins\neval\n(V1\ntR.",
        b"ctorch\nload\n.",
        b"ctorch.distributed.checkpoint.filesystem\nFileSystemWriter\n.",
        b"cbuiltins\ndict\n.",
        b"\x80\x04}\x94.",
        b"",
        b"Pan id\n.",
    ],
)
def test_no_other_name_is_looked_up(copy: Path, data: bytes) -> None:
    (copy / ".metadata").write_bytes(data)
    with pytest.raises(DamagedCheckpointError, match="is no index of a checkpoint"):
        read_metadata(copy)


def test_changed_bytes_give_the_index_or_an_error(copy: Path) -> None:
    """Whatever byte is changed: plain values come back, or an error that names the file."""
    whole = (copy / ".metadata").read_bytes()
    draw = random.Random(0)
    start = time.perf_counter()
    for _ in range(600):
        changed = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        (copy / ".metadata").write_bytes(bytes(changed))
        try:
            got = read_metadata(copy)
        except DamagedCheckpointError as error:
            assert str(copy) in str(error)  # noqa: PT017
            continue
        assert all(type(s) is _StorageInfo for s in got.storage_data.values())
        assert all(type(name) is str for name in got.state_dict_metadata)
    assert time.perf_counter() - start < 20
