"""Per-sample gradients of one layer, beside those of one row at a time."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpclip.clipping import Flat
from dpclip.gradient_sum import GradientSum
from dpclip.per_sample import make_backend

MODES = ["bookkeeping", "ghost", "hooks", "functorch"]


B, T, D = 4, 5, 6


class Net(nn.Module):
    """A module in a net that looks at all of its output; the loss is one value a row."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        weights = torch.linspace(0.5, 1.5, y[0].numel(), dtype=y.dtype).view_as(y[0])
        return (torch.tanh(y) * weights + 0.1 * y.square()).flatten(1).sum(1)


class SharedPositions(nn.Module):
    """Looks positions up without a batch dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(9, D), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x + self.table(torch.arange(x.shape[1])))


class Unknown(nn.Module):
    """Arithmetic that nothing is registered for, with dropout inside and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(D, D) / 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.dropout(torch.einsum("btd,de->bte", x, self.matrix.exp()), 0.5, self.training)
        return y, y.sum(1)


class UsesBoth(nn.Module):
    """Two outputs of one module, both of which matter."""

    def __init__(self) -> None:
        super().__init__()
        self.unknown = Unknown()

    def forward(self, x: Tensor) -> Tensor:
        y, total = self.unknown(x)
        return y * total.unsqueeze(1)


def one_at_a_time(
    model: nn.Module, x: Tensor, parameters: list[nn.Parameter]
) -> list[list[Tensor]]:
    found = []
    for row in x:
        gradients = torch.autograd.grad(
            model(row.unsqueeze(0)).sum(), parameters, allow_unused=True
        )
        found.append(
            [
                torch.zeros_like(p) if g is None else g
                for g, p in zip(gradients, parameters, strict=True)
            ]
        )
    return found


def clipped_sum(per_row: list[list[Tensor]], bound: float) -> tuple[list[float], list[Tensor]]:
    norms = [
        float(torch.stack([g.double().square().sum() for g in row]).sum().sqrt()) for row in per_row
    ]
    factors = [min(1.0, bound / norm) for norm in norms]
    return norms, [
        sum(f * row[i] for f, row in zip(factors, per_row, strict=True))
        for i in range(len(per_row[0]))
    ]


def captured(
    mode: str, model: nn.Module, x: Tensor, chunks: list[int], bound: float
) -> tuple[list[float], list[Tensor]]:
    parameters = list(model.parameters())
    backend = make_backend(mode, model, parameters, [0] * len(parameters))
    total, norms, start = GradientSum.zeros(parameters, [0] * len(parameters)), [], 0
    for size in chunks:
        with backend.capture(size) as view:
            model(x[start : start + size]).mean().backward()
        norm = view.squared_norms().sqrt()
        view.weighted_sum(Flat(bound).clip_factors(norm)["release"], into=total)
        norms += norm[0].tolist()
        start += size
    backend.close()
    return norms, total.tensors


def relative_gap(found: list[Tensor], expected: list[Tensor]) -> float:
    gap = sum(
        float((a.double() - b.double()).square().sum())
        for a, b in zip(found, expected, strict=True)
    )
    size = sum(float(b.double().square().sum()) for b in expected)
    return (gap / size) ** 0.5
