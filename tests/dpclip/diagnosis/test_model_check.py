"""The pre-flight on public stand-ins: finds couplings and wrong gradients, and leaves the model as
it was.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dpclip.diagnosis.model_check import check_model
from dpclip.errors import InputError
from tests.support import reference


def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def examples() -> list[dict[str, Tensor]]:
    found = reference.batch(5, length=11, seed=3)
    found["attention_mask"][:] = 1
    return [reference.row(found, i) for i in range(4)]


@pytest.mark.parametrize("name", sorted(reference.MODELS))
def test_supported_models_pass_and_are_left_as_they_were(name: str) -> None:
    model = reference.MODELS[name]()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    check_model(model.train(), reference.losses, collate, examples())
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


def token_mean(model: nn.Module, rows: dict[str, Tensor]) -> Tensor:
    """Divides by all tokens of the batch: each row's loss hangs on the others' lengths."""
    ids = rows["input_ids"]
    weights = (ids > reference.VOCABULARY // 2).sum()
    return reference.losses(model, rows) * len(ids) / weights.clamp(min=1)


def coupled_in_eval(model: nn.Module, rows: dict[str, Tensor]) -> Tensor:
    found = reference.losses(model, rows)
    return found + 0.1 * found.mean()


@pytest.mark.parametrize("losses", [token_mean, coupled_in_eval])
def test_losses_that_mix_rows_are_refused(losses: Any) -> None:
    with pytest.raises(InputError, match="other records of its batch"):
        check_model(reference.gpt2().train(), losses, collate, examples())


class _Positions(nn.Module):
    """Looks positions up without a batch dimension; 9 positions are a multiple of 3 rows."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(16, 4), nn.Linear(4, 1)

    def forward(self, ids: Tensor) -> Tensor:
        return (
            self.head(self.table(ids) + self.table(torch.arange(ids.shape[1]))).square().sum((1, 2))
        )


def test_positions_without_a_batch_dimension_are_fine_whatever_the_length() -> None:
    for length in (1, 2, 3, 4, 9):
        check_model(
            _Positions(),
            lambda m, x: m(x),
            torch.cat,
            [torch.randint(16, (1, length)) for _ in range(4)],
        )


class _Statistics(nn.Module):
    """Keeps running statistics of its inputs, each row by itself."""

    def __init__(self, kept: bool) -> None:
        super().__init__()
        self.norm, self.head = (
            nn.InstanceNorm1d(4, affine=True, track_running_stats=kept),
            nn.Linear(4, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x.transpose(1, 2)).transpose(1, 2)).square().sum((1, 2))


def test_statistics_that_would_be_saved_with_the_model_are_refused() -> None:
    rows = [torch.randn(1, 5, 4) for _ in range(4)]
    with pytest.raises(InputError, match=r"'norm.running_mean'.*track_running_stats=False"):
        check_model(_Statistics(True), lambda m, x: m(x), torch.cat, rows)
    check_model(_Statistics(False), lambda m, x: m(x), torch.cat, rows)


class _Merged(nn.Module):
    """Merges length before batch, so that splitting it again gives rows that are none."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.transpose(0, 1).reshape(-1, 4)
        return self.head(flat).reshape(x.shape[1], x.shape[0], 4).square().sum((0, 2))


def test_activations_merged_the_other_way_round_are_fine() -> None:
    check_model(_Merged(), lambda m, x: m(x), torch.cat, [torch.randn(1, 5, 4) for _ in range(4)])


def test_a_loss_without_one_value_a_row_is_refused() -> None:
    with pytest.raises(InputError, match="one loss a row"):
        check_model(
            reference.gpt2().train(),
            lambda m, b: reference.losses(m, b).mean(),
            collate,
            examples(),
        )
