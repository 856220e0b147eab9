"""The noise generator: Gaussian in bulk and in its tails, the same in any order and on any number of threads."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from scipy import stats

from dpclip.gaussian import PIECE, Sampler, add_gaussian, exact_log2
from dpclip.gradient_sum import GradientSum
from dpclip.randomness import SecretKey

KEY = SecretKey(bytes(range(32)))
COUNT = 4_000_000


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    return add_gaussian(torch.zeros(COUNT), 1.0, KEY.stream("noise", 0, 0), 0).numpy()


def test_distribution(values: np.ndarray) -> None:
    assert stats.kstest(values, "norm").pvalue > 1e-3
    assert values.mean(dtype=np.float64) == pytest.approx(0.0, abs=4 / math.sqrt(COUNT))
    assert values.var(dtype=np.float64) == pytest.approx(1.0, abs=4 * math.sqrt(2 / COUNT))
    assert stats.kurtosis(values.astype(np.float64)) == pytest.approx(0.0, abs=4 * math.sqrt(24 / COUNT))
    assert (values == 0).sum() <= 4


@pytest.mark.parametrize("beyond", [3.0, 4.0, 4.5, 5.0])
@pytest.mark.parametrize("sign", [-1, 1])
def test_tails(values: np.ndarray, beyond: float, sign: int) -> None:
    count, expected = int((sign * values > beyond).sum()), COUNT * stats.norm.sf(beyond)
    assert stats.poisson.cdf(count, expected) > 1e-4
    assert stats.poisson.sf(count - 1, expected) > 1e-4


def test_distribution_of_doubles() -> None:
    found = add_gaussian(torch.zeros(1_000_000, dtype=torch.float64), 1.0, KEY.stream("noise", 3, 0), 0).numpy()
    assert stats.kstest(found, "norm").pvalue > 1e-3
    assert found.var() == pytest.approx(1.0, abs=4 * math.sqrt(2e-6))


def test_values_are_uncorrelated_at_every_lag_that_the_method_could_show(values: np.ndarray) -> None:
    for lag in (1, 2, PIECE // 2 - 1, PIECE // 2, PIECE // 2 + 1, PIECE, PIECE + 1):
        assert abs(np.corrcoef(values[:-lag], values[lag:])[0, 1]) < 5 / math.sqrt(COUNT)
        squares = np.corrcoef(np.square(values[:-lag]), np.square(values[lag:]))[0, 1]
        assert abs(squares) < 5 / math.sqrt(COUNT)


def test_angle_is_uniform(values: np.ndarray) -> None:
    """The two values that share a radius point in every direction equally often."""
    first, second = values[: PIECE // 2].astype(np.float64), values[PIECE // 2 : PIECE].astype(np.float64)
    turns = np.arctan2(second, first) / (2 * math.pi) + 0.5
    assert stats.kstest(turns, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(turns, np.hypot(first, second))[0, 1]) < 5 / math.sqrt(PIECE / 2)


def test_bits_of_the_words_are_fair() -> None:
    words = KEY.stream("noise", 1, 0).section(2, 3).fill(np.empty(500_000, np.uint32))
    ones = np.array([((words >> np.uint32(bit)) & np.uint32(1)).sum() for bit in range(32)], dtype=np.float64)
    chi_square = (4 * (ones - len(words) / 2) ** 2 / len(words)).sum()
    assert 1e-3 < stats.chi2.sf(chi_square, 32) < 1 - 1e-3
    pairs = np.bincount(words.view(np.uint8), minlength=256)
    assert stats.chisquare(pairs).pvalue > 1e-3


@pytest.mark.parametrize(
    ("high", "low"),
    [
        (0, 0),
        (0, 1),
        (0, 2**31),
        (1, 0),
        (2**20 - 1, 2**32 - 1),
        (2**32 - 1, 2**32 - 1),
        (2**32 - 1, 0),
        (2**32 - 2**20, 5),
    ],
)
def test_logarithm_at_both_ends(high: int, low: int) -> None:
    found = exact_log2(np.array([high], np.uint32), np.array([low], np.uint32))[0]
    with localcontext(prec=40):
        u = (Decimal(high) * 2**32 + low + Decimal("0.5")) / Decimal(2) ** 64
        assert float(found) == pytest.approx(float(u.ln() / Decimal(2).ln()), rel=1e-9)


def test_longest_value_is_beyond_nine_sigma(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = KEY.stream("noise", 0, 0)
    monkeypatch.setattr(stream, "section", lambda *_: _Zeros())
    found = Sampler(stream).single(0, 0, 2)
    assert found[0] == pytest.approx(math.sqrt(130 * math.log(2)), rel=1e-6)
    assert found[1] == 0.0


class _Zeros:
    def fill(self, out: np.ndarray) -> np.ndarray:
        out.fill(0)
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_piece_does_not_depend_on_what_was_drawn_before(dtype: torch.dtype) -> None:
    count = 2 * PIECE + 77
    whole = add_gaussian(torch.zeros(count, dtype=dtype), 1.0, KEY.stream("noise", 5, 0), 4).numpy()
    sampler = Sampler(KEY.stream("noise", 5, 0))
    draw = sampler.single if dtype == torch.float32 else sampler.double
    assert np.array_equal(draw(4, 2, 77), whole[2 * PIECE :])
    assert np.array_equal(draw(4, 1, PIECE), whole[PIECE : 2 * PIECE])


def test_any_number_of_threads_draws_the_same() -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(add_gaussian(torch.zeros(3 * PIECE + 5), 2.0, KEY.stream("noise", 6, 0), 1))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_tensors_steps_generations_and_purposes_have_noise_of_their_own() -> None:
    def draw(purpose: str, step: int, generation: int, index: int) -> np.ndarray:
        return add_gaussian(torch.zeros(50_000), 1.0, KEY.stream(purpose, step, generation), index).numpy()

    seen = [draw(p, s, g, i) for p in ("noise", "other") for s in (0, 11) for g in (0, 1) for i in (0, 1)]
    for i, left in enumerate(seen):
        for right in seen[:i]:
            assert abs(np.corrcoef(left, right)[0, 1]) < 6 / math.sqrt(50_000)
    assert np.array_equal(seen[0], draw("noise", 0, 0, 0))


@pytest.mark.parametrize("count", [0, 1, 2, 3, PIECE - 1, PIECE + 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_length(count: int, dtype: torch.dtype) -> None:
    found = add_gaussian(torch.full((count,), 2.0, dtype=dtype), 0.5, KEY.stream("noise", 2, 0), 0, 4.0)
    assert found.dtype == dtype
    assert bool(found.isfinite().all())
    assert not bool((found == 0.5).any())


def test_noise_reaches_tensors_that_are_not_contiguous_and_scalars() -> None:
    whole = torch.zeros(60, 50)
    add_gaussian(whole.t(), 1.0, KEY.stream("noise", 7, 0), 0)
    assert float(whole.std()) == pytest.approx(1.0, abs=0.1)
    assert len(whole.unique()) == 3000
    scalar = add_gaussian(torch.tensor(1.0), 1.0, KEY.stream("noise", 8, 0), 0)
    assert scalar.shape == ()
    assert float(scalar) != 1.0


def test_digest_sees_a_single_bit_and_the_key() -> None:
    def digest(value: float, key: bytes = bytes(range(32)), extra: float = 0.0) -> str:
        tensors = [torch.zeros(1000), torch.full((3, 2), value, dtype=torch.float64), torch.empty(0)]
        return GradientSum(tensors, [0, 0, 0]).digest([torch.tensor([extra])], key)

    base = digest(1.0)
    assert digest(1.0) == base
    assert len({base, digest(1.0 + 2**-52), digest(1.0, bytes([1]) * 32), digest(1.0, extra=1.0)}) == 4
