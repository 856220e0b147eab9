"""Noisy sums: Gaussian in bulk and in the tails, on the grid, the same in any order and on any
number of threads.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import stats

from dpclip.errors import PrivacyError
from dpclip.gradient_sum import GradientSum
from dpclip.noise.gaussian import BLOCK, HALF, GaussianSampler, grid, released
from dpclip.noise.keystream import NoiseStream, SecretKey

KEY = SecretKey(bytes(range(32)))
COUNT = 4_000_000
STEPS = 1.0 / grid(1.0)


def noise(
    count: int, step: int = 0, index: int = 0, generation: int = 0, std: float = 1.0
) -> np.ndarray:
    return released([(torch.zeros(count), 1.0)], std, KEY.noise(step, generation), index).numpy()


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    return noise(COUNT)


def test_distribution(values: np.ndarray) -> None:
    """Every multiple of the grid is as frequent as the normal distribution has it, in the bulk to
    one in 400.
    """
    found = np.bincount((values * STEPS).astype(np.int64) + 3000, minlength=6001)
    expected = COUNT * np.diff(stats.norm.cdf((np.arange(6002) - 3000.5) / STEPS))
    often = expected > 50
    assert (
        stats.chi2.sf(((found - expected)[often] ** 2 / expected[often]).sum(), often.sum()) > 1e-3
    )
    assert values.mean(dtype=np.float64) == pytest.approx(0.0, abs=4 / math.sqrt(COUNT))
    assert values.var(dtype=np.float64) == pytest.approx(
        1.0 + 1 / (12 * STEPS**2), abs=4 * math.sqrt(2 / COUNT)
    )
    assert stats.kurtosis(values.astype(np.float64)) == pytest.approx(
        0.0, abs=4 * math.sqrt(24 / COUNT)
    )


@pytest.mark.parametrize("beyond", [3.0, 4.0, 4.5, 5.0])
@pytest.mark.parametrize("sign", [-1, 1])
def test_tails(values: np.ndarray, beyond: float, sign: int) -> None:
    count, expected = (
        int((sign * values > beyond).sum()),
        COUNT * stats.norm.sf(beyond + 0.5 / STEPS),
    )
    assert stats.poisson.cdf(count, expected) > 1e-4
    assert stats.poisson.sf(count - 1, expected) > 1e-4


def test_values_are_uncorrelated_at_every_lag_that_the_method_could_show(
    values: np.ndarray,
) -> None:
    for lag in (1, 2, HALF - 1, HALF, HALF + 1, BLOCK, BLOCK + 1):
        assert abs(np.corrcoef(values[:-lag], values[lag:])[0, 1]) < 5 / math.sqrt(COUNT)
        squares = np.corrcoef(np.square(values[:-lag]), np.square(values[lag:]))[0, 1]
        assert abs(squares) < 5 / math.sqrt(COUNT)


def test_angle_is_uniform(values: np.ndarray) -> None:
    """The two values that share a radius point in every direction equally often."""
    first, second = values[:HALF].astype(np.float64), values[HALF:BLOCK].astype(np.float64)
    turns = np.arctan2(second, first) / (2 * math.pi) + 0.5
    assert stats.kstest(turns, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(turns, np.hypot(first, second))[0, 1]) < 5 / math.sqrt(HALF)


def test_bits_of_the_words_are_fair() -> None:
    words = KEY.noise(1, 0).fill(np.empty(500_000, np.uint32), 2, 3)
    ones = np.array(
        [((words >> np.uint32(bit)) & np.uint32(1)).sum() for bit in range(32)], dtype=np.float64
    )
    chi_square = (4 * (ones - len(words) / 2) ** 2 / len(words)).sum()
    assert 1e-3 < stats.chi2.sf(chi_square, 32) < 1 - 1e-3
    assert stats.chisquare(np.bincount(words.view(np.uint8), minlength=256)).pvalue > 1e-3


def aes(key: bytes, step: int, generation: int, tensor: int, block: int, inside: int) -> bytes:
    """One AES block, its counter put together by hand."""
    sizes = ((step, 4), (generation, 2), (tensor, 3), (block, 4), (inside, 3))
    counter = b"".join(value.to_bytes(size, "big") for value, size in sizes)
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(counter)


def test_the_counter_is_laid_out_as_documented() -> None:
    place = (0x01020304, 0x0506, 0x07089A, 0x0B0C0D0E)
    key, stream = KEY.subkey("noise"), KEY.noise(*place[:2])
    for first in (0, 77, (1 << 20) - 3):
        found = stream.fill(np.empty(12, np.uint32), *place[2:], first)
        assert found.tobytes() == b"".join(aes(key, *place, first + i) for i in range(3))
    found = stream.scattered(*place[2:], 5, np.array([3, (1 << 20) - 1, 0]))
    assert found.astype("<u8").tobytes() == b"".join(
        aes(key, *place, 5 << 20 | i) for i in (3, (1 << 20) - 1, 0)
    )


@pytest.mark.parametrize(
    ("step", "generation", "tensor", "block", "level"),
    [
        (1 << 32, 0, 0, 0, 1),
        (0, 1 << 16, 0, 0, 1),
        (0, 0, 1 << 24, 0, 1),
        (0, 0, 0, 1 << 32, 1),
        (0, 0, 0, 0, 16),
    ],
)
def test_places_that_the_counter_cannot_tell_apart_are_refused(
    step: int, generation: int, tensor: int, block: int, level: int
) -> None:
    with pytest.raises(PrivacyError, match="has no noise of its own"):
        KEY.noise(step, generation).scattered(tensor, block, level, np.array([0]))
    with pytest.raises(PrivacyError, match="has no noise of its own"):
        KEY.noise(-1, 0)


def test_runs_of_bytes_that_leave_their_block_of_values_are_refused() -> None:
    stream = KEY.noise(0, 0)
    with pytest.raises(PrivacyError, match="do not fit"):
        stream.fill(np.empty(5, np.uint32), 0, 0, (1 << 20) - 1)
    with pytest.raises(PrivacyError, match="addressed by AES blocks"):
        stream.scattered(0, 0, 1, np.array([1 << 20]))


@pytest.mark.parametrize("short", [1, 77, HALF - 1, HALF, HALF + 1, BLOCK - 1, BLOCK + 1])
def test_a_value_does_not_depend_on_the_length_of_its_tensor(short: int) -> None:
    assert np.array_equal(noise(short, 5, 4), noise(2 * BLOCK + 77, 5, 4)[:short])


def test_a_block_does_not_depend_on_what_was_drawn_before() -> None:
    whole = noise(2 * BLOCK + 77, 5, 4, std=2.0)
    sampler = GaussianSampler()
    for block, count in ((2, 77), (0, 5), (1, BLOCK)):
        found = sampler.rounded(KEY.noise(5, 0), 4, block, np.zeros(count), 256.0)
        assert np.array_equal(found * grid(2.0), whole[block * BLOCK :][:count])


def test_any_number_of_threads_draws_the_same() -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(noise(13 * BLOCK + 5, 6, 1, std=2.5))
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_keys_tensors_steps_and_generations_have_noise_of_their_own() -> None:
    def draw(key: int, step: int, generation: int, index: int) -> np.ndarray:
        stream = SecretKey(bytes([key]) * 32).noise(step, generation)
        return released([(torch.zeros(50_000), 1.0)], 1.0, stream, index).numpy()

    seen = [draw(k, s, g, i) for k in (0, 1) for s in (0, 11) for g in (0, 1) for i in (0, 1)]
    for i, left in enumerate(seen):
        for right in seen[:i]:
            assert abs(np.corrcoef(left, right)[0, 1]) < 6 / math.sqrt(50_000)
    assert np.array_equal(seen[0], draw(0, 0, 0, 0))


@pytest.mark.parametrize("count", [0, 1, 2, 3, BLOCK - 1, BLOCK + 1])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32, torch.float64])
@pytest.mark.parametrize("result", [torch.float32, torch.float64])
def test_any_length_and_dtype(count: int, dtype: torch.dtype, result: torch.dtype) -> None:
    part = torch.full((count,), 3, dtype=dtype)
    found = released([(part, 0.5)], 0.5, KEY.noise(2, 0), 0, 4.0, result)
    assert found.dtype == result
    expected = released(
        [(torch.full((count,), 1.5, dtype=torch.float64), 1.0)],
        0.5,
        KEY.noise(2, 0),
        0,
        4.0,
        result,
    )
    assert torch.equal(found, expected)
    assert bool(((found * 4 / grid(0.5)) % 1 == 0).all())


def test_parts_are_added_in_float64() -> None:
    counts = torch.randint(-(2**40), 2**40, (40, 50), generator=torch.Generator().manual_seed(1))
    wide, narrow = torch.randn(40, 50, dtype=torch.float64), torch.randn(50, 40).t()
    parts = [(counts, 2.0**-30), (wide, 1.0), (narrow, 0.25)]
    exact = counts.double() * 2.0**-30 + wide + narrow.double() * 0.25
    copies = [(part.clone(), unit) for part, unit in parts]
    found = released(parts, 0.7, KEY.noise(3, 0), 1, 3.0, torch.float64)
    assert torch.equal(found, released([(exact, 1.0)], 0.7, KEY.noise(3, 0), 1, 3.0, torch.float64))
    assert torch.allclose(
        released(parts, 0.0, KEY.noise(3, 0), 1, 3.0, torch.float64), exact / 3, rtol=1e-15
    )
    assert all(torch.equal(part, copy) for (part, _), (copy, _) in zip(parts, copies, strict=True))


@pytest.mark.parametrize("dtype", [torch.int32, torch.float32])
def test_a_single_part_of_the_same_size_gives_its_memory(dtype: torch.dtype) -> None:
    part = torch.ones(3, 5, dtype=dtype)
    found = released([(part, 1.0)], 1.0, KEY.noise(4, 0), 0)
    assert found.data_ptr() == part.data_ptr()
    assert found.shape == (3, 5)
    wide = torch.ones(3, 5, dtype=torch.float64)
    assert torch.equal(released([(wide, 1.0)], 1.0, KEY.noise(4, 0), 0), found)
    assert torch.equal(wide, torch.ones_like(wide))


def test_tensors_that_are_not_contiguous_and_scalars() -> None:
    part = torch.arange(3000.0).view(60, 50)
    found = released([(part.t(), 1.0)], 1.0, KEY.noise(7, 0), 0)
    assert torch.equal(found, released([(part.t().contiguous(), 1.0)], 1.0, KEY.noise(7, 0), 0))
    assert float((found - part.t()).std()) == pytest.approx(1.0, abs=0.1)
    scalar = released([(torch.tensor(1.0), 1.0)], 1.0, KEY.noise(8, 0), 0)
    assert scalar.shape == ()
    assert float(scalar) != 1.0


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, 2.0**40 * grid(1.5), -(2.0**40) * grid(1.5)]
)
def test_sums_that_are_not_finite_or_too_large_are_refused(value: float) -> None:
    part = torch.zeros(BLOCK + 9, dtype=torch.float64)
    released([(part + 2.0**39.99 * grid(1.5), 1.0)], 1.5, KEY.noise(9, 0), 0)
    part[BLOCK + 4] = value
    with pytest.raises(PrivacyError, match="not finite or"):
        released([(part, 1.0)], 1.5, KEY.noise(9, 0), 0)


@pytest.mark.parametrize("std", [-1.0, math.inf, math.nan, 1e-300, 1e300])
def test_noise_that_has_no_grid_is_refused(std: float) -> None:
    with pytest.raises(PrivacyError, match="cannot be drawn"):
        released([(torch.zeros(3), 1.0)], std, KEY.noise(9, 0), 0)


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(TypeError, match="cannot release"):
        released([(torch.zeros(3, dtype=torch.bfloat16), 1.0)], 1.0, KEY.noise(9, 0), 0)
    with pytest.raises(TypeError, match="cannot release"):
        released([(torch.zeros(3), 1.0)], 1.0, KEY.noise(9, 0), 0, 1.0, torch.float16)


@pytest.mark.parametrize(
    ("std", "expected"), [(1.0, 2.0**-8), (0.999, 2.0**-9), (1.5, 2.0**-8), (2.0, 2.0**-7)]
)
def test_grid(std: float, expected: float) -> None:
    assert grid(std) == expected


def test_streams_of_a_step_are_independent_of_each_other() -> None:
    """No state: two streams of the same place, and one stream asked twice, say the same."""
    one, other = KEY.noise(3, 1), NoiseStream(KEY.subkey("noise"), 3, 1)
    found = [stream.fill(np.empty(64, np.uint32), 1, 1) for stream in (one, other, one)]
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_digest_sees_a_single_bit_and_the_key() -> None:
    def digest(value: float, key: bytes = bytes(range(32)), extra: float = 0.0) -> str:
        tensors = [
            torch.zeros(1000),
            torch.full((3, 2), value, dtype=torch.float64),
            torch.empty(0),
        ]
        return GradientSum(tensors, [0, 0, 0]).digest([torch.tensor([extra])], key)

    base = digest(1.0)
    assert digest(1.0) == base
    assert (
        len({base, digest(1.0 + 2**-52), digest(1.0, bytes([1]) * 32), digest(1.0, extra=1.0)}) == 4
    )
