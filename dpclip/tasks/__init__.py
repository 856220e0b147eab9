"""What `dpclip train` can learn. A new task is one file and one line here."""

from __future__ import annotations

from typing import cast

from dpclip.registry import Registry
from dpclip.tasks.base import Task

TASKS: Registry[Task] = Registry("task", "dpclip.tasks")
TASKS.lazy("lm", "dpclip.tasks.language_modelling:LanguageModelling")
TASKS.lazy("classification", "dpclip.tasks.classification:Classification")


def task_kind(name: str) -> type[Task]:
    """The class of a task, whose object needs a tokenizer.

    Args:
        name: of `TASKS`.

    Raises:
        InputError: there is none of that name.
    """
    return cast("type[Task]", TASKS.get(name))
