"""Secret, seekable streams of random bytes: AES-256 in counter mode, keyed by (key, purpose, step, generation).

A run has one secret key. Each step draws its sample and its noise from streams of their own, so a killed run
can replay a step bit for bit, and a step that cannot be replayed identically moves to the next generation,
whose streams are independent of everything used before.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

KEY_BYTES = 32
_CHUNK = 1 << 16  # the zeros that are encrypted stay in the cache
_ZEROS = bytes(_CHUNK)


class Keystream:
    """Pseudo-random bytes under one 256-bit key: an endless stream, and numbered sections of their own beside it."""

    def __init__(self, key: bytes) -> None:
        self._algorithm = algorithms.AES(key)
        self._cipher = Cipher(self._algorithm, modes.CTR(bytes(16))).encryptor()

    def words(self, count: int) -> np.ndarray:
        """The next `count` uniform 64-bit words of the stream, shape [count], dtype uint64."""
        out = bytearray(8 * count)
        view = memoryview(out)
        for start in range(0, len(out), _CHUNK):
            piece = view[start : start + _CHUNK]
            piece[:] = self._cipher.update(_ZEROS[: len(piece)])
        return np.frombuffer(out, dtype="<u8")

    def section(self, major: int, minor: int) -> Section:
        """Bytes that depend on (major, minor) alone, so that they can be drawn in any order.

        Args:
            major: below 2^31.
            minor: below 2^64.
        """
        # The counter's first bit sets sections apart from the stream; its last 32 count 64 GiB within the section.
        counter = (1 << 127) | (major << 96) | (minor << 32)
        return Section(Cipher(self._algorithm, modes.CTR(counter.to_bytes(16, "big"))).encryptor())


class Section:
    """A numbered part of a keystream, read from its beginning."""

    def __init__(self, cipher: CipherContext) -> None:
        self._cipher = cipher

    def fill(self, out: np.ndarray) -> np.ndarray:
        """Overwrite a contiguous array with the next bytes.

        Returns:
            the same array.
        """
        view = out.reshape(-1).data.cast("B")
        for start in range(0, len(view), _CHUNK):
            piece = view[start : start + _CHUNK]
            self._cipher.update_into(_ZEROS[: len(piece)], piece)
        return out


@dataclass(frozen=True)
class SecretKey:
    """The run's secret. As sensitive as the data: whoever holds it can subtract the noise.

    Attributes:
        material: 32 bytes.
        seeded: whether it was derived from an explicit seed, so that the guarantee rests on the seed's secrecy.
    """

    material: bytes = field(repr=False)
    seeded: bool = False

    def __post_init__(self) -> None:
        if len(self.material) != KEY_BYTES:
            raise ValueError(f"a secret key has {KEY_BYTES} bytes, not {len(self.material)}")

    @classmethod
    def generate(cls) -> SecretKey:
        """A fresh key from the operating system."""
        return cls(os.urandom(KEY_BYTES))

    @classmethod
    def from_seed(cls, seed: int) -> SecretKey:
        """A reproducible key. Whoever can guess the seed can remove the noise; the statement says so."""
        digest = hashlib.blake2b(str(seed).encode(), digest_size=KEY_BYTES, person=b"dpclip-seed").digest()
        return cls(digest, seeded=True)

    def subkey(self, purpose: str, step: int = 0, generation: int = 0) -> bytes:
        """The 32-byte key of one stream."""
        label = f"{purpose}/{step}/{generation}".encode()
        return hashlib.blake2b(label, key=self.material, digest_size=KEY_BYTES, person=b"dpclip-stream").digest()

    def stream(self, purpose: str, step: int, generation: int) -> Keystream:
        """The stream that serves one purpose in one step."""
        return Keystream(self.subkey(purpose, step, generation))

    def integer(self, purpose: str, step: int = 0, generation: int = 0) -> int:
        """A 63-bit integer for seeding a non-private generator (dropout, adapter initialisation)."""
        return int.from_bytes(self.subkey(purpose, step, generation)[:8], "little") >> 1
