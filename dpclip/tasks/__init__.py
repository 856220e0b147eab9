"""What `dpclip train` can learn. A new task is one file and one line here."""

from __future__ import annotations

from dpclip.registry import Registry
from dpclip.tasks.base import Task

TASKS: Registry[Task] = Registry("task", "dpclip.tasks")
TASKS.lazy("lm", "dpclip.tasks.language_modelling:LanguageModelling")
TASKS.lazy("classification", "dpclip.tasks.classification:Classification")
