"""Convolutions in one, two and three dimensions.

Writing per-sample weight gradients out takes the same arithmetic as the batch's own weight
gradient: one call a sample keeps the vendor's convolution kernels in use, where unfolded patches
take k^n times the memory. Late layers, with few positions and many channels, are measured through
Gram matrices instead. Patches need not be unfolded for that: the Gram matrix of the patches of an
image is a sum of shifted blocks of the Gram matrix of its pixels (derived here).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from dpclip.per_sample.forms.factored import Dense, Factored, Sink, cleared
from dpclip.per_sample.forms.grams import GRAM_ELEMENTS, Grams, certified
from dpclip.precision import accumulation_dtype

# how much less arithmetic Gram matrices must take: they come on top of the weighted sum
_GRAM_ADVANTAGE = 3


def convolution(
    layer: _ConvNd, activations: list[Tensor], backprops: Tensor
) -> dict[nn.Parameter, Factored]:
    """Conv1d, Conv2d and Conv3d with any stride, padding, dilation and groups.

    Args:
        layer: with W [C_out, C_in / groups, *kernel].
        activations: the input, [B, C_in, *size].
        backprops: gradients by the output, [B, C_out, *positions].
    """
    weight, bias = cast(nn.Parameter, layer.weight), layer.bias
    dtype = accumulation_dtype(torch.promote_types(activations[0].dtype, backprops.dtype))
    inputs, padding = activations[0].to(dtype), layer.padding
    if isinstance(padding, str) or layer.padding_mode != "zeros":
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        inputs = F.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode)
        padding = (0,) * (inputs.dim() - 2)
    geometry = Geometry(
        tuple(weight.shape[2:]),
        tuple(layer.stride),
        tuple(padding),
        tuple(layer.dilation),
        layer.groups,
    )
    use = Convolved(inputs, backprops.to(dtype), geometry)
    found: dict[nn.Parameter, Factored] = {weight: use if use.prefers_gram else use.materialized()}
    if bias is not None:
        found[cast(nn.Parameter, bias)] = Dense(use.grads.flatten(2).sum(2))
    return found


@dataclass(frozen=True)
class Geometry:
    """How a kernel moves over its input; one entry a spatial dimension."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


