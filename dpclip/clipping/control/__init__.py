"""Thresholds and noise allocation chosen by a controller that sees released values only.

A new controller is one file and one line here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dpclip.clipping.control.controller import Context, Controller
from dpclip.clipping.control.controls import Constant, FollowQuantile, Random, Schedule
from dpclip.clipping.control.learner import Sac
from dpclip.clipping.control.observation import Summary
from dpclip.clipping.control.sac import SacSettings, SoftActorCritic, Transitions
from dpclip.errors import BadInput

__all__ = [
    "Constant",
    "Context",
    "Controller",
    "ControllerSettings",
    "FollowQuantile",
    "Random",
    "Sac",
    "SacSettings",
    "Schedule",
    "SoftActorCritic",
    "Summary",
    "Transitions",
    "controller_names",
    "make_controller",
    "register_controller",
]


@dataclass(frozen=True)
class ControllerSettings:
    """What the rule's settings say to a controller."""

    seed: int = 0
    policy: Path | None = None
    reward: str = "both"


_CONTROLLERS: dict[str, Callable[[ControllerSettings], Controller]] = {}


def register_controller(name: str, make: Callable[[ControllerSettings], Controller]) -> None:
    """Make a controller available by its name, here and to `--clipping rl:controller=NAME`."""
    _CONTROLLERS[name] = make


register_controller(Constant.name, lambda settings: Constant())
register_controller(FollowQuantile.name, lambda settings: FollowQuantile())
register_controller(Schedule.name, lambda settings: Schedule())
register_controller(Random.name, lambda settings: Random(settings.seed))
register_controller(Sac.name, lambda settings: Sac(settings.seed, settings.policy, settings.reward))


def controller_names() -> list[str]:
    """The names that `make_controller` knows."""
    return sorted(_CONTROLLERS)


def make_controller(name: str, settings: ControllerSettings) -> Controller:
    """Build a controller.

    Raises:
        BadInput: there is none of that name.
    """
    if name not in _CONTROLLERS:
        raise BadInput(f"controller {name!r} is unknown: choose one of {', '.join(controller_names())}")
    return _CONTROLLERS[name](settings)
