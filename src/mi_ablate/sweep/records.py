"""The record file of a grid: one JSON object a line, appended and never changed; the last line of a cell counts.

A line is written in one call and flushed to the disk. A process killed in the middle leaves an unfinished last line, which
readers skip and the next writer cuts off. One process writes a file at a time (a lock that dies with its holder).
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from mi_ablate._files import ArtefactError

FORMAT = "mi_ablate record 1"
APART = ("command", "run")
"""Keys that say where and when a cell ran; records of one cell agree in all others."""
Record = dict[str, Any]


class RecordFile:
    """The records of one grid in ``path``. Reading needs nothing; appending needs ``with``, which takes the lock."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock: Any = None

    def lines(self) -> list[Record]:
        """Return every record in the order of writing, superseded ones too.

        Raises:
            ArtefactError: a line that is not a record, or one of another format.

        """
        whole, _ = self._split()
        return [self._parsed(number, line) for number, line in enumerate(whole.splitlines(), 1)]

    def _split(self) -> tuple[bytes, bytes]:
        """The whole lines, and what is left of one that was never finished.

        A last line that only lacks its newline is whole: no beginning of a JSON object is one itself.
        """
        text = self.path.read_bytes() if self.path.is_file() else b""
        at = text.rfind(b"\n") + 1
        try:
            json.loads(text[at:])
        except ValueError:
            return text[:at], text[at:]
        return text, b""

    def latest(self) -> dict[str, Record]:
        """Return the last record of each cell, by key."""
        return {record["key"]: record for record in self.lines()}

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one line; whatever fails, the file holds its old lines and perhaps the new one.

        Raises:
            RuntimeError: the file is not open for writing (``with``).
            OSError: the disk is full, say; the file is cut back to what it was.

        """
        if self._lock is None:
            raise RuntimeError(f"{self.path} is not open for writing; use `with RecordFile(path) as records:`.")
        line = json.dumps(record, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        before = self.path.stat().st_size if self.path.exists() else 0
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            written = 0
            while written < len(line):
                written += os.write(handle, line[written:])
            os.fsync(handle)
        except OSError as error:
            os.ftruncate(handle, before)
            raise OSError(
                error.errno, f"{error.strerror}: the record of cell {record['key']} did not fit into {self.path}. "
                "Nothing is lost: free some space and give the same command again"
            ) from None  # fmt: skip
        finally:
            os.close(handle)

    def _parsed(self, number: int, line: bytes) -> Record:
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ArtefactError(
                f"{self.path}, line {number} is not JSON ({error}); take it out or restore it."
            ) from None
        told = record.get("format") if isinstance(record, dict) else None
        if told != FORMAT:
            raise ArtefactError(
                f"{self.path}, line {number} is of the format {told!r}; this version reads and writes {FORMAT!r} and does "
                "not mix the two. Move the file away, or use the version that wrote it."
            )
        return record

    def __enter__(self) -> "RecordFile":
        from filelock import FileLock, Timeout

        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path.parent / f".{self.path.name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RuntimeError(
                f"Another process is writing {self.path}. Wait for it or stop it; its lock goes when it ends."
            ) from None
        self._lock = lock
        self._repair()
        return self

    def _repair(self) -> None:
        """Cut off a line that was never finished, and end the last one."""
        whole, unfinished = self._split()
        if unfinished:
            os.truncate(self.path, len(whole))
        elif whole and not whole.endswith(b"\n"):
            with self.path.open("ab") as file:
                file.write(b"\n")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()
        self._lock = None

    def __repr__(self) -> str:
        records = self.latest().values()
        failed = sum(record["status"] == "failed" for record in records)
        return f"RecordFile({self.path.name}: {len(records) - failed} done, {failed} failed)"


def comparable(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record without what differs between two runs of the same cell: command, times, host, process."""
    return {key: value for key, value in record.items() if key not in APART}
