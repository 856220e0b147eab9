"""The published implementations, from a folder that holds their files."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn


def module(folder: Path, name: str) -> ModuleType:
    """A published file."""
    spec = spec_from_file_location(f"published_{name}", folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def autoclip(file: ModuleType, model: nn.Module, percentile: float) -> Callable[[], Any]:
    """The handler of AutoClip, without an engine around it."""
    handlers: list[Callable[[Any], Any]] = []
    engine = type("Engine", (), {"on": lambda self, event: handlers.append})()
    file.add_autoclip_gradient_handler(engine, model, percentile)
    return lambda: handlers[0](None)
