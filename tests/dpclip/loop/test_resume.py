"""Loops of the user's own: saved, gone on with bit for bit, and stated."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from typer.testing import CliRunner

import dpclip
from accounting.errors import JournalBusyError
from dpclip import PrivateTraining, clipping
from dpclip.cli.app import app
from dpclip.errors import InputError, ReplayError
from dpclip.noise.keystream import SecretKey
from dpclip.postprocess import AutoClip
from tests.support.runs import one_line

STEPS = 6


class Stopped(Exception):
    """Stands for a crash."""


def rows() -> list[tuple[Tensor, int]]:
    generator = torch.Generator().manual_seed(3)
    return [(torch.randn(4, generator=generator), i % 2) for i in range(60)]


def fresh() -> tuple[torch.nn.Linear, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2)
    return model, torch.optim.Adam(model.parameters(), lr=0.1)


def begin(**settings: Any) -> PrivateTraining:
    return dpclip.make_private(
        *fresh(), rows(),
        **{
            "target_epsilon": 4.0, "expected_batch_size": 20, "steps": STEPS,
            "clipping": clipping.Quantile(), "key": SecretKey.for_tests(1), **settings,
        },
    )  # fmt: skip


def go_on(folder: Path, **settings: Any) -> PrivateTraining:
    return dpclip.resume(folder, *fresh(), rows(), **{"clipping": clipping.Quantile(), **settings})


def train(
    private: PrivateTraining, save: Path | None = None, every: int = 2, stop: int = 99
) -> None:
    """The loop; saves now and then, and breaks off in the middle of a step."""
    for inputs, labels in private.batches():
        if private.engine.step == stop:
            raise Stopped
        with private.microbatch([inputs, labels]):
            private.backward(F.cross_entropy(private.model(inputs), labels, reduction="none"))
        if private.step() and save is not None and private.engine.step % every == 0:
            private.save(save)


def weights(private: PrivateTraining) -> list[Tensor]:
    return [p.detach().clone() for p in private.model.parameters()]


def charged(folder: Path) -> Counter[int]:
    """How often each step is on the ledger."""
    bodies = [
        json.loads(line)["body"] for line in (folder / "ledger.jsonl").read_text().splitlines()
    ]
    return Counter(body["step"] for body in bodies if body.get("kind") == "step")


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A run that was saved after step 4 and broke off within step 5."""
    folder, private = tmp_path / "run", begin()
    with pytest.raises(Stopped):
        train(private, folder, stop=5)
    private.close()
    return folder


def test_a_run_goes_on_bit_for_bit_and_pays_for_each_step_once(stopped: Path) -> None:
    whole = begin()
    train(whole)
    private = go_on(stopped)
    assert private.engine.step == 4
    train(private, stopped)
    assert all(torch.equal(a, b) for a, b in zip(weights(private), weights(whole), strict=True))
    assert private.guarantee().epsilon == whole.guarantee().epsilon
    assert charged(stopped) == Counter(range(STEPS))
    private.close()


def test_what_was_charged_before_the_first_save_is_on_the_ledger_too(tmp_path: Path) -> None:
    private = begin()
    train(private, tmp_path / "run", every=STEPS)
    assert charged(tmp_path / "run") == Counter(range(STEPS))
    private.close()
    again = go_on(tmp_path / "run")
    assert list(again.batches()) == []
    again.close()


def test_another_sum_never_meets_the_noise_of_a_released_step(stopped: Path) -> None:
    private = go_on(stopped)  # saved after step 4, and step 4 was released after that
    with torch.no_grad():
        next(private.model.parameters()).mul_(1.5)
    with pytest.raises(ReplayError):
        train(private)
    private.close()


