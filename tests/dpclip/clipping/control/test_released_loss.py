"""The running account of released losses."""

from __future__ import annotations

import pytest
import torch

from dpclip.clipping.control.released_loss import LossAccount


def test_what_the_first_step_released_is_forgotten_as_soon_as_there_is_more() -> None:
    account = LossAccount()
    assert (account.now, account.fall) == (0.0, 0.0)
    account.add([5.0])
    assert (account.now, account.fall) == (5.0, 0.0)
    account.add([7.0])
    assert (account.now, account.fall) == (pytest.approx(7.0), pytest.approx(0.0))


def test_the_fall_is_from_the_first_losses_to_about_the_last_six() -> None:
    whole, parts = LossAccount(), LossAccount()
    losses = [9.0, 6.0, 5.0, 6.0, 7.0, *[4.0] * 40]
    whole.add(losses)
    for loss in losses:
        parts.add([loss])
    assert whole.now == pytest.approx(4.0, abs=0.01)
    assert whole.fall == pytest.approx(6.0 - whole.now)
    assert whole.state == parts.state


def test_noise_of_single_steps_averages_out() -> None:
    noise = torch.randn(2000, 30, generator=torch.Generator().manual_seed(0)).tolist()
    found = []
    for row in noise:
        account = LossAccount()
        account.add(row)
        found.append(account.fall)
    spread = torch.tensor(found).std()
    assert 0.5 < float(spread) < 0.65, "1/4 of a variance for the first, 0.08 for the last"
