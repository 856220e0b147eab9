"""Groups clipped inside the backward pass: the same sums, nothing kept, and no gradient clipped
twice or too early.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dpclip.clipping import ClippingRule, PerLayer, PerTensor
from dpclip.engine.engine import Engine
from dpclip.engine.private_training import PrivateTraining
from dpclip.errors import BatchDimensionError
from dpclip.noise.release import PrivacyError
from dpclip.per_sample import BookkeepingBackend, PerSampleView
from tests.support.engine_runs import Recorder, data, make, row_losses, run


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Twice(nn.Module):
    """A layer used twice, one checkpointed, a table tied to its head, a recurrent layer and a
    learned scale.
    """

    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(11, 6), nn.Linear(6, 11, bias=False)
        self.head.weight = self.table.weight
        self.shared, self.norm, self.lstm = (
            nn.Linear(6, 6),
            nn.LayerNorm(6),
            nn.LSTM(6, 6, batch_first=True),
        )
        self.scale, self.reentrant = Scale(), reentrant

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.shared(self.table(ids))
        hidden = self.lstm(torch.tanh(hidden))[0]
        inner = self._inner
        if self.reentrant is not None:
            hidden = checkpoint(inner, hidden, use_reentrant=self.reentrant)
        else:
            hidden = inner(hidden)
        out: Tensor = self.head(self.scale(hidden))
        return out

    def _inner(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.norm(self.shared(hidden)).tanh()
        return out


class Counted(Engine):
    """Counts the parts that were clipped inside a backward pass."""

    parts = 0

    def open_micro_batch(self, units: int) -> Any:
        clip = super().open_micro_batch(units)

        def count(part: PerSampleView) -> None:
            self.parts += 1
            assert clip is not None
            clip(part)

        return count if clip else None


def texts() -> list[Tensor]:
    return list(torch.randint(0, 11, (40, 7), generator=torch.Generator().manual_seed(3)))


def training(model: nn.Module, rule: ClippingRule, **settings: Any) -> PrivateTraining:
    private = make(texts(), model, clipping=rule, steps=3, **settings)
    private.engine.__class__ = Counted
    return private


def train(private: PrivateTraining) -> list[Tensor]:
    model: nn.Module = private.model
    for ids in private.batches():
        with private.microbatch(ids):
            private.backward(
                nn.functional.cross_entropy(model(ids).mT, ids, reduction="none").mean(1)
            )
        private.step()
    private.close()
    return [p.detach().clone() for p in model.parameters()]


def without_parts(private: PrivateTraining) -> PrivateTraining:
    opened = private.engine.open_micro_batch
    private.engine.open_micro_batch = lambda units: (opened(units), None)[1]  # type: ignore[method-assign]
    return private


@pytest.mark.parametrize("reentrant", [None, False, True])
@pytest.mark.parametrize("rule", [PerLayer, PerTensor])
@pytest.mark.parametrize("mode", ["bookkeeping", "hooks"])
def test_clipping_inside_the_backward_pass_gives_the_same_model(
    rule: Callable[[], ClippingRule], reentrant: bool | None, mode: str
) -> None:
    torch.manual_seed(0)
    start = Twice(reentrant).state_dict()
    models = [Twice(reentrant) for _ in range(2)]
    for model in models:
        model.load_state_dict(start)
    inside = training(models[0], rule(), grad_sample_mode=mode)
    found = train(inside)
    expected = train(without_parts(training(models[1], rule(), grad_sample_mode=mode)))
    assert inside.engine.parts >= 6  # type: ignore[attr-defined]
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_a_complete_group_is_let_go_inside_the_backward_pass() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *[nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(5)], nn.Linear(8, 1)
    )
    named = dict(model.named_parameters())
    groups = PerLayer().partition(list(named), [p.numel() for p in named.values()])
    backend = BookkeepingBackend(model, list(named.values()), groups)
    held: list[int] = []

    def forget(part: PerSampleView) -> None:
        held.append(sum(t.numel() for t in part.tensors()))

    for clip in (None, forget):
        with backend.capture(3, clip_part=clip) as view:
            model(torch.randn(3, 8)).mean().backward()
    assert len(held) == 6
    assert max(held) <= 2 * 3 * (8 * 8 + 8)  # never more than a layer or two at once
    assert view.tensors() == []
    assert bool((view.squared_norms() > 0).all())
    backend.close()


class Sometimes(nn.Module):
    """Calls its first layer again, behind a re-entrant checkpoint, when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.again = nn.Linear(4, 4), nn.Linear(4, 4), False

    def forward(self, x: Tensor) -> Tensor:
        if self.again:
            x = checkpoint(self.first, x, use_reentrant=True)
        out: Tensor = checkpoint(
            self.second, checkpoint(self.first, x, use_reentrant=True), use_reentrant=True
        )
        return out


