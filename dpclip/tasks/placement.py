"""Where a model computes."""

from __future__ import annotations
