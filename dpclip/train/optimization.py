"""Optimizers and learning-rate schedules of `dpclip train`, by name."""

from __future__ import annotations

import math

from dpclip.train.job import Job


def learning_rate(job: Job, step: int) -> float:
    """The rate of one step: a function of the step number alone, so a resumed run needs no schedule
    state.
    """
    steps = job.plan.steps
    shapes = {
        "constant": 1.0,
        "linear": 1 - step / steps,
        "cosine": 0.5 * (1 + math.cos(math.pi * step / steps)),
    }
    return job.learning_rate * shapes[job.settings.lr_schedule]
