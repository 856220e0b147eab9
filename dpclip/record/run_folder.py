"""The run folder: `public/` may leave the building, `private/` may not, `ledger.jsonl` is the
journal.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dpclip.budget.ledger import Ledger
from dpclip.budget.plan import Plan
from dpclip.errors import InputError
from dpclip.files import sync_folder
from dpclip.noise.keystream import SecretKey
from dpclip.train.settings import UNBOUND, Settings, option


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
        cls, path: Path, settings: Settings, plan: Plan, key: SecretKey, data_digest: str
    ) -> RunFolder:
        """Lay out a new run; it appears whole or not at all.

        Raises:
            InputError: the folder is in use.
        """
        check_free(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = cls(Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent)))
        try:
            draft.public.mkdir()
            draft.private.mkdir(mode=0o700)
            (draft.public / "config.toml").write_text(settings.to_toml(public=True))
            (draft.private / "config.toml").write_text(settings.to_toml())
            draft.metrics_path.touch()
            secret = {"key": key.material.hex(), "known": key.known, "data": data_digest}
            _write_secret(draft.private / "secret.json", json.dumps(secret))
            Ledger.create(draft.ledger_path, plan, settings.digest(key.subkey("settings"))).close()
            draft.path.chmod(0o755)
            if path.exists():
                path.rmdir()
            os.replace(draft.path, path)
            sync_folder(path.parent)
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
        if not (run.ledger_path.is_file() and (run.private / "config.toml").is_file()):
            raise InputError(
                f"{path} holds no run to resume: give the folder that a run wrote (--output)"
            )
        return run

    def settings(self) -> Settings:
        """What the run was started with."""
        return Settings.from_toml(self.private / "config.toml")

    def secret(self) -> tuple[SecretKey, str]:
        """The run's key, and the fingerprint of its data."""
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

    def check_settings(self, settings: Settings, key: SecretKey) -> None:
        """Refuse to resume with settings that the run did not begin with: the same noise would meet
        another gradient.

        Raises:
            InputError: they differ in more than what a resumed run may change.
        """
        if self._header.get("settings") == settings.digest(key.subkey("settings")):
            return
        changed = self._differences(settings)
        what = (
            f"{', '.join(map(option, changed))} changed"
            if changed
            else "private/config.toml was edited"
        )
        raise InputError(
            f"{what} since the run in {self.path} began: resume with the original settings, or "
            "start a new run in a new folder"
        )

    def _differences(self, settings: Settings) -> list[str]:
        """Which settings differ from what was published when the run began, as far as that
        tells.
        """
        try:
            began = tomllib.loads((self.public / "config.toml").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return []
        now = tomllib.loads(settings.to_toml(public=True))
        return [
            name for name in now | began if name not in UNBOUND and began.get(name) != now.get(name)
        ]

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
