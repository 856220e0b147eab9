"""An append-only, fsynced, hash-chained file of JSON records: equal histories give byte-equal
files.

Each line is {"body": ..., "hash": ..., "prev": ..., "seq": n}; the hash covers everything else on
the line, and prev is the hash of the line before. Line 0 is the header.
"""

from __future__ import annotations

import copy
import fcntl
import hashlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from accounting.errors import InputError, JournalBusyError, JournalCorruptError

ORIGIN = "0" * 64  # what the header's line follows


class Journal:
    """One writer's view of the file; use `Journal.create` or `Journal.open`."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file: BinaryIO | None = file
        self._bodies: list[dict[str, Any]] = []
        self._head = ORIGIN
        self._hashes: dict[str, None] = {}  # ordered: one a line
        self.recovered_torn_line = False

    @classmethod
    def create(cls, path: str | Path, header: dict[str, Any]) -> Journal:
        """Start a journal.

        Args:
            header: plain JSON, the first line's body.

        Returns:
            the journal, open and locked.

        Raises:
            InputError: the file exists, or the header is not plain JSON.
        """
        path = Path(path)
        _canonical(header)
        try:
            file = open(path, "x+b")  # noqa: SIM115
        except FileExistsError:
            raise InputError(
                f"journal {path} exists and is never overwritten; open it, or choose a new path"
            ) from None
        journal = cls(path, file)
        journal._lock()
        journal.append(header)
        _sync_directory(path.parent)
        return journal

    @classmethod
    def open(cls, path: str | Path) -> Journal:
        """Verify an existing journal and continue it.

        A torn last line (a write that a crash cut short) is cut off and reported by
        `recovered_torn_line`.

        Raises:
            InputError: there is no such file.
            JournalCorruptError: any other damage.
            JournalBusyError: another writer or reader holds the file.
        """
        path = Path(path)
        try:
            file = open(path, "r+b")  # noqa: SIM115
        except FileNotFoundError:
            raise InputError(
                f"journal {path} does not exist; create it first, or give the right path"
            ) from None
        journal = cls(path, file)
        journal._lock()
        try:
            journal._replay()
        except BaseException:
            journal.close()
            raise
        return journal

    @classmethod
    def read(cls, path: str | Path) -> Journal:
        """Verify a journal without writing to it.

        A torn last line is left out: its charge was never confirmed.

        Returns:
            the journal, closed: nothing can be appended to it.

        Raises:
            InputError: there is no such file.
            JournalCorruptError: any other damage.
            JournalBusyError: a writer holds the file.
        """
        path = Path(path)
        try:
            file = open(path, "rb")  # noqa: SIM115
        except FileNotFoundError:
            raise InputError(f"journal {path} does not exist; give the right path") from None
        journal = cls(path, file)
        try:
            journal._lock(fcntl.LOCK_SH)
            journal._replay(repair=False)
        finally:
            journal.close()
        return journal

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self._path

    @property
    def header(self) -> dict[str, Any]:
        """The record the journal was created with."""
        return copy.deepcopy(self._bodies[0])

    @property
    def records(self) -> list[dict[str, Any]]:
        """All records after the header, oldest first."""
        return copy.deepcopy(self._bodies[1:])

    @property
    def entries(self) -> list[dict[str, Any]]:
        """All lines as they are on disk (seq, prev, body, hash), the header first."""
        hashes = list(self._hashes)
        lines = zip([ORIGIN, *hashes], self._bodies, hashes, strict=False)
        return [
            {"seq": number, "prev": previous, "body": copy.deepcopy(body), "hash": line}
            for number, (previous, body, line) in enumerate(lines)
        ]

    @property
    def head(self) -> str:
        """Hash of the last line; it commits to the whole history."""
        return self._head

    def contains(self, head: str) -> bool:
        """Whether a head seen earlier is part of this history.

        Args:
            head: hash of a line, 64 hexadecimal digits.

        Returns:
            False means that lines were lost or replaced.
        """
        return head in self._hashes

    def append(self, record: dict[str, Any]) -> str:
        """Write one record; it is on disk when this returns.

        Args:
            record: plain JSON.

        Returns:
            the hash of the new line.

        Raises:
            InputError: the record is not plain JSON (NaN and infinity included), or the journal is
                closed.
            OSError: the write failed; what was written of the line is cut off again.
        """
        if self._file is None:
            raise InputError(
                f"journal {self._path} is closed, so nothing can be charged; open it again"
            )
        entry = sealed(len(self._bodies), self._head, record)
        line = _canonical(entry) + b"\n"
        start = self._file.seek(0, os.SEEK_END)
        try:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(start)
            raise
        self._bodies.append(json.loads(line)["body"])
        self._head = entry["hash"]
        self._hashes[self._head] = None
        return self._head

    def close(self) -> None:
        """Release the file and its lock; closing twice does nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _lock(self, kind: int = fcntl.LOCK_EX) -> None:
        assert self._file is not None
        try:
            fcntl.flock(self._file, kind | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise JournalBusyError(
                f"journal {self._path} is held by another writer; wait for it, or stop it"
            ) from None

    def _replay(self, repair: bool = True) -> None:
        assert self._file is not None
        content = self._file.read()
        lines = content.split(b"\n")
        torn = lines.pop()  # what follows the last newline: empty in a whole file
        if not torn and lines and not _parsable(lines[-1]):
            torn = lines.pop() + b"\n"
        for number, line in enumerate(lines):
            self._accept(number, line)
        if not self._bodies:
            raise JournalCorruptError(
                f"journal {self._path} has no header; start a new one at another path"
            )
        if torn:
            self.recovered_torn_line = True
            if repair:
                self._file.truncate(len(content) - len(torn))
                os.fsync(self._file.fileno())

    def _accept(self, number: int, line: bytes) -> None:
        def corrupt(what: str) -> JournalCorruptError:
            return JournalCorruptError(
                f"journal {self._path} line {number + 1}: {what}; restore it from a copy"
            )

        if not _parsable(line):
            raise corrupt("is not a JSON object")
        entry = json.loads(line)
        if set(entry) != {"seq", "prev", "body", "hash"} or not isinstance(entry["body"], dict):
            raise corrupt("does not have exactly seq, prev, body and hash")
        if entry["seq"] != number or entry["prev"] != self._head:
            raise corrupt("does not follow the line before it")
        if entry != sealed(number, self._head, entry["body"]) or line != _canonical(entry):
            raise corrupt("does not match its hash")
        self._bodies.append(entry["body"])
        self._head = entry["hash"]
        self._hashes[self._head] = None


def sealed(number: int, previous: str, body: dict[str, Any]) -> dict[str, Any]:
    """A line of a journal.

    Args:
        number: its place, from 0.
        previous: hash of the line before.
        body: the record, plain JSON.

    Returns:
        the three as "seq", "prev" and "body", with the "hash" of all of them.

    Raises:
        InputError: the record is not plain JSON.
    """
    unsigned = {"seq": number, "prev": previous, "body": body}
    return {**unsigned, "hash": hashlib.sha256(_canonical(unsigned)).hexdigest()}


def _canonical(value: dict[str, Any]) -> bytes:
    """One spelling for equal values: sorted keys, no spaces, shortest float repr, no NaN."""
    try:
        text = json.dumps(
            value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
        )
    except (TypeError, ValueError) as error:
        raise InputError(
            f"record cannot be written as JSON ({error}); use plain numbers and strings"
        ) from error
    if json.loads(text) != value:
        raise InputError(
            "record does not survive JSON (tuples or keys that are not strings?); use lists and "
            "strings"
        )
    return text.encode()


def _parsable(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
