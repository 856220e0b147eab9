"""Crashes: an interrupted run plus its resumption is the uninterrupted run, or a run that was
charged for more.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dpclip.cli.progress import NoProgress
from dpclip.errors import InputError
from dpclip.noise.keystream import SecretKey
from dpclip.record import environment, run_record
from dpclip.record.run_folder import RunFolder
from dpclip.train import run as training
from dpclip.train.run_settings import settings_of
from dpclip.train.settings import Settings
from tests.support import tiny
from tests.support.runs import StopAfter, Stopped

STEPS = 24
NUMBER = 11  # of the key that all these runs share, so that they can be compared


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    tiny.gpt2_folder(folder / "model")
    tiny.write_csv(folder / "notes.csv")
    return folder


def settings(place: Path, **changes: object) -> Settings:
    values: dict[str, object] = {
        "epsilon": 8.0,
        "delta": 1e-3,
        "data": str(place / "notes.csv"),
        "eval_data": str(place / "notes.csv"),
        "model": str(place / "model"),
        "steps": STEPS,
        "batch_size": 12,
        "physical_batch_size": 8,
        "accountant": "rdp",
        "seed": 11,
        "checkpoint_every": 5,
        "lora": None,
    }
    return Settings(**(values | changes))  # type: ignore[arg-type]


def start(place: Path, name: str, **changes: object) -> training.Outcome:
    return training.start(
        settings(place, **changes), place / name, NoProgress(), key=SecretKey.for_tests(NUMBER)
    )


def resume(run: Path, **changes: object) -> training.Outcome:
    folder = RunFolder.open(run)
    return training.resume(folder, settings_of(folder).changed(**changes), NoProgress())


def interrupted(place: Path, name: str, after: int, **changes: object) -> Path:
    with pytest.raises(Stopped):
        training.start(
            settings(place, **changes),
            place / name,
            StopAfter(after),
            key=SecretKey.for_tests(NUMBER),
        )
    return place / name


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    """The uninterrupted run."""
    start(place, "whole")
    return place / "whole"


def weights(run: Path) -> bytes:
    return (run / "public" / "model" / "model.safetensors").read_bytes()


def same_results(left: Path, right: Path) -> None:
    assert weights(left) == weights(right)
    for file in ("ledger.jsonl", "public/released_metrics.jsonl", "public/statement.json"):
        assert (left / file).read_bytes() == (right / file).read_bytes(), file


@pytest.mark.parametrize("after", [1, 5, 13, 23])
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(
    place: Path, whole: Path, after: int
) -> None:
    run = interrupted(place, f"interrupted-{after}", after)
    resume(run)
    same_results(run, whole)


@pytest.mark.parametrize(
    "rule",
    [
        "dice", "dice:mode=capped", "per-layer-quantile", "geoclip", "rl:interval=1",
        "rl:mode=C,interval=1,controller=random",
    ],
)  # fmt: skip
def test_what_a_rule_carries_is_resumed_bit_for_bit(place: Path, rule: str) -> None:
    """Learned thresholds, covariances and private errors are part of the checkpoint."""
    name = rule.replace(":", "-")
    start(place, f"{name}-whole", clipping=rule, steps=12)
    run = interrupted(place, f"{name}-interrupted", 7, clipping=rule, steps=12)
    resume(run)
    same_results(run, place / f"{name}-whole")


def test_clippers_after_the_noise_are_resumed_bit_for_bit(place: Path) -> None:
    """In and after their warm-ups, all at once."""
    changes = {
        "postprocess": (
            "autoclip:percentile=50+zclip:warmup_steps=3+adagc:warmup_steps=4+spam:skip_steps=2+stable-spam"
        ),
        "steps": 12,
    }
    start(place, "clippers-whole", **changes)
    for after in (2, 8):
        run = interrupted(place, f"clippers-{after}", after, **changes)
        resume(run)
        same_results(run, place / "clippers-whole")
    assert weights(place / "clippers-whole") != weights(
        start(place, "no-clippers", steps=12).folder
    )


def test_resuming_a_finished_run_changes_nothing(place: Path, whole: Path) -> None:
    copy = place / "copy"
    shutil.copytree(whole, copy)
    resume(copy)
    same_results(copy, whole)


def _run_in_child(place: Path, run: Path) -> None:
    torch.set_num_threads(1)
    if run.exists():
        resume(run)
    else:
        start(place, run.name)


@pytest.mark.slow
def test_killed_at_random_ten_times_the_run_ends_as_the_uninterrupted_one(
    place: Path, whole: Path
) -> None:
    """SIGKILL, from outside, at random steps; the ledger is never shorter than what was taken."""
    run, chance = place / "killed", random.Random(3)
    fork = multiprocessing.get_context("fork")
    kills = 0
    for _ in range(40):
        child = fork.Process(target=_run_in_child, args=(place, run))
        child.start()
        reached = len(tiny.ledger_steps(run)) if run.exists() else 0
        wanted = reached + chance.randint(0, 3)
        while child.is_alive() and (not run.exists() or len(tiny.ledger_steps(run)) <= wanted):
            time.sleep(0.002)
        time.sleep(chance.random() * 0.02)
        if not child.is_alive():
            break
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        kills += 1
        charged = tiny.ledger_steps(run)
        committed = (run / "ledger.jsonl").read_text().count('"kind":"release"')
        metrics = (
            (run / "public" / "released_metrics.jsonl").read_text().count("released_gradient_norm")
        )
        assert len(charged) >= committed >= metrics
        if kills == 10:
            break
    assert kills >= 5
    _run_in_child(place, run)
    same_results(run, whole)


@pytest.mark.slow
def test_a_real_process_killed_with_sigkill_is_resumed_by_the_command_line(
    place: Path, whole: Path
) -> None:
    run = place / "process"
    words = [
        "--epsilon",
        "8",
        "--delta",
        "1e-3",
        "--data",
        place / "notes.csv",
        "--eval-data",
        place / "notes.csv",
    ]
    words += [
        "--model",
        place / "model",
        "--steps",
        STEPS,
        "--batch-size",
        12,
        "--physical-batch-size",
        8,
    ]
    words += ["--accountant", "rdp", "--seed", 11, "--checkpoint-every", 5, "--output", run]
    command = [sys.executable, "-m", "dpclip", "train"]
    process = subprocess.Popen(
        [*command, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while process.poll() is None and (not run.exists() or len(tiny.ledger_steps(run)) < 8):
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert 8 <= len(tiny.ledger_steps(run)) < STEPS
    copy = place / "process-copy"
    shutil.copytree(run, copy)
    for each in (run, copy):  # the key is in the folder, so both go on alike
        done = subprocess.run(
            [*command, "--resume", str(each)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    same_results(run, copy)
    assert tiny.ledger_steps(run) == tiny.ledger_steps(whole)
    ours, theirs = tiny.statement(run)["guarantee"], tiny.statement(whole)["guarantee"]
    assert (ours["epsilon"], ours["delta"]) == (theirs["epsilon"], theirs["delta"])
    assert (ours["kind"], theirs["kind"]) == ("worst-case", "conditional")
    assert tiny.statement(run)["run"]["steps_taken"] == STEPS
    assert weights(run) != weights(whole), "a seed is no key"


def test_another_machine_draws_afresh_and_is_charged_again(
    place: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = interrupted(place, "moved", 13)
    elsewhere = environment.fingerprint(8, torch.device("cpu")) | {"threads": "64"}
    monkeypatch.setattr(run_record, "fingerprint", lambda *_: elsewhere)
    outcome = resume(run)
    charged = tiny.ledger_steps(run)
    assert [s for s, g in charged if g == 0] == list(range(13))
    assert [s for s, g in charged if g == 1] == list(range(10, 21))
    assert outcome.status == "budget exhausted"
    stated = outcome.statement
    assert stated["run"]["steps_given_up"] == 3
    assert stated["run"]["steps_taken"] == 21
    assert stated["run"]["steps_charged"] == STEPS
    assert tiny.statement(whole)["guarantee"]["epsilon"] <= stated["guarantee"]["epsilon"] <= 8.0


def test_a_changed_micro_batch_size_is_another_environment(place: Path) -> None:
    run = interrupted(place, "resized", 7)
    outcome = resume(run, physical_batch_size=3)
    assert {g for _, g in tiny.ledger_steps(run)} == {0, 1}
    assert outcome.status == "budget exhausted"


def test_a_replay_that_diverges_is_stopped_before_its_release(place: Path) -> None:
    """The weights of the checkpoint were touched: the same noise must not meet the new gradient."""
    from safetensors.torch import load_file, save_file

    run = interrupted(place, "diverged", 8)
    (checkpoint,) = (run / "private" / "checkpoint").glob("step-*/weights.safetensors")
    tensors = load_file(checkpoint)
    tensors["transformer.h.0.mlp.c_fc.weight"] += 1e-3
    save_file(tensors, checkpoint)
    outcome = resume(run)
    charged = tiny.ledger_steps(run)
    assert sorted(s for s, g in charged if g == 0) == list(range(8))
    assert min(s for s, g in charged if g == 1) == 5
    assert outcome.statement["run"]["steps_charged"] == STEPS


def test_a_run_killed_again_in_the_new_environment_replays_there(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = interrupted(place, "twice", 7)
    monkeypatch.setattr(
        run_record,
        "fingerprint",
        lambda *_: environment.fingerprint(8, torch.device("cpu")) | {"threads": "64"},
    )
    folder = RunFolder.open(run)
    with pytest.raises(Stopped):
        training.resume(folder, settings_of(folder), StopAfter(8))
    resume(run)
    assert {g for _, g in tiny.ledger_steps(run)} == {0, 1}
    assert len(tiny.ledger_steps(run)) == STEPS


def test_a_shortened_ledger_is_refused(place: Path) -> None:
    run = interrupted(place, "shortened", 13)
    lines = (run / "ledger.jsonl").read_text().splitlines(keepends=True)
    (run / "ledger.jsonl").write_text("".join(lines[:6]))
    with pytest.raises(InputError, match="shortened or replaced"):
        resume(run)


def test_changed_data_settings_or_plan_are_refused_and_nothing_is_written(place: Path) -> None:
    own = tiny.write_csv(place / "own.csv", 60)
    run = interrupted(place, "changed", 6, data=str(own))
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    with pytest.raises(InputError, match="--data changed since the run"):
        resume(run, data=str(place / "notes.csv"))
    with pytest.raises(InputError, match="--steps changed since the run"):
        resume(run, steps=STEPS + 1)
    own.write_text(own.read_text().replace("fever", "chill"))
    with pytest.raises(InputError, match="not what the run began with"):
        resume(run)
    tiny.write_csv(own, 59)
    with pytest.raises(InputError, match=r"plan has changed.*units"):
        resume(run)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_adapters_and_a_new_head_resume_bit_for_bit(place: Path) -> None:
    more = {"lora": 2, "task": "classification", "label_column": "label"}
    start(place, "lora-whole", **more)
    run = interrupted(place, "lora-interrupted", 7, **more)
    resume(run)
    same_results(run, place / "lora-whole")


def test_secrets_stay_in_the_private_folder(whole: Path) -> None:
    public = b"".join(p.read_bytes() for p in (whole / "public").rglob("*") if p.is_file())
    key = (whole / "private" / "secret.json").read_text()
    assert "seed = 11" in (whole / "public" / "config.toml").read_text(), (
        "it chose the initial weights only"
    )
    assert tiny.statement(whole)["settings"]["seed"] == 11
    assert key.split('"')[3].encode() not in public
    assert str(whole.parent).encode() not in public
    assert oct((whole / "private").stat().st_mode)[-2:] == "00"
