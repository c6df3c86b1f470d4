"""A process killed at any call into the file system while it replaces a folder of shards."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from faults import forks, in_child

from lightning_llm.plugins.io.sharded import ShardedCheckpoint, finish_interrupted, read_sharded
from lightning_llm.plugins.io.sharded_save import save_sharded

pytestmark = forks
CALLS = ("fsync", "replace", "rename", "mkdir", "open", "unlink")


def save(step: int, path: Path) -> None:
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    save_sharded({"state_dict.w": torch.full((64,), float(step))}, {"step": step}, path)


def strike_at(number: int, strike: Callable[[], None]) -> list[int]:
    """Call ``strike`` in place of one of this process's calls; returns the count so far."""
    count = [0]

    def struck(original: Callable) -> Callable:
        def call(*args, **kwargs):
            count[0] += 1
            if count[0] - 1 == number:
                strike()
            return original(*args, **kwargs)

        return call

    for name in CALLS:
        setattr(os, name, struck(getattr(os, name)))
    return count


def count_calls(path: Path) -> int:
    def counting() -> None:
        save(1, path)
        count = strike_at(-1, lambda: None)
        save(1, path)
        print(f"calls {count[0]}")

    status, output = in_child(counting)
    assert status == 0, output
    return int(output.rpartition("calls ")[2])


def test_killed_at_any_call_the_old_or_the_new_folder_is_whole(tmp_path: Path) -> None:
    calls = count_calls(tmp_path / "first" / "a.ckpt")
    assert calls >= 8
    nameless = 0
    for number in range(calls):
        path = tmp_path / str(number) / "a.ckpt"

        def killed(path: Path = path, number: int = number) -> None:
            save(1, path)
            strike_at(number, lambda: os._exit(9))
            save(2, path)

        status, output = in_child(killed)
        assert status == 9, output
        if not path.exists():
            nameless += 1
            assert finish_interrupted(tmp_path / str(number)) == [path]
        whole = read_sharded(path)
        assert whole["step"] in (1, 2)
        assert torch.equal(whole["state_dict"]["w"], torch.full((64,), float(whole["step"])))
        assert in_child(lambda path=path: save(3, path))[0] == 0
        assert [file.name for file in path.parent.iterdir()] == ["a.ckpt"]
    assert nameless  # else nothing of the above was tried


def test_a_folder_that_is_not_whole_gets_no_name(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    assert in_child(lambda: save(1, path))[0] == 0
    hidden = tmp_path / ".a.ckpt.0123abcd.part"
    path.rename(hidden)
    shard = next(hidden.glob("*.distcp"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    assert finish_interrupted(tmp_path) == []
    shard.write_bytes(content)
    assert finish_interrupted(tmp_path) == [path]
    assert ShardedCheckpoint(path).plain["step"] == 1


@pytest.mark.parametrize("name", [".a.ckpt.0123abcd.part", "a.ckpt"])
def test_what_has_a_name_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    assert finish_interrupted(tmp_path) == []
