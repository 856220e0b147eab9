"""How much better or worse a run ends than without a plan: a quadratic in logarithms of learning
rates.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from plans import CENTRE, FADES, PARTS, SPREAD, rates
from torch import Tensor

sys.path.append(str(Path(__file__).parents[2]))  # the project's root

from experiments.support import read_results, write_results

RATE_REACH = 2 * math.log(2)  # an action of 1 multiplies the rate by its exponential

REACH = 1.5  # how many spreads from the centre a plan may lie
RIDGE = 20.0
# a fall of the loss, in nats, beyond which the best rates go no further up
SATURATED, ADAPTERS_SATURATED = 2.0, 1.5
# towards no plan, where the surface is all but flat; of adapters it knows less
PULL, ADAPTERS_PULL = 0.1, 1.0
INTERVAL, FIRST = 4, 1  # decisions are after the first step and after each fourth
# matrices, embeddings, vectors
KINDS = (torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.0, 0.0, 1.0]))
_PAIRS = ((0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (0, 1), (0, 2), (0, 4), (1, 3), (2, 3))


@dataclass(frozen=True)
class Situation:
    """What the best plan may depend on.

    Attributes:
        noise: decimal logarithm of the noise multiplier over the batch size.
        rate: logarithm of the learning rate over the usual one.
        fall: how far the loss falls without a plan, in nats.
        lora: 1 where only adapters are trained, which have neither embeddings nor norms.
        steps: of the run.
    """

    noise: float
    rate: float
    fall: float
    lora: float
    steps: int

    def numbers(self) -> Tensor:
        """With a constant, centred."""
        run = math.log(self.steps / 24)
        fall = min(max(0.0, self.fall), ADAPTERS_SATURATED if self.lora else SATURATED)
        return torch.tensor([1.0, self.noise + 1.6, fall - 1.0, run])

    def usual(self) -> float:
        """How much losses differ between plans, roughly, in nats: more where there is more to
        learn.
        """
        return math.sqrt(0.2 + max(0.0, self.fall))

    def mask(self) -> Tensor:
        """Which parts of a plan do anything."""
        return torch.tensor([1.0, 1.0, 1.0, *[1.0 - self.lora] * 3])


def courses(plan: Tensor, situation: Situation) -> Tensor:
    """Logarithms of the rates: of matrices on average and early on, of embeddings beyond that, of
    vectors beyond that.

    The learning rate falls evenly to 0, and a decision is in force from the update after it.
    """
    steps, plan = situation.steps, plan * situation.mask()
    done = torch.arange(1, steps + 1)
    decided = torch.where(done < INTERVAL, FIRST, done // INTERVAL * INTERVAL)
    chosen = rates(plan.expand(steps, -1), *KINDS, decided, decided / steps)
    multipliers = (RATE_REACH * chosen).exp()
    falling = 1 - torch.arange(steps) / steps
    early = falling * FADES ** torch.arange(steps)
    mean, at_first = (((w[:, None] * multipliers).sum(0) / w.sum()).log() for w in (falling, early))
    own = [mean[0] + situation.rate, at_first[0] + situation.rate]
    beyond = [mean[1] - mean[0], at_first[1] - at_first[0], mean[2] - mean[0]]
    return torch.stack([*own, *beyond])


def _terms(plan: Tensor, situation: Situation) -> Tensor:
    x, numbers = courses(plan, situation), situation.numbers()
    products = torch.stack([x[i] * x[j] for i, j in _PAIRS])
    usual = torch.cat([torch.outer(numbers, x).reshape(-1), products]) * (1 - situation.lora)
    adapters = (
        torch.cat([torch.outer(numbers, x[:2]).reshape(-1), products[[0, 1, 5]]]) * situation.lora
    )
    return torch.cat([usual, adapters])


@dataclass(frozen=True)
class Surface:
    """How much higher the loss ends than without a plan.

    Attributes:
        weights: of the terms.
        scatter: standard deviation of what it leaves unexplained, in its own units.
    """

    weights: Tensor
    scatter: float

    @classmethod
    def fitted(cls, tasks: list[dict[str, Any]], earlier: Surface) -> Surface:
        """To all runs, by ridge regression towards an earlier one; what a plan does beyond the
        usual is bounded, both ways.
        """
        inputs, ends = [], []
        for task in tasks:
            situation = Situation(*task["situation"])
            without = _terms(torch.zeros(len(PARTS)), situation)
            for run in task["runs"]:
                inputs.append(_terms(run["plan"], situation) - without)
                ends.append(math.tanh(2 * run["more"] / situation.usual()) / 2)
        design, goal = torch.stack(inputs).double(), torch.tensor(ends).double()
        before = earlier.weights.double()
        square = design.T @ design + RIDGE * torch.eye(design.shape[1])
        weights = before + torch.linalg.solve(square, design.T @ (goal - design @ before))
        return cls(weights.float(), float((design @ weights - goal).std()))

    def worse(self, situation: Situation, plan: Tensor) -> Tensor:
        """How much higher the loss ends, in units of what is usual."""
        return self.weights @ (_terms(plan, situation) - _terms(torch.zeros(len(PARTS)), situation))

    def best(self, situation: Situation) -> Tensor:
        """The lowest point within reach, by projected descent from no plan."""
        plan = torch.zeros(len(PARTS), requires_grad=True)
        optimizer = torch.optim.Adam([plan], lr=0.03)
        pull = ADAPTERS_PULL if situation.lora else PULL
        for _ in range(120):
            optimizer.zero_grad()
            (self.worse(situation, plan) + pull * plan.square().sum()).backward()
            optimizer.step()
            with torch.no_grad():
                plan.copy_(
                    torch.maximum(
                        torch.minimum(plan, CENTRE + REACH * SPREAD), CENTRE - REACH * SPREAD
                    )
                )
        return plan.detach() * situation.mask()

    def save(self, path: Path) -> None:
        """As JSON."""
        write_results(path, {"weights": self.weights.tolist(), "scatter": self.scatter})

    @classmethod
    def read(cls, path: Path) -> Surface:
        """The inverse of `save`."""
        kept = read_results(path)
        return cls(torch.tensor(kept["weights"]), kept["scatter"])
