"""The contract of a gradient clipper: it makes a batch's gradient smaller, once a step.

In a private run it transforms the released gradient, which costs nothing; without privacy it is a
drop-in for any loop.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import InitVar, asdict, dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dpclip import raw_gradients
from dpclip.checks import one_of
from dpclip.errors import InputError, PrivacyError
from dpclip.postprocess.norms import squared_norms
from dpclip.registry import Registry
from dpclip.released import Released, StepRelease

Parameters = Iterable[tuple[str, nn.Parameter]] | Iterable[nn.Parameter]
POLICIES = ("skip", "raise", "pass")
_VERSION = 1


@dataclass(frozen=True)
class GradientStep:
    """The gradient of one step as a clipper sees it: n tensors, of parameters that have one.

    Attributes:
        gradients: to be changed in place.
        places: which parameters they belong to, [n].
        squares: their squared norms, float64 on the CPU, [n].
        noise: standard deviation of the privacy noise in each coordinate, [n], on the gradients'
            own scale; None if there is none or it is not known.
    """

    gradients: list[Tensor]
    places: list[int]
    squares: Tensor
    noise: Tensor | None

    @property
    def norm(self) -> float:
        """Global L2 norm."""
        return math.sqrt(float(self.squares.sum()))

    @property
    def sizes(self) -> Tensor:
        """Elements of each tensor, float64, [n]."""
        return torch.tensor([g.numel() for g in self.gradients], dtype=torch.float64)


@dataclass(frozen=True)
class ClipReport:
    """What a clipper did in one step.

    Attributes:
        norm: global L2 norm before.
        clipped: tensors (for `SpikeAware`: blocks) that were made smaller.
        factor: the smallest factor.
        skipped: the gradient was not finite and was set to zero.
        scales: by how much each tensor was multiplied, [n]; for what noise is left in it.
    """

    norm: float
    clipped: int = 0
    factor: float = 1.0
    skipped: bool = False
    scales: Tensor | None = None

    @classmethod
    def of(cls, seen: GradientStep, scales: Tensor) -> ClipReport:
        """Report that tensors were multiplied.

        Args:
            seen: the gradients as they were measured.
            scales: what each was multiplied by, [n].
        """
        smallest = float(scales.min()) if len(scales) else 1.0
        return cls(seen.norm, int((scales < 1).sum()), smallest, scales=scales)


@dataclass(eq=False)
class GradientClipper(ABC):
    """Clips the gradient of a batch, in place, from its own history.

    Args:
        parameters: `model.named_parameters()`, or parameters, which are then named by their order;
            may be given later with `bind`. State is kept by name.
        nonfinite: what to do about a gradient that is not finite: "skip" sets it to zero and learns
            nothing from it, "raise" stops, "pass" does what the published code does.
        match_published: behave as the published code does where this package differs from it.
    """

    parameters: InitVar[Parameters | None] = None
    nonfinite: str = field(default="skip", kw_only=True)
    match_published: bool = field(default=False, kw_only=True)
    name: ClassVar[str]

    def __post_init__(self, parameters: Parameters | None) -> None:
        one_of("nonfinite", self.nonfinite, POLICIES)
        self.check()
        self.names: list[str] = []
        self.private = False
        self._parameters: list[nn.Parameter] = []
        self._report, self._skips, self._steps = ClipReport(0.0), 0, 0
        if parameters is not None:
            self.bind(parameters)

    def bind(self, parameters: Parameters, *, private: bool = False) -> None:
        """Say which parameters the gradients belong to; forgets everything.

        Args:
            parameters: named or not; those that are not trained are left out.
            private: their gradients carry privacy noise.

        Raises:
            InputError: none of them is trained.
        """
        listed = list(parameters)
        named = [p if isinstance(p, tuple) else (str(i), p) for i, p in enumerate(listed)]
        kept = [(name, p) for name, p in named if p.requires_grad]
        if not kept:
            raise InputError(
                f"clipper {self.name} was given {len(listed)} parameters, none trainable: unfreeze "
                "some"
            )
        self.names, self._parameters = [name for name, _ in kept], [p for _, p in kept]
        self.private = private
        self._report, self._skips, self._steps = ClipReport(0.0), 0, 0
        self.reset([p.numel() for p in self._parameters])

    @property
    def needs_floor(self) -> bool:
        """Whether its settings need each coordinate's privacy noise, which may not be known."""
        return False

    # --- what a clipper brings --------------------------------------------------------------------

    def check(self) -> None:
        """Raise `InputError` for settings that cannot work."""
        return None

    def reset(self, sizes: list[int]) -> None:
        """Forget everything, for parameters of these sizes.

        Args:
            sizes: elements of each parameter.
        """
        return None

    def measure(self, gradients: list[Tensor]) -> Tensor:
        """Measure the gradients; overridden by clippers that read more in the same pass.

        Args:
            gradients: n tensors.

        Returns:
            squared norms, float64, [n].
        """
        return squared_norms(gradients)

    @abstractmethod
    def transform(self, seen: GradientStep) -> ClipReport:
        """Change the gradients in place and learn from them.

        Args:
            seen: the gradients of the step, as `measure` read them.
        """

    def state(self) -> dict[str, Any]:
        """Return what is learned: numbers and tensors, float32 or wider."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore `state`.

        Args:
            state: what `state` returned.
        """
        return None

    # --- where it is used -------------------------------------------------------------------------

    def clip(
        self, gradients: list[Tensor], places: list[int], noise: Tensor | None = None
    ) -> ClipReport:
        """Clip n gradients in place, once per optimizer step.

        Args:
            gradients: n tensors.
            places: which parameters they belong to, [n].
            noise: standard deviation of the privacy noise in each coordinate, [n], if it is known.

        Raises:
            FloatingPointError: a gradient is not finite, and the policy is "raise".
        """
        seen = GradientStep(gradients, places, self.measure(gradients), noise)
        self._steps += 1
        if self.nonfinite != "pass" and not math.isfinite(seen.norm):
            self._report = self._refused(seen)
        else:
            self._report = self.transform(seen)
        return self._report

    def _refused(self, seen: GradientStep) -> ClipReport:
        if self.nonfinite == "raise":
            raise FloatingPointError(f"step {self._steps}: the gradient's norm is {seen.norm}")
        torch._foreach_zero_(seen.gradients)
        self._skips += 1
        count = len(seen.gradients)
        return ClipReport(seen.norm, count, 0.0, skipped=True, scales=torch.zeros(count))

    def step(self) -> ClipReport:
        """Clip the parameters' `.grad`, after backward and before the optimizer.

        Unscaling and reduction over ranks come before it, too.

        Raises:
            InputError: the clipper has no parameters.
            PrivacyError: they belong to a private run, so their gradients are raw outside its own
                update.
        """
        self._check_bound()
        raw_gradients.check(self._parameters, self.name)
        live = [(place, p.grad) for place, p in enumerate(self._parameters) if p.grad is not None]
        return self.clip([gradient for _, gradient in live], [place for place, _ in live])

    def attach(self, optimizer: torch.optim.Optimizer) -> RemovableHandle:
        """Clip before each of the optimizer's steps; after the closure, where one is given.

        Args:
            optimizer: of the same parameters.

        Returns:
            what removes the hook again.
        """

        def before(
            _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
            if closure is None:
                self.step()
                return None

            def clipped() -> Any:
                loss = closure()
                self.step()
                return loss

            return (args[:1], {**kwargs, "closure": clipped})

        return optimizer.register_step_pre_hook(before)

    def apply(self, released: Released[StepRelease]) -> Released[StepRelease]:
        """Make a private run's released gradient smaller. Free, by post-processing.

        Args:
            released: the step; its gradient, on the scale of the mean, is changed in place.

        Returns:
            the step with `coordinate_stds` scaled alike, where they are known.

        Raises:
            InputError: the clipper has no parameters.
            PrivacyError: what it is given was not released.
        """
        self._check_bound()
        if not isinstance(released, Released):
            raise PrivacyError(
                f"clipper {self.name} was given {type(released).__name__}, not what a step released"
            )
        return released.map(self._shaped)

    def _shaped(self, step: StepRelease) -> StepRelease:
        noise = (
            torch.tensor(step.coordinate_stds, dtype=torch.float64)
            if step.coordinate_stds
            else None
        )
        if noise is not None and not bool((noise > 0).all()):
            noise = None  # a run without privacy
        report = self.clip(step.gradient, list(range(len(step.gradient))), noise)
        if noise is None or report.scales is None:
            return step
        return replace(step, coordinate_stds=tuple((noise * report.scales).tolist()))

    def _check_bound(self) -> None:
        if not self._parameters:
            raise InputError(
                f"clipper {self.name} has no parameters: "
                f"{type(self).__name__}(model.named_parameters())"
            )

    # --- what is kept and shown -------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return everything that is needed to go on bit for bit; tensors by parameter name."""
        return {
            "version": _VERSION,
            "clipper": self.name,
            "steps": self._steps,
            "skips": self._skips,
            **self.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`.

        Args:
            state: what `state_dict` returned.

        Raises:
            InputError: it is another clipper's, or from a version that this one does not know.
        """
        if state.get("clipper") != self.name or state.get("version") != _VERSION:
            raise InputError(
                f"this state is of clipper {state.get('clipper')!r}, version "
                f"{state.get('version')}, and cannot be loaded into {self.name!r}, version "
                f"{_VERSION}: load it into a clipper of its own kind"
            )
        self._steps, self._skips = int(state["steps"]), int(state["skips"])
        self.load_state(state)

    def metrics(self) -> dict[str, float]:
        """Return numbers of the last step for a curve; released ones in a private run."""
        found = {
            "factor": self._report.factor,
            "clipped": float(self._report.clipped),
            "skips": float(self._skips),
        }
        return {f"{self.name}_{key}": value for key, value in found.items()}

    def describe(self) -> dict[str, Any]:
        """Return the name and every setting, for the statement."""
        return {"name": self.name, **{k: v for k, v in asdict(self).items() if v is not None}}

    def by_name(self, values: Tensor) -> dict[str, Tensor]:
        """Name the rows of a tensor.

        Args:
            values: one row a parameter, [n, ...].

        Returns:
            a copy of each row, by the parameter's name.
        """
        return {name: values[i].clone() for i, name in enumerate(self.names)}

    def from_names(self, values: Mapping[str, Tensor], missing: float, like: Tensor) -> Tensor:
        """Undo `by_name`; parameters that are not named start anew.

        Args:
            values: rows by parameter name.
            missing: what a parameter starts with that is not named.
            like: shape [n, ...] and dtype of the result.

        Raises:
            InputError: a name that is none of ours.
        """
        self.refuse_unknown(values)
        found = torch.full_like(like, missing)
        for index, name in enumerate(self.names):
            if name in values:
                found[index] = values[name]
        return found

    def refuse_unknown(self, values: Iterable[str]) -> None:
        """Refuse the state of a parameter that is none of ours.

        Args:
            values: parameter names.

        Raises:
            InputError: there is one.
        """
        unknown = sorted(set(values) - set(self.names))
        if unknown:
            raise InputError(
                f"clipper {self.name}: the state is of a parameter {unknown[0]!r} that this model "
                "does not train: load it into the model that it was saved with"
            )


CLIPPERS: Registry[GradientClipper] = Registry("post-processor", "dpclip.postprocessors")
