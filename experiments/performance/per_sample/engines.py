"""One training step in each engine, on the same model and batch."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod

import torch
from models import Case, build
from opacus.grad_sample import prepare_module
from opacus.layers import DPLSTM
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping
from torch import nn
from torch.func import functional_call, grad, vmap

from dpclip.budget.ledger import Ledger
from dpclip.budget.plan import Plan
from dpclip.clipping import make_rule
from dpclip.engine.engine import Engine
from dpclip.engine.setup import trainable_parameters
from dpclip.guards.update_guard import UpdateGuard
from dpclip.noise.keystream import SecretKey
from dpclip.noise.release import WhiteGaussian
from dpclip.per_sample import make_backend
from dpclip.sampling import PoissonSampler

RATE = 1e-6  # learning rate: weights stay near their start, so that every round does the same work


class Step(ABC):
    """An engine with a model of its own."""

    def __init__(self, case: Case) -> None:
        self.model, self.batch, self.losses = case.model.train(), case.batch, case.losses
        self.rows = len(case.batch[0])
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = self._optimizer()

    def _optimizer(self) -> torch.optim.Optimizer:
        if sum(p.numel() for p in self.parameters) < 1e7 and hasattr(self.model, "transformer"):
            return torch.optim.AdamW(self.parameters, lr=RATE)
        return torch.optim.SGD(self.parameters, lr=RATE)

    @abstractmethod
    def step(self) -> None:
        """Forward, backward, clip, noise, update."""


class NonPrivate(Step):
    """The plain step."""

    def micro(self) -> None:
        """Forward and backward."""
        self.losses(self.model, self.batch).mean().backward()

    def finish(self) -> None:
        """Update."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        self.micro()
        self.finish()


class Ours(Step):
    """The engine of `dpclip train`, the ledger in memory; the mode may name a rule: "auto
    per-layer".
    """

    def __init__(self, case: Case, mode: str, noise: float) -> None:
        super().__init__(case)
        mode, _, named = mode.partition(" ")
        rule = make_rule(named or "flat")
        epsilon = 8.0 if noise else math.inf
        plan = Plan(100 * self.rows, self.rows, 1000, noise, 1e-5, epsilon)
        named_parameters = trainable_parameters(self.model)
        groups = rule.partition(
            list(named_parameters), [p.numel() for p in named_parameters.values()]
        )
        self.backend = make_backend(mode, self.model, self.parameters, groups)
        key = SecretKey(bytes(range(32)))
        ledger = Ledger.create(None, plan)
        guard = UpdateGuard(self.optimizer, list(named_parameters.values()), list(named_parameters))
        self.engine = Engine(
            plan=plan, parameters=list(named_parameters.values()), rule=rule, groups=groups,
            optimizer=self.optimizer, guard=guard, sampler=PoissonSampler(plan, plan.units, key),
            ledger=ledger, key=key, noise=WhiteGaussian(),
        )  # fmt: skip
        # a run begins with one row, to tell rows from positions
        row = tuple(part[:1] for part in self.batch)
        with self.backend.capture(1):
            self.losses(self.model, row).mean().backward()

    def micro(self) -> None:
        """Forward, backward, clip, add to the sum."""
        with self.backend.capture(
            self.rows, clip_part=self.engine.open_micro_batch(self.rows)
        ) as view:
            self.losses(self.model, self.batch).mean().backward()
        self.engine.absorb(view)

    def step(self) -> None:
        self.engine.begin()
        self.micro()
        self.engine.finish()


class Opacus(Step):
    """Opacus' grad sample modules with its optimizer."""

    def __init__(self, case: Case, mode: str, noise: float) -> None:
        super().__init__(case)
        self.ghost = mode in ("ghost", "fast gradient clipping")
        options = (
            {"max_grad_norm": 1.0, "use_ghost_clipping": mode == "ghost"} if self.ghost else {}
        )
        kind = "ghost" if self.ghost else mode
        self.wrapped = prepare_module(
            self.model, kind, batch_first=True, loss_reduction="mean", strict=False, **options
        )
        optimizer = DPOptimizerFastGradientClipping if self.ghost else DPOptimizer
        self.optimizer = optimizer(
            self.optimizer,
            noise_multiplier=noise,
            max_grad_norm=1.0,
            expected_batch_size=self.rows,
            loss_reduction="mean",
        )

    def step(self) -> None:
        self.optimizer.zero_grad()
        losses = self.losses(self.wrapped, self.batch)
        if self.ghost:
            DPTensorFastGradientClipping(self.wrapped, self.optimizer, losses, "mean").backward()
        else:
            losses.mean().backward()
        self.optimizer.step()


class Vmap(Step):
    """torch.func: vmap of grad over the whole model."""

    def __init__(self, case: Case, noise: float) -> None:
        super().__init__(case)
        self.noise = noise
        self.named = {name: p for name, p in self.model.named_parameters() if p.requires_grad}

        def loss(values: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            def call(*args: torch.Tensor, **kwargs: torch.Tensor) -> object:
                return functional_call(self.model, values, args, kwargs)

            return self.losses(call, (x[None], y[None])).sum()

        self.gradients = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")

    def step(self) -> None:
        found = self.gradients({name: p.detach() for name, p in self.named.items()}, *self.batch)
        squares = sum(g.flatten(1).pow(2).sum(1) for g in found.values())
        factors = (1.0 / (squares.sqrt() + 1e-6)).clamp(max=1.0)
        for name, gradient in found.items():
            total = (factors @ gradient.flatten(1)).view_as(self.named[name])
            if self.noise:
                total += torch.normal(0.0, self.noise, total.shape)
            self.named[name].grad = total.div_(self.rows)
        self.optimizer.step()


def linear_for_conv1d(model: nn.Module) -> None:
    """HF Conv1D as nn.Linear: the same function, in a layer that Opacus has samplers for."""
    for name, child in list(model.named_children()):
        if type(child).__name__ == "Conv1D":
            layer = nn.Linear(*child.weight.shape)
            layer.weight, layer.bias = nn.Parameter(child.weight.data.t().contiguous()), child.bias
            setattr(model, name, layer)
        else:
            linear_for_conv1d(child)


def make(name: str, mode: str, noise: float, rows: int | None = None) -> Step:
    """An engine by name: "non-private", "ours", "ours MODE", "Opacus MODE", "vmap"; "+linear"
    replaces Conv1D.
    """
    kind, _, rest = mode.partition(" ")
    case = build(name, rows, DPLSTM if kind == "Opacus" else nn.LSTM)
    if rest.endswith("+linear"):
        rest = rest.removesuffix("+linear")
        linear_for_conv1d(case.model)
    if kind == "Opacus":
        return Opacus(copy.copy(case), rest, noise)
    if kind == "ours":
        return Ours(case, rest or "auto", noise)
    return Vmap(case, noise) if kind == "vmap" else NonPrivate(case)
