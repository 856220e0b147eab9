"""The contract of a noise mechanism: how a step's noise is divided, and its one release."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from dpclip.noise.scale import NoiseScale
from dpclip.registry import Registry
from dpclip.released import Receipt, Released, SideQuery, StepRelease, Sum

if TYPE_CHECKING:
    from torch import Tensor

    from dpclip.noise.keystream import SecretKey


class NoiseMechanism(ABC):
    """What the plan chooses and the engine releases by."""

    name: ClassVar[str]

    @abstractmethod
    def scale(
        self,
        noise_multiplier: float,
        bounds: Sequence[float],
        shares: Sequence[float],
        sides: Sequence[SideQuery] = (),
    ) -> NoiseScale:
        """Fix the noise of one step before its batch is drawn.

        Args:
            noise_multiplier: sigma_eff, as it will be charged; 0 for training without privacy.
            bounds: what one unit moves each group's sum by, L2, on the sum scale, shape [K].
            shares: each group's part of the gradient's budget, shape [K], summing to 1.
            sides: statistics that are released with the gradient.

        Returns:
            standard deviations on the sum scale.

        Raises:
            PrivacyError: there is no such noise.
        """

    @abstractmethod
    def release(
        self,
        total: Sum,
        side_sums: Mapping[str, Tensor],
        scale: NoiseScale,
        receipt: Receipt,
        key: SecretKey,
        divisor: float = 1.0,
    ) -> Released[StepRelease]:
        """Add the step's noise, once, to every part, and let the result out.

        Args:
            total: the combined sum; its tensors mean nothing any more afterwards.
            side_sums: summed side statistics by name, float64, each [m].
            scale: from `scale`.
            receipt: what was charged for this step.
            key: the run's secret.
            divisor: the public expected batch size, by which the noisy gradient is divided.

        Returns:
            the gradient on the mean's scale, the side statistics on the sum's.

        Raises:
            PrivacyError: the release would be less private than what was charged.
        """


MECHANISMS: Registry[NoiseMechanism] = Registry("noise", "dpclip.noise_mechanisms")
