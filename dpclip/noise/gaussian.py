"""Release a sum with Gaussian noise, rounded to a public grid: as an ideal generator would.

    Y = round_g(S + s Z),  g = 2^(floor(log2 s) - 8),  Z standard normal with endless secret digits

Ideal noise makes the step a Gaussian mechanism, and rounding its result is post-processing. Noise
that is itself a rounded float32 is neither: which floats can come out depends on the sum, and shows
it (Mironov 2012, "On significance of the least significant bits for differential privacy"). Here
every multiple of g is possible for every sum. The grid adds a variance of g^2/12, at most
1.3e-6 s^2.

Digits are found by position. Value e of a tensor belongs to block e >> 16; within it, value i uses
pair j = i mod 2^15, the cosine if i < 2^15 and otherwise the sine. At level 0 of the block (see
`dpclip.noise.keystream`) the first 32 bits of u of pair j are the little-endian word at byte 4 j,
those of the angle at byte 2^17 + 4 j. At every further level AES block j holds the next 64 bits of
u, then the next 64 of the angle. Nothing depends on the tensor's length, on the order of drawing or
on the number of threads.

Box and Muller's transform (1958) in float32 decides nearly all coordinates; NumPy's float32 kernels
are vectorised. How wrong it is, with u between 2^-12 and 1 - 2^-12, so that .0221 <= r <= 4.08, w =
2^-24 and log2, cos and sin of NumPy assumed within 4 ulp:

    u          24 bits, 2^-32 not drawn: ln u is wrong by 17w at 2^-12,
               w/2 at 1 - 2^-12                                               that / r
    log2       8w of it                                                       4 r w
    constant and its product (halved), square root, product with the cosine   3 r w
    angle      24 bits, pi 2^-31 and their product rounded, 2^-32 not drawn   (3 pi + 2^-5) r w
    cos, sin   4 ulp below 1                                                  4 r w

In all 20.5 r w + (17 w or less) / r, which is largest at the largest r: 88 w = 2^-17.5. The
tolerance is 2^-17. Coordinates closer than that, times s/g, to a boundary between multiples of g
(plus 2^-12 for the float64 sum, where |S|/g < 2^40), and those whose u lies outside, are left to
`dpclip.noise.exact_gaussian`: one in 110 to 210.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpclip.errors import PrivacyError
from dpclip.noise.exact_gaussian import refined
from dpclip.noise.keystream import NoiseStream

BLOCK = 1 << 16  # values; fixed for good, as the bits of every value follow from it
HALF = BLOCK // 2
TOLERANCE = 2.0**-17  # on |error of z| in float32
ROUNDING = 2.0**-12  # of S/g + z s/g in float64
LIMIT = 2.0**40  # |S|/g stays below
_GRID_BITS = 8
_ANGLES = HALF // 4  # AES block of the first angle
_FEWEST = 4  # blocks a thread is started for
_END = 1 << 20  # words of u this close to either end of [0, 2^32) are not left to float32
_KINDS = (torch.int32, torch.int64, torch.float32, torch.float64)
_RESULTS = {torch.float32: np.float32, torch.float64: np.float64}
# kept from tensor to tensor: fresh memory would be faulted in for each
_IDLE: list[GaussianSampler] = []


def grid(std: float) -> float:
    """The public grid of a release: the power of two between std/512 and std/256.

    Args:
        std: positive.

    Raises:
        PrivacyError: no such grid in float64.
    """
    if not 2.0**-900 < std < 2.0**900:
        raise PrivacyError(
            f"noise of standard deviation {std} cannot be drawn; nothing was released"
        )
    return math.ldexp(1.0, math.frexp(std)[1] - 1 - _GRID_BITS)


class GaussianSampler:
    """Rounds blocks of sums with noise; holds scratch space, and serves one thread at a time."""

    def __init__(self) -> None:
        self._words = np.empty((2, HALF), "<u4")
        self._radius, self._angle = np.empty(HALF, np.float32), np.empty(HALF, np.float32)
        self._values = np.empty((2, HALF), np.float32)
        self._sums, self._rest, self._rounded = np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK)
        self._doubt = np.empty(BLOCK, np.bool_)

    def added(self, parts: Sequence[tuple[np.ndarray, float]]) -> np.ndarray:
        """Add up array * factor in float64.

        Args:
            parts: flat arrays of one length, at most `BLOCK`, each with its factor.

        Returns:
            the sum, float64, [n], valid until the next call.
        """
        sums, rest = self._sums[: len(parts[0][0])], self._rest[: len(parts[0][0])]
        for index, (array, factor) in enumerate(parts):
            place = rest if index else sums
            np.copyto(place, array)  # converting apart is faster than in the multiplication
            place *= factor
            if index:
                sums += rest
        return sums

    def approximate(
        self, stream: NoiseStream, tensor: int, block: int, count: int, ratio: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Compute ratio z of the first `count` values of a block in float32, within the tolerance.

        Args:
            stream: secret.
            tensor: which tensor of the release.
            block: which of its blocks.
            count: at most `BLOCK`.
            ratio: s/g, from 1 to 2^10.

        Returns:
            the values, float32 [count], and the pairs whose u is too near an end, int64 [.]; their
            values mean nothing.
        """
        pairs = min(count, HALF)
        words, (cosine, sine) = self._words[:, :pairs], self._values[:, :pairs]
        if pairs < HALF:
            stream.fill(words[0], tensor, block)
            stream.fill(words[1], tensor, block, _ANGLES)
        else:
            stream.fill(words, tensor, block)
        radius, angle = self._radius[:pairs], self._angle[:pairs]
        # the angles come later
        shifted = np.add(words[0], np.uint32(_END), out=angle.view(np.uint32))
        ends = np.flatnonzero(np.less(shifted, np.uint32(2 * _END), out=self._doubt[:pairs]))
        np.copyto(radius, words[0], casting="unsafe")
        radius *= np.float32(2.0**-32)
        radius[ends] = 0.5
        np.log2(radius, out=radius)
        radius *= np.float32(-2.0 * math.log(2.0) * ratio**2)
        np.sqrt(radius, out=radius)
        np.copyto(angle, words[1].view("<i4"), casting="unsafe")
        angle *= np.float32(math.pi * 2.0**-31)
        np.cos(angle, out=cosine)
        cosine *= radius
        if count > HALF:
            np.sin(angle, out=sine)
            sine *= radius
        return self._values.reshape(-1)[:count], ends

    def rounded(
        self, stream: NoiseStream, tensor: int, block: int, sums: np.ndarray, ratio: float
    ) -> np.ndarray:
        """round(sums + ratio Z), exactly, for the first values of a block.

        Args:
            stream: secret.
            tensor: which tensor of the release.
            block: which of its blocks.
            sums: S/g, finite float64 below 2^40, shape [n].
            ratio: s/g, from 1 to 2^10.

        Returns:
            integers in float64, shape [n], valid until the next call.
        """
        count = len(sums)
        found, doubt = self._rounded[:count], self._doubt[:count]
        values, ends = self.approximate(stream, tensor, block, count, ratio)
        rest = self._rest[:count]
        np.copyto(rest, values)
        rest += sums
        np.rint(rest, out=found)
        rest -= found
        np.abs(rest, out=rest)
        np.greater(rest, 0.5 - ROUNDING - ratio * TOLERANCE, out=doubt)
        doubt[ends[ends < count]] = True
        doubt[HALF:][ends[ends < count - HALF]] = True
        open_ = np.flatnonzero(doubt)
        if len(open_):
            pairs = open_ & (HALF - 1)

            def more(level: int, which: np.ndarray) -> np.ndarray:
                return stream.scattered(tensor, block, level, pairs[which])

            found[open_] = refined(sums[open_], ratio, self._words[:, pairs], open_ >= HALF, more)
        return found