def test_a_loop_that_cannot_repeat_a_step_pays_for_it_again(tmp_path: Path) -> None:
    folder, private = tmp_path / "run", begin()
    with pytest.raises(Stopped):
        train(private, folder, every=4, stop=4)  # step 4 was charged, and not released
    private.close()
    private = go_on(folder, fresh_randomness=True)
    with pytest.raises(dpclip.BudgetExceededError):  # the plan had no step to spare
        train(private)
    private.close()
    assert charged(folder) == Counter([*range(STEPS - 1), 4])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"clipping": clipping.Quantile(max_grad_norm=0.5)}, "clipping changed"),
        ({"clipping": None}, "clipping changed"),
        ({"postprocess": [AutoClip()]}, "postprocess changed"),
        ({"rows_per_unit": 3}, "rows_per_unit changed"),
        ({"units": [i // 2 for i in range(60)]}, "units changed"),
    ],
)
def test_what_would_give_the_same_noise_to_another_sum_is_refused(
    stopped: Path, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        go_on(stopped, **changed)
    go_on(stopped).close()


def test_another_model_or_optimizer_is_refused_in_one_line(stopped: Path) -> None:
    wide = torch.nn.Linear(4, 3)
    with pytest.raises(InputError, match="trainable parameters are not the 2 that were saved"):
        dpclip.resume(
            stopped, wide, torch.optim.Adam(wide.parameters()), rows(), clipping=clipping.Quantile()
        )
    model, _ = fresh()
    apart = torch.optim.Adam([{"params": [p]} for p in model.parameters()])
    with pytest.raises(InputError, match="optimizer is not what the run began with"):
        dpclip.resume(stopped, model, apart, rows(), clipping=clipping.Quantile())
    go_on(stopped).close()


def test_a_run_is_gone_on_with_by_one_at_a_time(tmp_path: Path) -> None:
    private = begin()
    train(private, tmp_path / "run")
    with pytest.raises(JournalBusyError):
        go_on(tmp_path / "run")
    private.close()


def test_a_run_has_one_folder_and_one_ledger(tmp_path: Path) -> None:
    private = begin()
    private.save(tmp_path / "run")
    with pytest.raises(InputError, match="has one folder"):
        private.save(tmp_path / "other")
    private.close()
    elsewhere = begin(ledger_path=tmp_path / "ledger.jsonl")
    with pytest.raises(InputError, match="leave ledger_path out"):
        elsewhere.save(tmp_path / "third")
    assert not (tmp_path / "third").exists()
    elsewhere.close()


def test_a_folder_that_is_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    private = begin()
    with pytest.raises(InputError, match="is in use: save the run in a folder that is new"):
        private.save(tmp_path)
    private.save(tmp_path / "run")
    private.close()


def test_a_report_can_be_written_at_any_time(stopped: Path) -> None:
    private = go_on(stopped)
    page = private.write_report(stopped)
    assert page == stopped / "public" / "report.html"
    statement = json.loads((stopped / "public" / "statement.json").read_text())
    assert statement["run"]["status"] == "unfinished"
    assert statement["run"]["steps_charged"] == 6  # the one that broke off included
    assert statement["guarantee"]["epsilon"] == private.guarantee().epsilon
    train(private)
    private.write_report(stopped)
    private.close()
    shown = CliRunner().invoke(app, ["report", str(stopped), "--json"])
    assert json.loads(shown.stdout)["run"]["status"] == "complete"
    assert "differentially private" in CliRunner().invoke(app, ["report", str(stopped)]).stdout


def test_the_key_stays_private_and_nothing_private_is_published(stopped: Path) -> None:
    secret = stopped / "private" / "secret.json"
    assert secret.stat().st_mode & 0o077 == 0
    material = json.loads(secret.read_text())["key"]
    public = [p for p in (stopped / "public").rglob("*") if p.is_file()]
    assert all(
        material not in p.read_text(errors="replace") for p in [*public, stopped / "ledger.jsonl"]
    )


def test_the_command_line_names_the_way_to_go_on(stopped: Path) -> None:
    one_line(CliRunner().invoke(app, ["train", "--resume", str(stopped)]), "dpclip.resume")
