"""What a run can promise so far, and what that rests on."""

from __future__ import annotations

from dataclasses import dataclass

from accounting.wording import shown_epsilon
from dpclip.engine.engine import Engine

FAST_ARITHMETIC = "float32 rounding in the sums stays within the booked slack, which is not proved"


@dataclass(frozen=True)
class Guarantee:
    """What a run can promise so far."""

    epsilon: float
    delta: float
    kind: str
    adjacency: str
    unit: str
    accountant: str
    assumption: str | None = None

    def __str__(self) -> str:
        condition = f" ({self.assumption})" if self.assumption else ""
        return (
            f"({shown_epsilon(self.epsilon)}, {self.delta:g})-differentially private, "
            f"{self.kind}{condition}; adjacency {self.adjacency}, unit: {self.unit}, accountant "
            f"{self.accountant}"
        )


def guarantee_kind(engine: Engine) -> tuple[str, str | None]:
    """Worst-case, or conditional with what it rests on: a key that others have, a rule's unchecked
    assumption.
    """
    found = [engine.rule.assumption] if engine.rule.assumption else []
    found += engine.assumptions
    if engine.key.known:
        found.append("the noise key is known (for tests): whoever has it can remove the noise")
    if engine.plan.private and engine.plan.arithmetic == "fast":
        found.append(FAST_ARITHMETIC)
    return ("conditional", "; ".join(found)) if found else (engine.plan.scheme.kind, None)
