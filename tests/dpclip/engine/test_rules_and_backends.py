"""Every rule with every gradient backend, every split into micro-batches, and models in
bfloat16.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from dpclip.clipping import RULES, make_rule
from dpclip.per_sample import BACKENDS
from dpclip.record.checkpoint import Checkpoints
from tests.support.engine_runs import Recorder, data, make, row_losses, run

NAMES = [name for name in RULES.names() if name != "none"]


def model() -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 1))


@pytest.mark.usefixtures("without_noise")
@pytest.mark.parametrize("name", NAMES)
def test_no_backend_and_no_split_changes_what_is_released(name: str) -> None:
    settings = {"steps": 3, "expected_batch_size": 20}
    reference = run(
        make(model=model(), clipping=make_rule(name), physical_batch_size=40, **settings)
    )
    for mode in sorted({*BACKENDS.names()} - {"ghost"}):  # which is for runs without privacy
        for size in (1, 3, 40):
            private = make(
                model=model(),
                clipping=make_rule(name),
                grad_sample_mode=mode,
                physical_batch_size=size,
                **settings,
            )
            for a, b in zip(run(private), reference, strict=True):
                assert torch.allclose(a, b, rtol=2e-4, atol=2e-6), (mode, size)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_in_bfloat16_is_clipped_and_summed_in_float32(name: str) -> None:
    private = make(
        [(x.bfloat16(), y.bfloat16()) for x, y in data()],
        model=model().bfloat16(),
        clipping=make_rule(name),
        steps=2,
    )
    recorder = Recorder(private)
    for value in run(private):
        assert value.dtype == torch.bfloat16
        assert bool(value.isfinite().all())
    assert {t.dtype for t in recorder.releases[-1].gradient} == {torch.float32}


@pytest.mark.parametrize("name", NAMES)
def test_what_a_rule_has_learned_survives_a_checkpoint(name: str, tmp_path: Path) -> None:
    expected = run(make(model=model(), clipping=make_rule(name), steps=6))
    first = make(model=model(), clipping=make_rule(name), steps=6)
    checkpoints = Checkpoints(tmp_path / "checkpoint")
    for batch in first.batches():
        with first.microbatch(batch):
            first.backward(row_losses(first.model, batch))  # type: ignore[attr-defined]
        if first.step() and first.engine.step == 3:
            break
    checkpoints.save(first.engine, first.model, {})  # type: ignore[attr-defined]
    again = make(model=model(), clipping=make_rule(name), steps=6)
    for step in range(3):
        again.engine.ledger.charge(step, 0, again.plan.noise_multiplier)
    assert checkpoints.restore(again.engine, again.model) is not None  # type: ignore[attr-defined]
    for a, b in zip(run(again), expected, strict=True):
        # not bit by bit: a fresh process splits its first batch
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)
