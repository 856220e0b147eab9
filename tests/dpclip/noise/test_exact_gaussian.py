"""The noisy sum is the rounding of the ideal one, bit string by bit string: every path against 50
digits of mpmath.
"""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch

from dpclip.noise import exact_gaussian, gaussian
from dpclip.noise.exact_gaussian import decided, normals64
from dpclip.noise.gaussian import BLOCK, HALF, GaussianSampler, grid, released
from dpclip.noise.keystream import NoiseStream, SecretKey

KEY = SecretKey(bytes(range(32)))
FULL = (1 << 32) - 1


def bits_of(stream: NoiseStream, tensor: int, element: int, levels: int) -> tuple[int, int, int]:
    """The digits of u and of the angle of one value, read block by block as they are documented;
    and how many.
    """
    block, pair = element >> 16, element & (HALF - 1)
    words = [
        int(stream.fill(np.empty(4, "<u4"), tensor, block, at // 4)[pair % 4])
        for at in (pair, HALF + pair)
    ]
    for level in range(1, levels + 1):
        more = stream.scattered(tensor, block, level, np.array([pair]))[0]
        words = [word << 64 | int(extra) for word, extra in zip(words, more, strict=True)]
    return words[0], words[1], 32 + 64 * levels


def normal(radius: int, angle: int, bits: int, sine: bool) -> mpmath.mpf:
    """Box and Muller with exact digits."""
    with mpmath.workprec(bits + 64):
        u, turn = (
            mpmath.mpf(2 * word + 1) / mpmath.mpf(2) ** (bits + 1) for word in (radius, angle)
        )
        wave = mpmath.sin if sine else mpmath.cos
        return mpmath.sqrt(-2 * mpmath.log(u)) * wave(2 * mpmath.pi * turn)


def reference(total: float, std: float, stream: NoiseStream, tensor: int, element: int) -> int:
    """round((S + s Z) / g), with 160 digits of u and of the angle."""
    bits = bits_of(stream, tensor, element, 2)
    with mpmath.workprec(400):
        value = (mpmath.mpf(total) + std * normal(*bits, bool(element & HALF))) / grid(std)
        assert abs(abs(value - mpmath.nint(value)) - 0.5) > 2.0**-90
        return int(mpmath.nint(value))


@pytest.mark.parametrize("std", [1.0, 1.9999, 1e-9, 3.7e11])
@pytest.mark.parametrize("size", [0.0, 30.0, 2.0**30, 2.0**31])
def test_every_value_is_the_ideal_one_rounded(std: float, size: float) -> None:
    """Values that float32 decides, and all that it leaves open among many; sums of every size that
    is admitted.
    """
    count, tensor, stream = 3 * BLOCK + 40_000, 9, KEY.noise(12, 3)
    sums = torch.from_numpy(np.random.default_rng(5).uniform(-1, 1, count)) * size * std
    found = released([(sums, 1.0)], std, stream, tensor, 1.0, torch.float64).numpy() / grid(std)
    sampler, ratio = GaussianSampler(), std / grid(std)
    values = np.concatenate(
        [sampler.approximate(stream, tensor, b, BLOCK, ratio)[0].copy() for b in range(4)]
    )[:count]
    whole = values + sums.numpy() / grid(std)
    distance = np.abs(np.abs(whole - np.rint(whole)) - 0.5)
    nearest, some = np.argsort(distance)[:150], np.random.default_rng(6).integers(0, count, 100)
    words = np.concatenate(
        [stream.fill(np.empty((2, HALF), "<u4"), tensor, b)[0] for b in range(4)]
    )
    ends = np.flatnonzero(words + np.uint32(1 << 20) < np.uint32(1 << 21))[:30]
    for element in (*nearest, *some, *((ends >> 15 << 16) + (ends & HALF - 1))):
        if element < count:
            assert found[element] == reference(
                float(sums[element]), std, stream, tensor, int(element)
            )


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        (gaussian, "TOLERANCE", 1.0),  # all to float64
        (exact_gaussian, "TOLERANCE", 2.0**-12),  # a good part of what float64 has to intervals
        (exact_gaussian, "_END", 1 << 56),
    ],
)
def test_every_path_says_the_same(
    module: object, name: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums = torch.from_numpy(np.random.default_rng(7).normal(size=BLOCK)) * 5
    before = released([(sums, 1.0)], 1.3, KEY.noise(13, 0), 0, 1.0, torch.float64)
    monkeypatch.setattr(module, name, value)
    assert torch.equal(
        before, released([(sums, 1.0)], 1.3, KEY.noise(13, 0), 0, 1.0, torch.float64)
    )


class Given(NoiseStream):
    """A stream of chosen digits: words of level 0, and one pair of 64-bit words for each level
    beyond.
    """

    def __init__(self, words: np.ndarray, *levels: tuple[int, int]) -> None:
        self._words, self._levels = words, levels

    def fill(self, out: np.ndarray, tensor: int, block: int, first: int = 0) -> np.ndarray:
        flat = out.reshape(-1)
        flat[:] = self._words.reshape(-1)[4 * first : 4 * first + flat.size]
        return out

    def scattered(self, tensor: int, block: int, level: int, places: np.ndarray) -> np.ndarray:
        return np.array([self._levels[level - 1]] * len(places), np.uint64)


def both(stream: NoiseStream, ratio: float, total: float = 0.0) -> tuple[float, float]:
    found = GaussianSampler().rounded(stream, 0, 0, np.full(HALF + 1, total), ratio)
    return float(found[0]), float(found[HALF])


@pytest.mark.parametrize(
    ("radius", "angle", "cosine", "sine"),
    [
        (1 << 63, 0, 1206, 0),
        (1 << 62, 1 << 62, 0, 1705),
        (1 << 62, 1 << 63, -1705, 0),
        (3 << 62, 1 << 61, 549, 549),
    ],
)
def test_golden_words(radius: int, angle: int, cosine: int, sine: int) -> None:
    words = np.repeat(np.array([[radius >> 32], [angle >> 32]], np.uint32), HALF, axis=1)
    assert both(Given(words, (0, 0)), 1024.0) == (cosine, sine)
    pair = [radius << 32, angle << 32]
    assert [decided(0.0, 1024.0, pair, wave, lambda _: (0, 0)) for wave in (False, True)] == [
        cosine,
        sine,
    ]
    exact = [1024 * normal(*pair, 96, wave) for wave in (False, True)]
    assert [int(mpmath.nint(value)) for value in exact] == [cosine, sine]


def test_noise_has_no_longest_value() -> None:
    """u of 224 zeros and then a one: z = 17.7."""
    nothing = np.full((2, HALF), 1 << 31, np.uint32)
    nothing[:, 0] = 0
    far = Given(nothing, (0, 0), (0, 0), (0, 0), (1 << 63, 1 << 63))
    expected = 300 * math.sqrt(2 * 225 * math.log(2))
    assert both(far, 300.0, 2.0**39) == (2.0**39 + round(expected), 2.0**39)
    near = Given(~nothing, (2**64 - 1, 0), (2**64 - 1, 0), (0, 0))
    assert both(near, 300.0) == (0.0, 0.0)


def test_a_value_that_no_digit_decides_is_refused() -> None:
    """An angle of zero at the boundary: whether the sine is above or below is never told."""
    words = np.repeat(np.array([[1 << 31], [0]], np.uint32), HALF, axis=1)
    with pytest.raises(exact_gaussian.PrivacyError, match="not decided by 992 bits"):
        both(Given(words, *[(0, 0)] * 15), 300.0, 0.5)


def hard_words(count: int) -> np.ndarray:
    """Words of u and of the angle that float32 is asked for: random, and beside both ends and
    quarter turns.
    """
    rng = np.random.default_rng(3)
    words = rng.integers(0, 1 << 32, (2, count), dtype=np.uint32)
    steps = np.arange(count // 8, dtype=np.uint32) * np.uint32(3)
    words[0, : count // 8] = np.uint32(1 << 20) + steps
    words[0, count // 8 : count // 4] = np.uint32(FULL - (1 << 20)) - steps
    words[1, ::3] = (words[1, ::3] & np.uint32(0xC0000FFF)) - np.uint32(0x800)
    return words


def test_error_in_float32_is_within_the_tolerance() -> None:
    worst, sampler, words = 0.0, GaussianSampler(), hard_words(1 << 20)
    for block in np.split(words, (1 << 20) // HALF, axis=1):
        for ratio in (256.0, 300.1, 511.9):
            found, ends = sampler.approximate(Given(block), 0, 0, BLOCK, ratio)
            inside = np.setdiff1d(np.arange(HALF), ends)
            for below in (0, FULL):
                first = block[:, inside].astype(np.uint64) << np.uint64(32) | np.uint64(below)
                for row, sine in enumerate((False, True)):
                    normals, radius = normals64(
                        first, np.zeros(len(inside), np.uint64), np.full(len(inside), sine)
                    )
                    assert radius.max() <= math.sqrt(24 * math.log(2))
                    worst = max(
                        worst,
                        float(np.abs(found.reshape(2, HALF)[row, inside] / ratio - normals).max()),
                    )
    print(  # noqa: T201
        f"float32: worst error 2^{math.log2(worst):.2f}, tolerance "
        f"2^{math.log2(gaussian.TOLERANCE):.0f}"
    )
    assert worst < gaussian.TOLERANCE / 2


def test_error_in_float64_is_within_the_tolerance() -> None:
    rng = np.random.default_rng(4)
    first = rng.integers(0, 1 << 64, (2, 3000), dtype=np.uint64)
    first[0, :1000] = np.uint64(1 << 20) << rng.integers(0, 43, 1000).astype(np.uint64)
    first[0, 500:1000] ^= ~np.uint64(0)
    below = rng.integers(0, 1 << 32, 3000, dtype=np.uint64)
    sine = rng.integers(0, 2, 3000) > 0
    found, radius = normals64(first, below, sine)
    worst = 0.0
    for index in range(3000):
        for rest in (0, FULL):  # of the angle
            word = int(first[0, index]) << 32 | int(below[index])
            exact = normal(word, int(first[1, index]) << 32 | rest, 96, bool(sine[index]))
            worst = max(
                worst, abs(float(exact - mpmath.mpf(found[index]))) / max(radius[index], 1.0)
            )
    print(f"float64: worst error 2^{math.log2(worst):.2f}, tolerance 2^-45")  # noqa: T201
    assert worst < exact_gaussian.TOLERANCE / 8
