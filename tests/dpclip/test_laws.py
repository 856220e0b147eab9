"""The laws that ship with the package hold for its own tasks and events, and find broken ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from torch import Tensor, nn

from accounting import Gaussian, Laplace, PoissonGaussian
from accounting.events import ADJACENCIES, EVENTS, Event
from dpclip.clipping import Flat
from dpclip.models.loading import LoadedModel, load_model
from dpclip.tasks import TASKS
from dpclip.tasks.language_modelling import LanguageModelling
from dpclip.tasks.records import Records
from dpclip.testing import check_event, check_rule, check_task
from dpclip.train.rows import vocabulary_of

RECORDS = Records(
    "a test",
    texts=["The patient slept well.", "No fever.", "Seen in the ward, walking without pain."],
    labels=["a", "b", "a"],
)


def loaded(kind: Any) -> LoadedModel:
    return load_model("builtin", kind.head(**kind.stand_in_options()))


@pytest.mark.parametrize("name", TASKS.names())
def test_every_task_keeps_the_laws(name: str) -> None:
    kind: Any = TASKS.get(name)
    found = loaded(kind)
    task = kind(found.tokenizer, 64, **kind.options(RECORDS, None))
    check_task(task, RECORDS, found.model, vocabulary_of(found))


class MeanOverTheBatch(LanguageModelling):
    """One number for all rows, spread over them: what it is of is not said."""

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        each = super().losses(model, batch)
        return each.mean().expand(len(each))


class LosesARecord(LanguageModelling):
    def encode(self, records: Records) -> list[Any]:
        return super().encode(records)[1:]


@pytest.mark.parametrize("kind", [MeanOverTheBatch, LosesARecord])
def test_a_broken_task_is_found_out(kind: type[LanguageModelling]) -> None:
    found = loaded(LanguageModelling)
    with pytest.raises(AssertionError):
        check_task(kind(found.tokenizer, 64), RECORDS, found.model, vocabulary_of(found))


@pytest.mark.parametrize(
    ("event", "adjacencies"),
    [
        (PoissonGaussian(0.01, 1.0), ADJACENCIES),
        (Gaussian(2.0), ADJACENCIES),
        (Laplace(3.0), ADJACENCIES),
    ],
    ids=lambda value: type(value).__name__,
)
def test_events_keep_the_laws(event: Event, adjacencies: Sequence[str]) -> None:
    check_event(event, tuple(adjacencies))


@dataclass(frozen=True)
class Underpriced(Gaussian):
    """Its loss distribution is right, and its Rényi divergence too small."""

    kind = "underpriced"

    def renyi(self, order: float, adjacency: str) -> float:
        return 0.9 * super().renyi(order, adjacency)


def test_a_broken_event_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EVENTS._makers, "underpriced", Underpriced)
    with pytest.raises(AssertionError):
        check_event(Underpriced(2.0))
    with pytest.raises(AssertionError):  # silent about adjacencies that it has no guarantee under
        check_event(PoissonGaussian(0.1, 1.0), adjacencies=("add-remove",))


class Understated(Flat):
    def bounds(self) -> list[float]:
        return [0.5 * self.max_grad_norm]


def test_a_broken_rule_is_found_out() -> None:
    with pytest.raises(AssertionError):
        check_rule(Understated, 1.0, 1)
