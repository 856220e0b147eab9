"""What a run's settings name, as objects: parsed once, and held to what a private run needs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dpclip.clipping import ClippingRule, make_rule
from dpclip.engine.setup import check_assumption
from dpclip.errors import InputError
from dpclip.per_sample import BACKENDS
from dpclip.postprocess import GradientClipper, make_postprocessors
from dpclip.tasks import task_kind
from dpclip.tasks.base import Task
from dpclip.train.optimization import (
    OPTIMIZERS,
    SCHEDULES,
    LearningRateSchedule,
    OptimizerChoice,
)
from dpclip.train.settings import Settings


@dataclass(frozen=True)
class Choices:
    """The objects that a run is made of, before there are data or a model.

    Attributes:
        rule: clips.
        postprocess: clippers of the released gradient, in order.
        task: the class; its object needs the tokenizer.
        optimizer: to be built over the model's parameters.
        lr_schedule: of the learning rate.
    """

    rule: ClippingRule
    postprocess: tuple[GradientClipper, ...]
    task: type[Task]
    optimizer: OptimizerChoice
    lr_schedule: LearningRateSchedule

    @classmethod
    def of(cls, settings: Settings) -> Choices:
        """Parse the settings that are texts.

        Raises:
            InputError: unknown names or settings, or choices that do not go together.
        """
        rule = make_rule(settings.clipping)
        clippers = tuple(make_postprocessors(settings.postprocess))
        _check_bounds(settings, rule)
        check_assumption(rule, settings.accept_conditional)
        _check_floor(settings, rule, clippers)
        if settings.grad_sample_mode not in BACKENDS:
            raise InputError(
                f"--grad-sample-mode {settings.grad_sample_mode!r} is unknown: choose one of "
                f"{', '.join(BACKENDS)}"
            )
        if settings.accountant not in ("prv", "rdp"):
            raise InputError(
                f"--accountant {settings.accountant!r} is unknown: choose one of prv, rdp"
            )
        return cls(
            rule,
            clippers,
            task_kind(settings.task),
            OPTIMIZERS.make(settings.optimizer),
            SCHEDULES.make(settings.lr_schedule),
        )


def _check_bounds(settings: Settings, rule: ClippingRule) -> None:
    if math.isfinite(settings.epsilon) and not all(map(math.isfinite, rule.bounds())):
        raise InputError(
            f"--clipping {settings.clipping} bounds nothing, so no noise suffices for epsilon = "
            f"{settings.epsilon:g}: choose another rule, or --epsilon inf"
        )


def _check_floor(
    settings: Settings, rule: ClippingRule, clippers: tuple[GradientClipper, ...]
) -> None:
    private = math.isfinite(settings.epsilon)
    if private and rule.transforms and any(clipper.needs_floor for clipper in clippers):
        raise InputError(
            f"--postprocess {settings.postprocess} needs the norm that noise alone has, and with "
            f"--clipping {rule.name} the noise differs between coordinates: choose input=noised"
        )
