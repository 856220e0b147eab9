"""The run folder: `public/` may leave the building, `private/` may not, `ledger.jsonl` is the
journal.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dpclip.budget.ledger import Ledger
from dpclip.budget.plan import Plan
from dpclip.errors import InputError
from dpclip.files import sync_folder
from dpclip.noise.keystream import SecretKey


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run, and what is kept at them."""

    path: Path

    @property
    def public(self) -> Path:
        return self.path / "public"

    @property
    def private(self) -> Path:
        return self.path / "private"

    @property
    def ledger_path(self) -> Path:
        return self.path / "ledger.jsonl"

    @property
    def statement_path(self) -> Path:
        return self.public / "statement.json"

    @property
    def metrics_path(self) -> Path:
        return self.public / "released_metrics.jsonl"

    @classmethod
    def create(
        cls,
        path: Path,
        plan: Plan,
        key: SecretKey,
        *,
        files: Mapping[str, str],
        data_digest: str | None = None,
        settings_digest: str | None = None,
        ledger: Ledger | None = None,
    ) -> RunFolder:
        """Lay out a new run; it appears whole or not at all.

        Args:
            path: of the folder, new or empty.
            plan: what is charged against.
            key: the run's secret.
            files: texts by path within the folder, such as "public/config.toml".
            data_digest: fingerprint of the private records, where there is one.
            settings_digest: keyed digest of the settings, which binds them to the ledger.
            ledger: one in memory, which moves into the folder; by default a new one is begun.

        Raises:
            InputError: the folder is in use.
        """
        check_free(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = cls(Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent)))
        try:
            draft.public.mkdir()
            draft.private.mkdir(mode=0o700)
            for name, text in files.items():
                (draft.path / name).write_text(text)
            draft.metrics_path.touch()
            secret = {"key": key.material.hex(), "known": key.known, "data": data_digest}
            _write_secret(draft.private / "secret.json", json.dumps(secret))
            if ledger is None:
                Ledger.create(draft.ledger_path, plan, settings_digest).close()
            draft.path.chmod(0o755)
            if path.exists():
                path.rmdir()
            os.replace(draft.path, path)
            sync_folder(path.parent)
            if ledger is not None:
                draft = cls(path)
                ledger.move_to(draft.ledger_path)
        except BaseException:
            shutil.rmtree(draft.path, ignore_errors=True)
            raise
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run.

        Raises:
            InputError: there is none.
        """
        run = cls(path)
        if not (run.ledger_path.is_file() and (run.private / "secret.json").is_file()):
            raise InputError(
                f"{path} holds no run to resume: give the folder that a run wrote (--output)"
            )
        return run

    def secret(self) -> tuple[SecretKey, str | None]:
        """The run's key, and the fingerprint of its data, if it has one."""
        fields = json.loads((self.private / "secret.json").read_text())
        return SecretKey(bytes.fromhex(fields["key"]), known=fields["known"]), fields["data"]

    def plan(self) -> Plan:
        """The plan that the ledger was opened with.

        Raises:
            InputError: it was opened by an earlier version.
            JournalCorruptError: the ledger was edited.
        """
        return Plan.from_json(self._header["plan"])

    @cached_property
    def _header(self) -> dict[str, Any]:
        return Ledger.header(self.ledger_path)  # reads the whole chain of hashes

    @property
    def settings_digest(self) -> str | None:
        """The keyed digest of settings that the ledger is bound to, if it is."""
        return self._header.get("settings")

    def open_ledger(self, plan: Plan) -> Ledger:
        """The ledger, if it was written for this plan."""
        return Ledger.open(self.ledger_path, plan)


def _write_secret(path: Path, text: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def check_free(path: Path) -> None:
    """Refuse a folder that holds another run, or anything else.

    Raises:
        InputError: with the remedy.
    """
    if path.is_file():
        raise InputError(f"--output {path} is a file: give a folder that does not exist yet")
    if (path / "ledger.jsonl").exists():
        raise InputError(
            f"--output {path} holds another run: choose another folder, or continue it with "
            f"--resume {path}"
        )
    if path.is_dir() and any(path.iterdir()):
        raise InputError(f"--output {path} is not empty: give a new folder")


def free_folder(base: Path) -> Path:
    """The first of base, base-2, base-3, … that does not exist."""
    candidate, number = base, 2
    while candidate.exists():
        candidate, number = base.with_name(f"{base.name}-{number}"), number + 1
    return candidate
