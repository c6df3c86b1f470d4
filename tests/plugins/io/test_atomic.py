"""A checkpoint is there and whole, or the save says why not."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from faults import become_nobody, forks, in_child, kill_after, limit_file_size
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from lightning_llm.plugins import AtomicCheckpointIO
from lightning_llm.plugins.io import DamagedCheckpointError, durable, verify_checkpoint
from lightning_llm.plugins.io.sealed_file import SealingWriter

OLD = {"weight": torch.arange(1000.0), "step": 1}
NEW = {"weight": torch.arange(1000.0) + 1, "step": 2}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    AtomicCheckpointIO().save_checkpoint(OLD, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def step_in(path: Path) -> int:
    return AtomicCheckpointIO().load_checkpoint(path)["step"]


def test_round_trip_keeps_shared_memory_and_plain_torch_reads_it(tmp_path: Path) -> None:
    weight = torch.randn(7, 5)
    saved = {"a": weight, "tied": weight, "part": weight[2:], "odd": torch.tensor(3).bool()}
    AtomicCheckpointIO().save_checkpoint(saved, tmp_path / "deep" / "folder" / "c.ckpt")
    file = tmp_path / "deep" / "folder" / "c.ckpt"
    assert verify_checkpoint(file)
    for loaded in (
        AtomicCheckpointIO().load_checkpoint(file),
        torch.load(file, weights_only=True),
        torch.load(file, weights_only=True, mmap=True),
    ):
        assert torch.equal(loaded["a"], weight)
        assert torch.equal(loaded["part"], weight[2:])
        assert loaded["a"].data_ptr() == loaded["tied"].data_ptr()
    assert zipfile.ZipFile(file).testzip() is None
    assert file.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_the_checksum_goes_where_the_file_goes(path: Path, tmp_path: Path) -> None:
    copied = tmp_path / "elsewhere.ckpt"
    copied.write_bytes(path.read_bytes())
    assert verify_checkpoint(copied)


@forks
def test_killed_at_any_byte_the_old_file_loads(path: Path) -> None:
    size = path.stat().st_size
    for cut in range(0, size, size // 20):

        def killed_save(cut: int = cut) -> None:
            kill_after(cut)
            AtomicCheckpointIO().save_checkpoint(NEW, path)

        assert in_child(killed_save)[0] == -9
        assert step_in(path) == 1
        assert [p.name for p in path.parent.glob("*.ckpt")] == ["last.ckpt"]
    # What the killed left is swept by the next save.
    assert len(list(path.parent.iterdir())) > 1
    AtomicCheckpointIO().save_checkpoint(NEW, path)
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]


def test_a_save_in_progress_is_not_swept(path: Path) -> None:
    with durable._temporary(path) as (temporary, _):
        assert durable.sweep(path.parent) == []
        assert temporary.exists()


def test_file_then_rename_then_folder_are_forced_to_the_disk(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def traced_fsync(handle: int) -> None:
        calls.append("folder" if Path(f"/proc/self/fd/{handle}").is_dir() else "file")
        fsync(handle)

    def traced_replace(*names: Any) -> None:
        calls.append("rename")
        replace(*names)

    monkeypatch.setattr(os, "fsync", traced_fsync)
    monkeypatch.setattr(os, "replace", traced_replace)
    AtomicCheckpointIO().save_checkpoint(NEW, path)
    assert calls == ["file", "rename", "folder"]


@forks
@pytest.mark.parametrize("room", [0, 1000, 3000])
def test_no_space_names_path_needed_and_free(path: Path, room: int) -> None:
    def save() -> None:
        limit_file_size(room)
        AtomicCheckpointIO().save_checkpoint(NEW, path)

    status, output = in_child(save)
    assert status == 1
    message = rf"checkpoint {re.escape(str(path))} was not saved: .*; it needs 4,000 bytes, [0-9,]+"
    assert re.search(message + " are free in .*Files saved before are untouched", output)
    assert step_in(path) == 1
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a small file system")
def test_full_file_system(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        io = AtomicCheckpointIO()
        io.save_checkpoint(OLD, tmp_path / "a.ckpt")
        with pytest.raises(OSError, match=r"No space left.*needs 400,000 bytes") as caught:
            io.save_checkpoint({"weight": torch.zeros(100_000)}, tmp_path / "b.ckpt")
        assert caught.value.errno == errno.ENOSPC
        assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]
        assert step_in(tmp_path / "a.ckpt") == 1
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@forks
def test_a_folder_without_permission_raises(path: Path) -> None:
    path.parent.chmod(0o555)
    for parent in path.parent.parents:
        if parent.stat().st_uid == os.getuid() and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)

    def save() -> None:
        become_nobody()
        AtomicCheckpointIO().save_checkpoint(NEW, path)

    status, error = in_child(save)
    assert status == 1
    assert re.search(rf"FileAccessError.*{re.escape(str(path))} was not saved: Permission", error)
    path.parent.chmod(0o755)
    assert step_in(path) == 1


def test_a_path_through_a_file_raises(path: Path) -> None:
    with pytest.raises(OSError, match=r"below\.ckpt was not saved"):
        AtomicCheckpointIO().save_checkpoint(NEW, path / "below.ckpt")


def test_a_failing_disk_is_not_reported_as_saved(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="was not saved: Input/output error"):
        AtomicCheckpointIO().save_checkpoint(NEW, path)
    assert step_in(path) == 1


def test_an_unpicklable_value_keeps_its_own_error(path: Path) -> None:
    with pytest.raises((AttributeError, TypeError, RuntimeError), match=r"pickle|lambda"):
        AtomicCheckpointIO().save_checkpoint({"f": lambda: 0}, path)
    assert step_in(path) == 1
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]


def test_every_flipped_bit_is_refused(path: Path) -> None:
    data = path.read_bytes()
    places = [*range(0, len(data), len(data) // 60), *range(len(data) - 110, len(data))]
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        with pytest.raises(DamagedCheckpointError, match=re.escape(str(path))):
            AtomicCheckpointIO().load_checkpoint(path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_truncated_files_are_refused_with_name_and_size(path: Path, share: float) -> None:
    data = path.read_bytes()[: int(path.stat().st_size * share)]
    path.write_bytes(data)
    with pytest.raises(DamagedCheckpointError, match=rf"last\.ckpt.*{len(data):,} bytes"):
        AtomicCheckpointIO().load_checkpoint(path)


def test_garbage_and_extended_files_are_refused(path: Path) -> None:
    data = path.read_bytes()
    for bad in (b"x" * 5000, data + b"\0", b"PK\x03\x04" + b"\0" * 5000, b"not much"):
        path.write_bytes(bad)
        with pytest.raises(DamagedCheckpointError, match=rf"last\.ckpt.*{len(bad):,} bytes"):
            AtomicCheckpointIO().load_checkpoint(path)


def test_a_file_of_plain_torch_loads_and_is_called_unverified(tmp_path: Path, caplog: Any) -> None:
    torch.save(OLD, tmp_path / "plain.ckpt")
    assert verify_checkpoint(tmp_path / "plain.ckpt") is False
    with caplog.at_level("INFO"):
        assert step_in(tmp_path / "plain.ckpt") == 1
    assert "plain.ckpt carries no checksum: loaded unverified" in caplog.text


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    torch.save({"state_dict": Payload(tmp_path / "ran")}, tmp_path / "evil.ckpt")
    io = AtomicCheckpointIO()
    with pytest.raises(DamagedCheckpointError, match=r"evil\.ckpt .*plain data: UnpicklingError"):
        io.load_checkpoint(tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match="weights_only=False would run code"):
        io.load_checkpoint(tmp_path / "evil.ckpt", weights_only=False)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/evil.ckpt", "https://x/y", "s3://b/c.ckpt"])
def test_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="addresses are not read or written"):
        AtomicCheckpointIO().load_checkpoint(url)
    with pytest.raises(ValueError, match="addresses are not read or written"):
        AtomicCheckpointIO().save_checkpoint(OLD, url)


def test_missing_file_and_storage_options(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "none.ckpt")
    with pytest.raises(TypeError, match="storage_options"):
        AtomicCheckpointIO().save_checkpoint(OLD, tmp_path / "a.ckpt", storage_options=1)


def test_remove(path: Path) -> None:
    AtomicCheckpointIO().remove_checkpoint(path)
    AtomicCheckpointIO().remove_checkpoint(path)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "folder", "outside", "dots", "through a link"])
def test_what_a_checkpoint_names_is_not_deleted(tmp_path: Path, kind: str) -> None:
    """A run takes the paths of what it deletes from the checkpoint that it resumes from."""
    run, other = tmp_path / "run", tmp_path / "other"
    run.mkdir()
    other.mkdir()
    io = AtomicCheckpointIO()
    io.save_checkpoint(OLD, run / "new.ckpt")
    io.save_checkpoint(OLD, other / "theirs.ckpt")
    io = AtomicCheckpointIO()
    io.save_checkpoint(OLD, run / "new.ckpt")
    (run / "notes.ckpt").write_text("not a checkpoint")
    (run / "folder").mkdir()
    (run / "link").symlink_to(other)
    doomed, message = {
        "file": (run / "notes.ckpt", "no checkpoint file"),
        "folder": (run / "folder", "a folder without a checkpoint"),
        "outside": (other / "theirs.ckpt", "outside of the folders that this run saves to"),
        "dots": (run / ".." / "other" / "theirs.ckpt", "leads through"),
        "through a link": (run / "link" / "theirs.ckpt", "outside of the folders"),
    }[kind]
    with pytest.warns(UserWarning, match=f"is not deleted: .*{message}"):
        io.remove_checkpoint(doomed)
    assert doomed.exists()
    io.remove_checkpoint(run / "new.ckpt")
    assert not (run / "new.ckpt").exists()


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_a_resumed_run_deletes_nothing_that_its_checkpoint_names(tmp_path: Path) -> None:
    module, run = Net(), tmp_path / "run"

    def trainer(steps: int) -> L.Trainer:
        best = ModelCheckpoint(run, monitor="loss", every_n_train_steps=1, save_top_k=1)
        return L.Trainer(
            max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[best], plugins=[AtomicCheckpointIO()],
        )  # fmt: skip

    trainer(1).fit(module, DataLoader(torch.ones(4, 1)))
    [saved] = run.glob("*.ckpt")
    victim = tmp_path / "precious.ckpt"
    victim.write_bytes(saved.read_bytes())
    checkpoint = torch.load(saved, weights_only=True)
    named = f"{run}/../precious.ckpt"
    for state in checkpoint["callbacks"].values():
        if "best_k_models" in state:
            worst = torch.tensor(1e9)
            state |= {"best_k_models": {named: worst}, "kth_best_model_path": named}
            state |= {"kth_value": worst, "best_model_path": named, "best_model_score": worst}
    torch.save(checkpoint, tmp_path / "evil.ckpt")
    with pytest.warns(UserWarning, match=r"precious\.ckpt is not deleted"):
        trainer(2).fit(module, DataLoader(torch.ones(4, 1)), ckpt_path=tmp_path / "evil.ckpt")
    assert victim.exists()


class Net(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = self.layer(batch).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("size", [1, 7, 22, 23, 1000])
def test_pieces_of_any_size_are_hashed_alike(tmp_path: Path, size: int) -> None:
    whole = tmp_path / "whole"
    torch.save(OLD, whole)
    data = whole.read_bytes()
    with (tmp_path / "sealed").open("wb") as file:
        writer = SealingWriter(file)
        for start in range(0, len(data), size):
            writer.write(data[start : start + size])
        writer.seal()
    assert verify_checkpoint(tmp_path / "sealed")
