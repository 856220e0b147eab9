"""Gaussian noise from a secret keystream, in pieces that can be drawn in any order, and on several threads.

Box and Muller's transform of AES-256-CTR words, in NumPy because its float32 kernels are vectorised: z = r cos t and
r sin t with r^2 = -2 ln u. For float32 tensors u has 32 bits in the middle of (0, 1) and 64 within 2^-12 of either end,
so |z| reaches 9.4 and r is resolved to a float32 unit or better where it exceeds 4; the angle has 32 bits, rounded to
float32. For float64 tensors both have 53 bits.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpclip.randomness import Keystream

PIECE = 1 << 18  # values a piece: larger ones leave the cache, smaller ones pay for the calls
_END = 1 << 20  # words this close to either end of [0, 2^32) are refined by 32 more bits
_HALF = PIECE // 2
_SCRATCH = threading.local()


class Sampler:
    """Draws pieces of N(0, std^2) from one keystream; holds the scratch space of one thread.

    Args:
        stream: secret.
    """

    def __init__(self, stream: Keystream) -> None:
        self._stream = stream
        if not hasattr(_SCRATCH, "words"):  # kept between tensors: fresh memory would be faulted in for each
            _SCRATCH.words = np.empty(PIECE, np.uint32)
            _SCRATCH.radius, _SCRATCH.angle = np.empty(_HALF, np.float32), np.empty(_HALF, np.float32)
            _SCRATCH.values = np.empty((2, _HALF), np.float32)
        self._words, self._values = _SCRATCH.words, _SCRATCH.values
        self._radius, self._angle = _SCRATCH.radius, _SCRATCH.angle

    def single(self, tensor: int, piece: int, count: int, std: float = 1.0) -> np.ndarray:
        """The first `count` values of one piece, float32, valid until the next call."""
        half = -(-count // 2)
        section = self._stream.section(tensor, piece)
        high, turns = section.fill(self._words[: 2 * half]).reshape(2, half)
        radius, angle = self._radius[:half], self._angle[:half]
        values = self._values.reshape(-1)[: 2 * half].reshape(2, half)
        np.copyto(radius, high, casting="unsafe")
        radius *= np.float32(2.0**-32)
        with np.errstate(divide="ignore"):  # u = 0 is an end, and refined below
            np.log2(radius, out=radius)
        ends = np.flatnonzero(high + np.uint32(_END) < np.uint32(2 * _END))
        if len(ends):
            radius[ends] = exact_log2(high[ends], section.fill(np.empty(len(ends), np.uint32)))
        radius *= np.float32(-2.0 * math.log(2.0))
        np.sqrt(radius, out=radius)
        radius *= np.float32(std)
        np.copyto(angle, turns.view(np.int32), casting="unsafe")
        angle *= np.float32(math.pi * 2.0**-31)
        np.cos(angle, out=values[0])
        np.sin(angle, out=values[1])
        values *= radius
        return values.reshape(-1)[:count]

    def double(self, tensor: int, piece: int, count: int, std: float = 1.0) -> np.ndarray:
        """The first `count` values of one piece, float64."""
        half = -(-count // 2)
        words = self._stream.section(tensor, piece).fill(np.empty((2, half), np.uint64)) >> np.uint64(11)
        radius = std * np.sqrt(-2.0 * np.log((words[0] + 0.5) * 2.0**-53))
        angle = words[1] * (2 * math.pi * 2.0**-53)
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


def exact_log2(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """log2 u for u = (high 2^32 + low + 1/2) 2^-64, right to float32 at both ends of (0, 1).

    Args:
        high: uint32, shape [n].
        low: uint32, shape [n].
    """
    upper = high >= np.uint32(1 << 31)
    # Counted from the nearer end: 1 - u is ((2^32 - 1 - high) 2^32 + (2^32 - 1 - low) + 1/2) 2^-64.
    far = np.where(upper, ~high, high).astype(np.float64) * 2.0**-32
    near = (np.where(upper, ~low, low).astype(np.float64) + 0.5) * 2.0**-64
    distance = far + near
    return np.where(upper, np.log1p(-distance) / np.log(2.0), np.log2(distance))


def add_gaussian(tensor: Tensor, std: float, stream: Keystream, index: int, divisor: float = 1.0) -> Tensor:
    """(tensor + N(0, std^2)) / divisor, in place where the tensor is contiguous on the CPU.

    Args:
        tensor: float32 or float64, any shape and device; drawn and added in its own dtype.
        std: noise standard deviation.
        stream: secret.
        index: which tensor of the release this is; each has noise of its own.
        divisor: public.

    Returns:
        the same tensor.
    """
    flat = tensor.detach().reshape(-1)  # a copy if the tensor is not contiguous

    def add(sampler: Sampler, piece: int) -> None:
        part = flat[piece * PIECE : (piece + 1) * PIECE]
        draw = sampler.single if flat.dtype == torch.float32 else sampler.double
        noise = draw(index, piece, len(part), std)
        if part.device.type == "cpu":
            array = part.numpy()
            array += noise
            if divisor != 1.0:
                array *= array.dtype.type(1.0 / divisor)
        else:
            part.add_(torch.from_numpy(noise).to(part.device)).div_(divisor)

    _spread(add, stream, -(-len(flat) // PIECE))
    if flat.data_ptr() != tensor.data_ptr():
        tensor.copy_(flat.view(tensor.shape))
    return tensor


def _spread(task: Callable[[Sampler, int], None], stream: Keystream, pieces: int) -> None:
    """Run the task on every piece, on as many threads as torch uses; the values do not depend on how many."""
    threads = min(torch.get_num_threads(), pieces)

    def run(own: Iterator[int]) -> None:
        sampler = Sampler(stream)
        for piece in own:
            task(sampler, piece)

    if threads <= 1:
        run(iter(range(pieces)))
        return
    with ThreadPoolExecutor(threads) as pool:
        shares: list[Any] = [pool.submit(run, iter(range(first, pieces, threads))) for first in range(threads)]
        for share in shares:
            share.result()
