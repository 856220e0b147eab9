"""The laws that rules, tasks and events must keep, for people's own, too.

Call `check_rule`, `check_task` or `check_event` in a test: each raises AssertionError where a law
is broken.
"""

from __future__ import annotations

from dpclip.testing.events import check_event as check_event
from dpclip.testing.rules import check_rule as check_rule
from dpclip.testing.tasks import check_task as check_task