@dataclass
class Convolved(Factored):
    """The weight's gradients from a convolution's inputs and output gradients.

    Attributes:
        inputs: [B, C_in, *size].
        grads: [B, C_out, *positions].
        geometry: how the kernel moves.
    """

    inputs: Tensor
    grads: Tensor
    geometry: Geometry

    def __post_init__(self) -> None:
        channels = (self.grads.shape[1], self.inputs.shape[1] // self.geometry.groups)
        self.shape = torch.Size((*channels, *self.geometry.kernel))

    @property
    def rows(self) -> int:
        return len(self.inputs)

    @property
    def device(self) -> torch.device:
        return self.inputs.device

    @property
    def prefers_gram(self) -> bool:
        """Whether Gram matrices are cheap enough to come on top of the weighted sum."""
        if self.geometry.groups > 1:
            return False
        pixels, positions = self._pixels, math.prod(self.grads.shape[2:])
        shifts = math.prod(self.geometry.kernel)
        gram = pixels**2 * self.inputs.shape[1] + positions**2 * (self.grads.shape[1] + shifts)
        return _GRAM_ADVANTAGE * gram < positions * self.shape.numel()

    @property
    def _pixels(self) -> int:
        return math.prod(
            n + 2 * p for n, p in zip(self.inputs.shape[2:], self.geometry.padding, strict=True)
        )

    def squared_norms(self) -> Tensor:
        if not self.prefers_gram:
            return self.materialized().squared_norms()
        step = max(1, GRAM_ELEMENTS // self._pixels**2)
        pieces = [slice(i, i + step) for i in range(0, self.rows, step)]
        return torch.cat(
            [self._gram_norms(self.inputs[piece], self.grads[piece]) for piece in pieces]
        )

    def _gram_norms(self, inputs: Tensor, grads: Tensor) -> Tensor:
        geometry, positions = self.geometry, grads.shape[2:]
        padded = F.pad(inputs, [p for n in reversed(geometry.padding) for p in (n, n)])
        pixels, size = padded.flatten(2), padded.shape[2:]
        gram = torch.bmm(pixels.transpose(1, 2), pixels).view(len(inputs), *size, *size)
        patches = gram.new_zeros(len(inputs), *positions, *positions)
        for offset in itertools.product(*(range(k) for k in geometry.kernel)):
            steps = zip(offset, geometry.dilation, geometry.stride, positions, strict=True)
            window = tuple(slice(o * d, o * d + s * (n - 1) + 1, s) for o, d, s, n in steps)
            patches += gram[(slice(None), *window, *window)]
        flat = grads.flatten(2)
        count = flat.shape[2]
        by_left, by_right = patches.view(-1, count, count), torch.bmm(flat.transpose(1, 2), flat)
        ours, theirs = _lengths(by_left), _lengths(by_right)
        total = by_left.mul_(by_right).sum((1, 2), dtype=torch.float64)
        found = Grams(total, (ours * theirs).sum(1), ours.sum(1), theirs.sum(1))
        width = inputs.shape[1] + grads.shape[1] + math.prod(geometry.kernel)
        return certified(found, width, count, grads.dtype, blocks=False)

    def vanishing(self) -> Tensor:
        return (self.grads == 0).flatten(1).all(1) | (self.inputs == 0).flatten(1).all(1)

    def add_weighted(self, factors: Tensor, into: Tensor, keep: Tensor | None = None) -> None:
        """into += sum_i factors[i] g_i, as one convolution.

        Args:
            factors: [B].
            into: [C_out, C_in / groups, *kernel], float32 or wider.
            keep: which samples are read, bool, [B]; None reads all.
        """
        inputs, grads = (
            cleared(keep, self.inputs).to(into.dtype),
            cleared(keep, self.grads).to(into.dtype),
        )
        into += self._weight_gradient(
            inputs, grads * factors.to(into.dtype).view(-1, *[1] * (grads.dim() - 1))
        )

    def contributions(self, scales: Tensor, units: Sequence[int], sink: Sink) -> None:
        """Hand over scales[i] g_i of each of these units, whole.

        Args:
            scales: [B], in the dtype that the gradients are computed in.
            units: which samples.
            sink: where they go.
        """
        for unit in units:
            grads = self.grads[unit : unit + 1].to(scales.dtype) * scales[unit]
            sink.add(0, self._weight_gradient(self.inputs[unit : unit + 1].to(scales.dtype), grads))

    def materialized(self) -> Dense:
        if self.device.type != "cpu":
            return Dense(self._by_groups())
        samples = self.inputs.new_empty(self.rows, *self.shape)
        for row in range(self.rows):
            samples[row] = self._weight_gradient(
                self.inputs[row : row + 1], self.grads[row : row + 1]
            )
        return Dense(samples)

    def by_unit(self, units: int) -> Dense:
        """Write the gradients out, and add up those of each unit.

        Args:
            units: their number; each owns B / units consecutive samples.
        """
        return self.materialized().by_unit(units)

    def _weight_gradient(self, inputs: Tensor, grads: Tensor, groups: int | None = None) -> Tensor:
        g = self.geometry
        groups = groups or g.groups
        shape = (grads.shape[1], inputs.shape[1] // groups, *g.kernel)
        like = inputs.new_empty(1).expand(shape)  # only its shape is looked at
        no_shift: list[Any] = [0] * len(g.kernel)
        wanted = [False, True, False]
        result: Tensor = torch.ops.aten.convolution_backward(
            grads,
            inputs,
            like,
            None,
            g.stride,
            g.padding,
            g.dilation,
            False,
            no_shift,
            groups,
            wanted,
        )[1]
        return result

    def _by_groups(self) -> Tensor:
        """Compute all samples in one launch, as the groups of one wide convolution."""
        inputs = self.inputs.reshape(1, -1, *self.inputs.shape[2:])
        grads = self.grads.reshape(1, -1, *self.grads.shape[2:])
        found = self._weight_gradient(inputs, grads, self.rows * self.geometry.groups)
        return found.view(self.rows, *self.shape)


def _lengths(gram: Tensor) -> Tensor:
    """Root of the diagonal from above, float64, [n, positions]."""
    return gram.diagonal(dim1=1, dim2=2).double().clamp(min=0).mul(1 + 2.0**-12).sqrt()
