"""Start the contenders, let them take turns, collect what they report."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.pacing import Message, Pace

ROOT = Path(__file__).parents[1]
_LOG_LINES = 15


@dataclass(frozen=True)
class Task:
    """One contender's part in a race.

    Attributes:
        label: Name in the results.
        run: ``package.module:function``, called with ``options`` and a `Pacer`.
        options: Plain data.
        device: ``"cpu"`` or ``"cuda"``.
        threads: CPU threads; torch's default if not given.
        python: Interpreter; this one if not given.
    """

    label: str
    run: str
    options: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    threads: int | None = None
    python: str | None = None


Row = dict[str, Any]


def race(
    tasks: Sequence[Task],
    pace: Pace,
    *,
    environment: Mapping[str, str] | None = None,
    limit_s: float = 900.0,
    progress: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Measure the tasks in alternation and return one row for each, in their order.

    A row has ``label``, ``status`` (``"ok"``, or ``"skipped"`` or ``"failed"`` with a ``reason``),
    and ``seconds_per_step``, ``cpu_seconds_per_step``, ``peak_memory_bytes`` and
    ``losses`` (means) with one entry for each round.

    Args:
        tasks: The contenders.
        pace: Steps and rounds.
        environment: Variables added to that of every worker.
        limit_s: Longest silence of a worker in seconds.
        progress: Called with a line of text now and then.
    """
    workers: list[_Worker] = []
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        try:
            for number, task in enumerate(tasks):
                worker = _Worker(task, pace, Path(folder) / str(number), environment or {}, limit_s)
                workers.append(worker)
                rows.append(worker.start())
                progress(f"{task.label}: {rows[-1].get('reason', 'ready')}")
            for turn in range(pace.rounds):
                for worker in workers:
                    worker.take_turn()
                progress(f"round {turn + 1} of {pace.rounds}")
            for worker in workers:
                worker.finish()
        finally:
            for worker in workers:
                worker.close()
    return rows


def first_steps(
    tasks: Sequence[Task],
    rounds: int,
    *,
    environment: Mapping[str, str] | None = None,
    limit_s: float = 900.0,
) -> list[Row]:
    """Start every task ``rounds`` times, in alternation; rows hold ``startup_seconds`` of each."""
    pace = Pace(warmup=1, rounds=1, steps=1, settle=0)
    rows: list[Row] = [
        {"label": task.label, "status": "ok", "startup_seconds": []} for task in tasks
    ]
    for _ in range(rounds):
        for row, [found] in zip(
            rows,
            (race([task], pace, environment=environment, limit_s=limit_s) for task in tasks),
        ):
            if found["status"] != "ok":
                row.update(status=found["status"], reason=found["reason"])
                continue
            row["startup_seconds"].append(found["startup_seconds"])
            row["versions"] = found.get("versions", {})
    return rows


class _Worker:
    """A contender's process, and its row."""

    def __init__(
        self, task: Task, pace: Pace, folder: Path, environment: Mapping[str, str], limit_s: float
    ) -> None:
        folder.mkdir()
        self._limit_s, self._log = limit_s, folder / "log.txt"
        self._pending = b""
        content = {**asdict(task), "pace": asdict(pace)}
        (folder / "task.json").write_text(json.dumps(content), encoding="utf-8")
        variables = {**os.environ, **environment}
        paths = [str(ROOT), variables.get("PYTHONPATH", "")]
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        self._started = time.perf_counter()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *(task.python or sys.executable, "-m", "benchmarks.worker"),
                    str(folder / "task.json"),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=folder,
                env=variables,
            )
        self.row: Row = {
            "label": task.label,
            "status": "ok",
            "seconds_per_step": [],
            "cpu_seconds_per_step": [],
            "peak_memory_bytes": [],
        }

    def start(self) -> Row:
        """Wait until the warm-up is over; the row is filled in by later calls too."""
        message = self._receive()
        if message["event"] == "first_step":
            self.row["startup_seconds"] = time.perf_counter() - self._started
            message = self._receive()
        if message["event"] == "ready":
            self.row["first_losses"] = message.pop("losses", [])[:3]
            self.row.update({key: message[key] for key in message if key != "event"})
        return self.row

    def take_turn(self) -> None:
        """Let the contender make its steps and note what it reports."""
        if self.row["status"] != "ok":
            return
        assert self._process.stdin is not None
        self._process.stdin.write(b"go\n")
        self._process.stdin.flush()
        message = self._receive()
        if message["event"] != "turn":
            return
        for key in ("seconds_per_step", "cpu_seconds_per_step", "peak_memory_bytes"):
            self.row[key].append(message[key])
        if "extra_memory_bytes" in message:
            self.row["extra_memory_bytes"] = message["extra_memory_bytes"]
        if "losses" in message:
            self.row.setdefault("losses", []).append(fmean(message["losses"]))

    def finish(self) -> None:
        """Take leave of a contender that made all its steps."""
        if self.row["status"] == "ok":
            message = self._receive()
            if message["event"] == "done":
                self.row["versions"] = message["versions"]

    def close(self) -> None:
        """End the process: one that waits ends with its input, one that computes is stopped."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _receive(self) -> Message:
        """Return the next message; the end of the process, or a silence too long, is a failure."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + self._limit_s
        while b"\n" not in self._pending:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, left))
            if not ready:
                self._process.kill()
                return self._failed(f"no answer in {self._limit_s:.0f} s")
            piece = os.read(self._process.stdout.fileno(), 1 << 16)
            if not piece:
                return self._failed("the process ended")
            self._pending += piece
        line, _, self._pending = self._pending.partition(b"\n")
        message = json.loads(line)
        if message["event"] in ("skipped", "failed"):
            self.row.update(status=message["event"], reason=message["reason"])
            if message["event"] == "failed":
                self.row["log"] = self._tail()
        return message

    def _failed(self, reason: str) -> Message:
        self.row.update(status="failed", reason=reason, log=self._tail())
        return {"event": "failed"}

    def _tail(self) -> list[str]:
        return self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
