"""The settings of a run that is kept in a folder, and what of them a resumed run may change."""

from __future__ import annotations

import tomllib

from dpclip.errors import InputError
from dpclip.noise.keystream import SecretKey
from dpclip.record.run_folder import RunFolder
from dpclip.train.settings import UNBOUND, Settings, option


def settings_of(folder: RunFolder) -> Settings:
    """What the run was started with.

    Raises:
        InputError: it was not started by `dpclip train`.
    """
    path = folder.private / "config.toml"
    if not path.is_file():
        raise InputError(
            f"the run in {folder.path} was written by a loop of your own: go on with it by "
            "dpclip.resume(folder, model, optimizer, dataset)"
        )
    return Settings.from_toml(path)


def check_settings(folder: RunFolder, settings: Settings, key: SecretKey) -> None:
    """Refuse other settings than the run began with: the same noise would meet another gradient.

    Args:
        folder: of the run.
        settings: to resume with.
        key: the run's secret.

    Raises:
        InputError: they differ in more than what a resumed run may change.
    """
    if folder.settings_digest == settings.digest(key.subkey("settings")):
        return
    changed = _differences(folder, settings)
    what = (
        f"{', '.join(map(option, changed))} changed"
        if changed
        else "private/config.toml was edited"
    )
    raise InputError(
        f"{what} since the run in {folder.path} began: resume with the original settings, or "
        "start a new run in a new folder"
    )


def _differences(folder: RunFolder, settings: Settings) -> list[str]:
    """Which settings differ from what was published when the run began, as far as that tells."""
    try:
        began = tomllib.loads((folder.public / "config.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    now = tomllib.loads(settings.to_toml(public=True))
    return [
        name for name in now | began if name not in UNBOUND and began.get(name) != now.get(name)
    ]
