"""Secret, seekable streams of random bytes: AES-256 in counter mode.

A run has one secret key. Each step draws its sample and its noise from streams of their own, so a
killed run can replay a step bit for bit, and a step that cannot be replayed identically moves to
the next generation, whose streams are independent of everything used before.

Samples and other small draws: one subkey for each (purpose, step, generation), read from its
beginning.

Noise: one subkey for the whole run, that of purpose "noise", so that whoever holds the key can draw
any part of any step. The 128-bit counter, big-endian, is an address and never changes its meaning:

    step 32 bits | generation 16 | tensor 24 | block of values 32 | level of refinement 4 | AES
    block 20

How the AES blocks of a level serve the values of a block is written in `dpclip.noise.gaussian`.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from dpclip.errors import PrivacyError

KEY_BYTES = 32
_CHUNK = 1 << 16  # the zeros that are encrypted stay in the cache
_ZEROS = bytes(_CHUNK)
_INSIDE = 20  # bits that count AES blocks within a level of a block of values


class Keystream:
    """An endless stream of pseudo-random words under one 256-bit key.

    Args:
        key: 32 bytes, secret.
    """

    def __init__(self, key: bytes) -> None:
        self._cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def words(self, count: int) -> np.ndarray:
        """Draw the next words of the stream.

        Args:
            count: how many.

        Returns:
            uniform 64-bit words, uint64, [count].
        """
        out = bytearray(8 * count)
        view = memoryview(out)
        for start in range(0, len(out), _CHUNK):
            piece = view[start : start + _CHUNK]
            piece[:] = self._cipher.update(_ZEROS[: len(piece)])
        return np.frombuffer(out, dtype="<u8")


class NoiseStream:
    """The noise bits of one step, addressed by position; draws leave nothing behind.

    Args:
        key: 32 bytes, secret, the same for all steps of a run.
        step: below 2^32.
        generation: below 2^16.

    Raises:
        PrivacyError: a number that has no place in the counter; it would repeat noise that is used
            elsewhere.
    """

    def __init__(self, key: bytes, step: int, generation: int) -> None:
        self._algorithm = algorithms.AES(key)
        self._prefix = _field("step", step, 32) << 96 | _field("generation", generation, 16) << 80

    def fill(self, out: np.ndarray, tensor: int, block: int, first: int = 0) -> np.ndarray:
        """Overwrite a contiguous array with bytes of level 0.

        Args:
            out: at most 2^24 bytes with what precedes it.
            tensor: below 2^24.
            block: of values, below 2^32.
            first: AES block to begin with, below 2^20.

        Returns:
            the same array.
        """
        if first + -(-out.nbytes // 16) > 1 << _INSIDE:
            raise PrivacyError(
                f"{out.nbytes} noise bytes from AES block {first} on do not fit in a block of "
                "values"
            )
        counter = self._address(tensor, block) | _field("AES block", first, _INSIDE)
        cipher = Cipher(self._algorithm, modes.CTR(counter.to_bytes(16, "big"))).encryptor()
        view = out.reshape(-1).data.cast("B")
        for start in range(0, len(view), _CHUNK):
            piece = view[start : start + _CHUNK]
            cipher.update_into(_ZEROS[: len(piece)], piece)
        return out

    def scattered(self, tensor: int, block: int, level: int, places: np.ndarray) -> np.ndarray:
        """Single AES blocks, two little-endian 64-bit words each.

        Args:
            tensor: below 2^24.
            block: of values, below 2^32.
            level: of refinement, below 2^4.
            places: AES blocks below 2^20, shape [n].

        Returns:
            uint64, shape [n, 2].
        """
        if len(places) and not 0 <= places.min() <= places.max() < 1 << _INSIDE:
            raise PrivacyError(f"noise is addressed by AES blocks below 2^{_INSIDE}")
        base = self._address(tensor, block) | _field("level", level, 4) << _INSIDE
        counters = np.empty((len(places), 2), np.uint64)
        counters[:, 0] = base >> 64
        counters[:, 1] = places
        counters[:, 1] |= np.uint64(base & (1 << 64) - 1)
        # ECB of the counters is what counter mode adds to its plain text.
        found = (
            Cipher(self._algorithm, modes.ECB())
            .encryptor()
            .update(counters.astype(">u8").tobytes())
        )
        return np.frombuffer(found, "<u8").reshape(-1, 2)

    def _address(self, tensor: int, block: int) -> int:
        return self._prefix | _field("tensor", tensor, 24) << 56 | _field("block", block, 32) << 24


def _field(name: str, value: int, bits: int) -> int:
    """The value, if it fits."""
    if not 0 <= value < 1 << bits:
        raise PrivacyError(
            f"{name} {value} has no noise of its own: the counter holds {name}s below 2^{bits}"
        )
    return value


@dataclass(frozen=True)
class SecretKey:
    """The run's secret. As sensitive as the data: whoever holds it can subtract the noise.

    It serves one run of one process: it cannot be copied, and a forked child cannot use it, because
    one noise must not serve two gradients.

    Attributes:
        material: 32 bytes.
        known: whether others may have it, as any key that was not drawn here; the guarantee then
            rests on that.
    """

    material: bytes = field(repr=False)
    known: bool = True
    _process: int = field(default_factory=os.getpid, init=False, repr=False, compare=False)
    _claimed: bool = field(default=False, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.material) != KEY_BYTES:
            raise ValueError(f"a secret key has {KEY_BYTES} bytes, not {len(self.material)}")

    @classmethod
    def generate(cls) -> SecretKey:
        """Draw a fresh key from the operating system."""
        return cls(os.urandom(KEY_BYTES), known=False)

    @classmethod
    def for_tests(cls, number: int) -> SecretKey:
        """Make the same key each time, known to everybody who reads the test: it protects nothing.

        Args:
            number: which key.
        """
        digest = hashlib.blake2b(
            str(number).encode(), digest_size=KEY_BYTES, person=b"dpclip-tests"
        ).digest()
        return cls(digest, known=True)

    def claim(self) -> None:
        """Take the key for a run that adds noise.

        Raises:
            PrivacyError: a secret key that another run has; the two would share their noise.
        """
        if self._claimed and not self.known:
            raise PrivacyError(
                "a secret key serves one run, and this one has served another: the difference of "
                "their releases would show the data; leave the key out, and each run draws its own"
            )
        object.__setattr__(self, "_claimed", True)

    def __reduce_ex__(self, protocol: object) -> NoReturn:  # for copy, deepcopy and pickle alike
        raise PrivacyError(
            "a run's secret key cannot be copied or pickled: a copy would draw the same noise for "
            "another gradient"
        )

    def subkey(self, purpose: str, step: int = 0, generation: int = 0) -> bytes:
        """Derive the 32-byte key of one stream.

        Args:
            purpose: what the stream serves, "sample" for example.
            step: of the logical step, from 0.
            generation: which stream of randomness serves the step.

        Raises:
            PrivacyError: in a forked child of the process that the key belongs to.
        """
        if os.getpid() != self._process:
            raise PrivacyError(
                "the run's secret key was inherited by a forked process: the parent draws the same "
                "noise for another gradient; draw all batches and noise in the process that made "
                "the key"
            )
        label = f"{purpose}/{step}/{generation}".encode()
        return hashlib.blake2b(
            label, key=self.material, digest_size=KEY_BYTES, person=b"dpclip-stream"
        ).digest()

    def stream(self, purpose: str, step: int, generation: int) -> Keystream:
        """Open the stream that serves one purpose in one step, at its beginning.

        Args:
            purpose: as in `subkey`.
            step: as in `subkey`.
            generation: as in `subkey`.

        Raises:
            PrivacyError: in a forked child of the process that the key belongs to.
        """
        return Keystream(self.subkey(purpose, step, generation))

    def noise(self, step: int, generation: int) -> NoiseStream:
        """Open the noise bits of one step, under the run's one key for noise.

        Args:
            step: of the logical step, below 2^32.
            generation: below 2^16.

        Raises:
            PrivacyError: in a forked child, or a number that has no place in the counter.
        """
        return NoiseStream(self.subkey("noise"), step, generation)

    def integer(self, purpose: str, step: int = 0, generation: int = 0) -> int:
        """Derive a seed for a generator that protects nothing (dropout, adapter initialisation).

        Args:
            purpose: as in `subkey`.
            step: as in `subkey`.
            generation: as in `subkey`.

        Returns:
            an integer in [0, 2^63).
        """
        return int.from_bytes(self.subkey(purpose, step, generation)[:8], "little") >> 1