def test_a_gradient_that_comes_after_its_group_was_clipped_is_refused_once_and_known_after() -> (
    None
):
    model = Sometimes()
    named = dict(model.named_parameters())
    backend = BookkeepingBackend(model, list(named.values()), [0, 0, 1, 1])
    parts: list[Tensor] = []
    x = torch.randn(3, 4, requires_grad=True)

    def clip(part: PerSampleView) -> None:
        parts.append(part.squared_norms())

    for _ in range(2):
        with backend.capture(3, clip_part=clip):
            model(x).mean().backward()
    model.again = True
    with (
        pytest.raises(BatchDimensionError, match=r"'first'.*begin again"),
        backend.capture(3, clip_part=clip),
    ):
        model(x).mean().backward()
    parts.clear()
    with backend.capture(3, clip_part=clip) as view:
        model(x).mean().backward()
    assert len(parts) == 1  # the second layer's; the first waits for the end from now on
    assert torch.equal(parts[0][1], view.squared_norms()[1])
    assert view.tensors()
    backend.close()


def test_a_step_whose_backward_pass_broke_off_half_clipped_is_never_released() -> None:
    private = make(clipping=PerLayer(), steps=2, physical_batch_size=8)
    model = private.model
    batches = private.batches()
    batch = next(batches)
    while private._pending is not None and private._pending.check is not None:
        with private.microbatch(batch):
            private.backward(row_losses(model, batch))
        batch = next(batches)

    class Fault(RuntimeError):
        pass

    def fail(*_: Any) -> None:
        raise Fault

    handle = model[1].register_full_backward_hook(fail)
    with pytest.raises(Fault), private.microbatch(batch):
        private.backward(row_losses(model, (batch[0].requires_grad_(), batch[1])))
    handle.remove()
    with pytest.raises(PrivacyError, match="broke off"), private.microbatch(batch):
        pass
    with pytest.raises(PrivacyError, match="broke off"):
        private.engine.finish()
    private.close()


@pytest.mark.usefixtures("without_noise")
def test_a_gradient_that_is_not_finite_is_dropped_in_its_group_alone() -> None:
    releases = []
    for poison in (1.0, float("nan")):
        private = make(clipping=PerLayer(), steps=1, expected_batch_size=40)
        recorder = Recorder(private)
        model: nn.Module = private.model
        marked = data()[7][0]

        def hook(
            net: nn.Module, _: Any, out: Tensor, poison: float = poison, marked: Tensor = marked
        ) -> None:
            mine = (net.inputs == marked).all(1)  # type: ignore[operator]
            if out.requires_grad:
                out.register_hook(
                    lambda grad, p=poison: torch.where(mine.unsqueeze(1), grad * p, grad)
                )

        def note(_: nn.Module, inputs: Any, net: Any = model[1]) -> None:  # type: ignore[index]
            net.inputs = inputs[0]

        model.register_forward_pre_hook(note)
        model[1].register_forward_hook(hook)  # type: ignore[index]
        run(private)
        releases.append(recorder.releases[0])
    clean, spoilt = releases
    assert all(bool(t.isfinite().all()) for t in spoilt.gradient)
    assert not torch.equal(clean.gradient[0], spoilt.gradient[0])
    assert torch.equal(clean.gradient[2], spoilt.gradient[2])