def released(
    parts: Sequence[tuple[Tensor, float]],
    std: float,
    stream: NoiseStream,
    index: int,
    divisor: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """round_g(S + std Z) / divisor, where S is the sum of tensor * unit over the parts.

    Args:
        parts: tensors of one shape, int32, int64, float32 or float64, each with its unit;
            multiplied and added in float64, which is exact for integers below 2^53 in units of a
            power of two.
        std: standard deviation on the scale of S; 0 for S / divisor without noise.
        stream: secret.
        index: which tensor of the release this is, below 2^24; each has noise of its own.
        divisor: public; its reciprocal is multiplied in float64, and the product rounded to the
            result's dtype.
        dtype: float32 or float64.

    Returns:
        a tensor of that dtype, in the shape and on the device of the first part. It takes the
        storage of a single contiguous part of four bytes on the CPU if it is float32, which leaves
        the part meaningless; else it is new.

    Raises:
        PrivacyError: some |S| is not finite or not below 2^40 g, or the standard deviation has no
            grid.
        TypeError: tensors of another dtype.
    """
    if any(part.dtype not in _KINDS for part, _ in parts) or dtype not in _RESULTS:
        raise TypeError(f"cannot release {[part.dtype for part, _ in parts]} as {dtype}")
    g = grid(std) if std != 0 else 1.0
    flats = [(part.detach().reshape(-1), unit / g) for part, unit in parts]
    result = _room(parts, dtype)
    target = result.view(-1)

    def release(sampler: GaussianSampler, block: int) -> None:
        span = slice(block * BLOCK, (block + 1) * BLOCK)
        sums = sampler.added([(flat[span].cpu().numpy(), unit) for flat, unit in flats])
        if std != 0:
            # false for what is not a number, too
            if not (sums.max() < LIMIT and sums.min() > -LIMIT):
                raise PrivacyError(
                    f"tensor {index} is not finite or 2^40 steps of its grid; nothing was released"
                )
            sums = sampler.rounded(stream, index, block, sums, std / g)
        place = target[span]
        values = (
            place.numpy() if place.device.type == "cpu" else np.empty(len(sums), _RESULTS[dtype])
        )
        sums *= g / divisor
        np.copyto(values, sums, casting="same_kind")
        if place.device.type != "cpu":
            place.copy_(torch.from_numpy(values))

    _spread(release, -(-len(target) // BLOCK))
    return result


def _room(parts: Sequence[tuple[Tensor, float]], dtype: torch.dtype) -> Tensor:
    """Choose where the result goes: into the single part if it has its size.

    Large models fill the memory.
    """
    first, _ = parts[0]
    kinds = (torch.int32, torch.float32)
    fits = (
        len(parts) == 1
        and dtype == torch.float32
        and first.dtype in kinds
        and first.device.type == "cpu"
    )
    if fits and first.is_contiguous():
        return first.detach().view(torch.float32)
    return torch.empty(first.shape, dtype=dtype, device=first.device)


def _spread(task: Callable[[GaussianSampler, int], None], blocks: int) -> None:
    """Run the task on every block, on as many threads as torch uses.

    The values do not depend on how many.
    """
    threads = min(torch.get_num_threads(), blocks // _FEWEST)

    def run(own: Iterator[int]) -> None:
        sampler = _IDLE.pop() if _IDLE else GaussianSampler()
        for block in own:
            task(sampler, block)
        _IDLE.append(sampler)

    if threads <= 1:
        run(iter(range(blocks)))
        return
    with ThreadPoolExecutor(threads) as pool:
        shares: list[Any] = [
            pool.submit(run, iter(range(first, blocks, threads))) for first in range(threads)
        ]
        for share in shares:
            share.result()
