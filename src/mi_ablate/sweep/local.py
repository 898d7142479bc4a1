"""The local engine: processes with one torch thread each, which take one task (or a group to train together) at a time.

A task whose worker dies is given to a new one, which goes on from its checkpoint; after `ATTEMPTS` deaths it has failed. A
worker ends by itself when this process is gone, however it went: its standard input closes.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mi_ablate.sweep.tasks import FULL, FULL_DISK, LOG, Ended, Task

ATTEMPTS = 3
PAUSE = 0.2
"""Seconds between looks at the workers."""


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass
class _Worker:
    process: "subprocess.Popen[bytes]"
    tasks: Sequence[Task] = ()
    """What it works on; nothing when idle."""
    attempt: int = 1

    def take(self, tasks: Sequence[Task], attempt: int) -> None:
        """Hand tasks to the idle process."""
        for task in tasks:
            Path(task.folder).mkdir(parents=True, exist_ok=True)
            task.clear()
            if attempt == 1:
                (Path(task.folder) / LOG).unlink(missing_ok=True)
        self.tasks, self.attempt = tasks, attempt
        with contextlib.suppress(BrokenPipeError):  # a death that the next look finds
            self.process.stdin.write(json.dumps([task.to_json() for task in tasks]).encode() + b"\n")  # type: ignore[union-attr]
            self.process.stdin.flush()  # type: ignore[union-attr]

    def death(self) -> str:
        """How the process went, in words."""
        code = self.process.returncode
        how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        log = Path(self.tasks[0].folder) / LOG
        last = log.read_text(errors="replace").strip().splitlines()[-1:] if log.is_file() else []
        return f"its worker {how}, {self.attempt} times in all" + (f"; its last words: {last[0]}" if last else "")


def local(groups: Sequence[Sequence[Task]], workers: int) -> Generator[Ended | None, None, None]:
    """Yield each task's end as it comes, and None between looks; closing the iterator stops the workers."""
    waiting = deque((group, 1) for group in groups)
    team: list[_Worker] = []
    try:
        while waiting or any(worker.tasks for worker in team):
            while waiting and len(team) < workers and all(worker.tasks for worker in team):
                team.append(_Worker(_start()))
            for worker in team:
                if waiting and not worker.tasks:
                    worker.take(*waiting.popleft())
            yield None
            time.sleep(PAUSE)
            for worker in [w for w in team if w.tasks]:
                dead = worker.process.poll() is not None  # asked before the ends are read: a late end counts
                ends = [(task, task.ended()) for task in worker.tasks]
                died = [task for task, end in ends if end is None]
                if died and not dead:
                    continue
                if dead:
                    team.remove(worker)
                    _stop(worker.process)
                if died and worker.process.returncode == FULL_DISK:
                    yield from [Ended(task, None, "the disk is full", FULL[0]) for task in died]
                elif died and worker.attempt < ATTEMPTS:
                    waiting.appendleft((died, worker.attempt + 1))
                elif died:
                    yield from [Ended(task, None, worker.death(), attempts=ATTEMPTS) for task in died]
                yield from [end._replace(attempts=worker.attempt) for _, end in ends if end is not None]
                worker.tasks = ()
    finally:
        for worker in team:
            _close(worker.process)
        for worker in team:
            _stop(worker.process)


def _start() -> "subprocess.Popen[bytes]":
    one = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    command = [sys.executable, "-m", "mi_ablate.sweep.work"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, env={**os.environ, **one})


def _close(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(BrokenPipeError):
        if process.stdin is not None:
            process.stdin.close()


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Close a worker's standard input, at which it ends if it has not, and wait for it."""
    _close(process)
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
