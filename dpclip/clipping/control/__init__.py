"""Thresholds and noise allocation chosen by a controller that sees released values only.

A new controller is one file and one line here.
"""

from __future__ import annotations

from typing import cast

from dpclip.clipping.control.baselines import Constant as Constant
from dpclip.clipping.control.baselines import FollowQuantile as FollowQuantile
from dpclip.clipping.control.baselines import Random as Random
from dpclip.clipping.control.baselines import ThresholdSchedule as ThresholdSchedule
from dpclip.clipping.control.context import Context as Context
from dpclip.clipping.control.controller import CONTROLLERS as CONTROLLERS
from dpclip.clipping.control.controller import Controller as Controller
from dpclip.clipping.control.controller import ControllerSettings as ControllerSettings
from dpclip.clipping.control.sac import SacSettings as SacSettings
from dpclip.clipping.control.sac import SoftActorCritic as SoftActorCritic
from dpclip.clipping.control.sac import Transitions as Transitions
from dpclip.clipping.control.sac_controller import SacController as SacController
from dpclip.clipping.control.summary import Summary as Summary


def make_controller(name: str, settings: ControllerSettings) -> Controller:
    """Build a controller.

    Args:
        name: of `CONTROLLERS`.
        settings: what the clipping rule that it serves says to it.

    Raises:
        InputError: there is none of that name.
    """
    return cast("type[Controller]", CONTROLLERS.get(name)).made(settings)
