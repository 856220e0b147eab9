"""Keys: where noise comes from, that no noise serves two gradients, and what a run is bound to."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typer.testing import CliRunner, Result

import dpclip
from accounting.errors import JournalCorruptError
from accounting.journal.journal import ORIGIN, sealed
from dpclip.budget.ledger import Ledger
from dpclip.budget.plan import Plan
from dpclip.cli.app import app
from dpclip.cli.progress import NoProgress
from dpclip.errors import InputError, PrivacyError
from dpclip.noise.keystream import SecretKey
from dpclip.record.run_folder import RunFolder
from dpclip.train import run as training
from dpclip.train.run_settings import settings_of
from dpclip.train.settings import Settings
from tests.support import tiny
from tests.support.runs import StopAfter, Stopped, one_line

STEPS = 8
KEPT = 3  # steps between checkpoints


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    tiny.gpt2_folder(folder / "model")
    tiny.write_csv(folder / "notes.csv")
    return folder


def settings(place: Path, **changes: object) -> Settings:
    values: dict[str, object] = {
        "epsilon": 8.0,
        "delta": 1e-3,
        "data": str(place / "notes.csv"),
        "model": str(place / "model"),
        "steps": STEPS,
        "batch_size": 12,
        "physical_batch_size": 8,
        "accountant": "rdp",
        "checkpoint_every": KEPT,
    }
    return Settings(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def stopped(place: Path) -> Path:
    """A run that stopped after 7 steps, its checkpoint after 6; tests work on copies."""
    with pytest.raises(Stopped):
        training.start(settings(place), place / "stopped", StopAfter(7))
    return place / "stopped"


@pytest.fixture(scope="module")
def whole(stopped: Path) -> Path:
    """What becomes of it."""
    return resumed(copied(stopped, "whole"))


def copied(run: Path, name: str) -> Path:
    return Path(shutil.copytree(run, run.parent / name))


def resumed(run: Path) -> Path:
    folder = RunFolder.open(run)
    training.resume(folder, settings_of(folder), NoProgress())
    return run


def bodies(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line)["body"] for line in (run / "ledger.jsonl").read_text().splitlines()]


def rewrite(run: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Edit the ledger and mend its chain of hashes, as somebody with a text editor and patience
    could.
    """
    found = bodies(run)
    change(found)
    lines, previous = [], ORIGIN
    for number, body in enumerate(found):
        entry = sealed(number, previous, body)
        previous = entry["hash"]
        lines.append(json.dumps(entry, sort_keys=True, separators=(",", ":")) + "\n")
    (run / "ledger.jsonl").write_text("".join(lines))


def command(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def weights(run: Path) -> bytes:
    return (run / "public" / "model" / "model.safetensors").read_bytes()


# --- the key --------------------------------------------------------------------------------------


def test_a_key_made_by_hand_is_never_taken_for_a_secret_one() -> None:
    assert SecretKey(bytes(32)).known
    assert SecretKey.for_tests(1).known
    assert not SecretKey.generate().known
    assert SecretKey.for_tests(1) == SecretKey.for_tests(1) != SecretKey.for_tests(2)
    assert "material" not in repr(SecretKey.generate())


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, pickle.dumps, lambda key: copy.deepcopy([key])]
)
def test_a_key_cannot_be_copied_or_pickled(duplicate: Callable[[SecretKey], object]) -> None:
    for key in (SecretKey.generate(), SecretKey.for_tests(1)):
        with pytest.raises(PrivacyError, match="cannot be copied or pickled"):
            duplicate(key)


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_forked_child_cannot_use_the_key() -> None:
    code = (
        "import os\nfrom dpclip.errors import PrivacyError\nfrom dpclip.noise.keystream import "
        "SecretKey\nkey = SecretKey.generate()\nuses = [lambda: key.subkey('a'), lambda: "
        "key.stream('a', 0, 0), lambda: key.integer('a'),\n        lambda: key.noise(0, 0)]\nfor "
        "use in uses: use()\nchild = os.fork()\nif child == 0:\n    refused = 0\n    for use in "
        "uses:\n        try: use()\n        except PrivacyError as error: refused += 'inherited by "
        "a forked process' in str(error)\n    SecretKey.generate().subkey('its own')\n    "
        "os._exit(refused)\n_, status = os.waitpid(child, 0)\nfor use in uses: "
        "use()\nprint(os.waitstatus_to_exitcode(status))"
    )
    assert run_python(code).strip() == "4"


def test_forked_data_loader_workers_work_beside_a_live_key() -> None:
    """They read rows and derive nothing."""
    code = (
        "import torch, dpclip\nrows = [(torch.full((2,), float(i)), i % 2) for i in "
        "range(40)]\nmodel = torch.nn.Linear(2, 2)\noptimizer = "
        "torch.optim.SGD(model.parameters(), lr=0.1)\nprivate = dpclip.make_private(model, "
        "optimizer, rows, target_epsilon=8, target_delta=1e-3, "
        "steps=2,\n                              expected_batch_size=10, accountant='rdp')\nclass "
        "Rows(torch.utils.data.Dataset):\n    training = private\n    def __len__(self): return "
        "len(rows)\n    def __getitem__(self, i): return rows[i]\nloader = "
        "torch.utils.data.DataLoader(Rows(), batch_size=8, num_workers=2, "
        "multiprocessing_context='fork')\nseen = 0\nfor inputs, targets in private.batches():\n    "
        "with private.microbatch((inputs, targets)):\n        "
        "private.backward(torch.nn.functional.cross_entropy(model(inputs), targets, "
        "reduction='none'))\n    if private.step(): seen += sum(len(x) for x, _ in "
        "loader)\nprint(seen, private.engine.step)"
    )
    assert run_python(code).split() == ["80", "2"]


def linear() -> tuple[nn.Module, torch.optim.Optimizer, list[tuple[Tensor, Tensor]]]:
    model = nn.Linear(2, 1)
    rows = [(torch.full((2,), float(i)), torch.ones(1)) for i in range(40)]
    return model, torch.optim.SGD(model.parameters(), lr=0.1), rows


def make(**changes: Any) -> dpclip.PrivateTraining:
    values: dict[str, Any] = {
        "target_epsilon": 8,
        "target_delta": 1e-3,
        "steps": 2,
        "expected_batch_size": 10,
        "accountant": "rdp",
    }
    return dpclip.make_private(*linear(), **(values | changes))


def test_a_secret_key_serves_one_run() -> None:
    """One row more or less, and the difference of the two releases would be the row."""
    key = SecretKey.generate()
    make(key=key).close()
    with pytest.raises(PrivacyError, match="serves one run"):
        make(key=key)
    for _ in range(2):
        make(key=SecretKey.for_tests(1)).close()


def test_what_a_guarantee_rests_on_is_said() -> None:
    assert make().guarantee().kind == "worst-case"
    known = make(key=SecretKey.for_tests(1)).guarantee()
    assert (known.kind, known.assumption) == (
        "conditional", "the noise key is known (for tests): whoever has it can remove the noise",
    )  # fmt: skip
    fast = make(arithmetic="fast").guarantee()
    assert fast.kind == "conditional"
    assert "not proved" in str(fast.assumption)
    assert make(arithmetic="fast", target_epsilon=float("inf")).guarantee().assumption is None


def test_fast_arithmetic_is_part_of_the_run_and_of_its_guarantee(place: Path) -> None:
    words = [
        "--epsilon",
        8,
        "--delta",
        1e-3,
        "--data",
        place / "notes.csv",
        "--model",
        place / "model",
        "--steps",
        2,
    ]
    words += [
        "--batch-size",
        12,
        "--accountant",
        "rdp",
        "--output",
        place / "fast",
        "--arithmetic",
        "fast",
    ]
    result = command("train", *words)
    assert result.exit_code == 0, (result.output, result.exception)
    assert bodies(place / "fast")[0]["plan"]["arithmetic"] == "fast"
    assert "not proved" in tiny.statement(place / "fast")["guarantee"]["assumption"]
    one_line(
        command("train", "--resume", place / "fast", "--arithmetic", "exact"),
        "--arithmetic exact",
        "fast",
    )


def test_the_statement_says_where_the_key_came_from(whole: Path, place: Path) -> None:
    secret = tiny.statement(whole)
    training.start(
        settings(place, steps=2), place / "known", NoProgress(), key=SecretKey.for_tests(1)
    )
    known = tiny.statement(place / "known")
    assert secret["randomness"]["source"] == "operating system"
    assert known["randomness"]["source"] == "known key (for tests)"
    assert (secret["guarantee"]["kind"], known["guarantee"]["kind"]) == (
        "worst-case",
        "conditional",
    )
    assert any("whoever has it can remove the noise" in text for text in known["assumptions"])
    assert any("operating system drew for this run alone" in text for text in secret["assumptions"])


# --- seeds ----------------------------------------------------------------------------------------


def test_a_seed_chooses_the_initial_weights_and_nothing_else(place: Path) -> None:
    """Two runs of one seed begin equally, and draw other samples and other noise; private/ alone
    says which.
    """
    runs = [place / name for name in ("seed-1", "seed-1-again", "seed-2")]
    for run, seed in zip(runs, (1, 1, 2), strict=True):
        changes: dict[str, object] = {
            "seed": seed,
            "from_scratch": True,
            "steps": 2,
            "epsilon": 8.0,
        }
        training.start(
            settings(place, eval_data=str(place / "notes.csv"), **changes), run, NoProgress()
        )
    one, again, two = (tiny.statement(run) for run in runs)
    assert (
        one["evaluation"]["before"] == again["evaluation"]["before"] != two["evaluation"]["before"]
    )
    assert one["settings"]["seed"] == 1
    assert one["guarantee"]["kind"] == "worst-case"
    assert weights(runs[0]) != weights(runs[1])
    norms = [(run / "public" / "released_metrics.jsonl").read_text() for run in runs]
    assert norms[0] != norms[1]
    keys = {RunFolder(run).secret()[0].material for run in runs}
    assert len(keys) == 3
    assert all(not RunFolder(run).secret()[0].known for run in runs)


def test_the_noise_of_a_comparison_cannot_be_rebuilt_from_what_it_publishes(place: Path) -> None:
    words = ["--rules", "flat", "--epsilon", 4, "--seeds", 2, "--data", place / "notes.csv"]
    words += [
        "--eval-data",
        place / "notes.csv",
        "--model",
        place / "model",
        "--steps",
        2,
        "--batch-size",
        12,
    ]
    words += ["--delta", 1e-3, "--accountant", "rdp", "--from-scratch"]
    found: list[list[dict[str, Any]]] = []
    for name in ("compared", "compared-again"):
        result = command("compare", *words, "--output", place / name)
        assert result.exit_code == 0, (result.output, result.exception)
        found.append(json.loads((place / name / "comparison.json").read_text())["rows"])
    for first, second in zip(*found, strict=True):
        assert first["seed"] == second["seed"]
        assert first["before"] == second["before"], "the initial weights are chosen by the seed"
        assert first["after"] != second["after"], "what is released is not"
        assert first["kind"] == second["kind"] == "worst-case"
    runs = sorted((place / "compared" / "runs").iterdir())
    keys = [json.loads((run / "private" / "secret.json").read_text())["key"] for run in runs]
    assert len(set(keys)) == 2
    for run, key, seed in zip(runs, keys, (1, 2), strict=True):
        assert tomllib.loads((run / "public" / "config.toml").read_text())["seed"] == seed
        assert key not in {SecretKey.for_tests(n).material.hex() for n in range(10)}
        outside = [
            p for p in (place / "compared").rglob("*") if p.is_file() and "private" not in p.parts
        ]
        assert not any(
            key.encode() in p.read_bytes() or bytes.fromhex(key) in p.read_bytes() for p in outside
        )


# --- what a run is bound to -----------------------------------------------------------------------


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_edited_settings_are_refused_by_name(stopped: Path) -> None:
    run = copied(stopped, "edited")
    before = (run / "ledger.jsonl").read_bytes()
    edit(run / "private" / "config.toml", 'lr_schedule = "linear"', 'lr_schedule = "constant"')
    edit(run / "private" / "config.toml", "rows_per_unit = 8", "rows_per_unit = 9")
    refused = command("train", "--resume", run)
    one_line(
        refused,
        "--rows-per-unit, --lr-schedule changed since the run",
        "start a new run in a new folder",
    )
    (run / "public" / "config.toml").write_text(settings_of(RunFolder(run)).to_toml(public=True))
    shutil.rmtree(run / "private" / "checkpoint")
    one_line(
        command("train", "--resume", run),
        "private/config.toml was edited since the run",
        "original settings",
    )
    (run / "public" / "config.toml").unlink()
    one_line(command("train", "--resume", run), "private/config.toml was edited since the run")
    assert (run / "ledger.jsonl").read_bytes() == before


def test_settings_that_change_no_result_may_be_edited(stopped: Path, whole: Path) -> None:
    run = copied(stopped, "slower")
    edit(run / "private" / "config.toml", f"checkpoint_every = {KEPT}", "checkpoint_every = 1")
    assert weights(resumed(run)) == weights(whole)


def test_an_edited_header_is_found(stopped: Path) -> None:
    run = copied(stopped, "header")
    edit(run / "ledger.jsonl", f'"steps":{STEPS},', f'"steps":{STEPS + 1},')
    with pytest.raises(JournalCorruptError, match="line 1: does not match its hash"):
        resumed(run)
    one_line(command("train", "--resume", run), "line 1", "restore it from a copy")


def test_a_header_that_was_edited_along_with_its_chain_is_found(stopped: Path) -> None:
    """The digest of the settings has a key, and the checkpoint knows the chain."""
    changed = settings_of(RunFolder(stopped)).changed(lr=0.5)

    def other_settings(found: list[dict[str, Any]]) -> None:
        found[0]["settings"] = changed.digest(bytes(32))

    def less_noise(found: list[dict[str, Any]]) -> None:
        found[0]["plan"]["noise_multiplier"] *= 0.5
        found[0]["digest"] = Plan.from_json(found[0]["plan"]).digest()

    run = copied(stopped, "rechained")
    (run / "private" / "config.toml").write_text(changed.to_toml())
    rewrite(run, other_settings)
    with pytest.raises(InputError, match="--lr changed since the run"):
        resumed(run)
    run = copied(stopped, "rechained-plan")
    rewrite(run, less_noise)
    with pytest.raises(InputError, match="belongs to another plan"):
        resumed(run)


# --- commitments ----------------------------------------------------------------------------------


def test_each_charge_is_followed_by_the_sum_its_noise_was_given_to(whole: Path) -> None:
    kinds = [(b["kind"], b["step"]) for b in bodies(whole)[1:]]
    assert kinds == [(kind, step) for step in range(STEPS) for kind in ("step", "release")]
    tags = [b["commitment"] for b in bodies(whole) if b.get("kind") == "release"]
    assert len(set(tags)) == STEPS
    assert not (whole / "private" / "commitments.txt").exists()


def test_a_ledger_remembers_the_sums_and_a_reopened_one_too(tmp_path: Path) -> None:
    plan = Plan(1000, 50, 10, 1.0, 1e-9, 8.0)
    for path in (None, tmp_path / "ledger.jsonl"):
        ledger = Ledger.create(path, plan)
        receipt = ledger.charge(0, 0, 1.0)
        assert ledger.confirm(receipt, "aa")
        assert ledger.confirm(receipt, "aa")
        assert not ledger.confirm(receipt, "bb")
        assert ledger.charges_after(0) == ledger.charges == 1
        ledger.close()
    again = Ledger.open(tmp_path / "ledger.jsonl", plan)
    assert not again.confirm(receipt, "bb")
    assert again.confirm(receipt, "aa")
    assert again.charges == 1
    again.close()


def test_a_lost_checkpoint_is_replayed_from_the_beginning(stopped: Path, whole: Path) -> None:
    run = copied(stopped, "lost")
    shutil.rmtree(run / "private" / "checkpoint")
    resumed(run)
    assert weights(run) == weights(whole)
    assert (run / "ledger.jsonl").read_bytes() == (whole / "ledger.jsonl").read_bytes()


def test_a_lost_checkpoint_and_another_gradient_never_meet_the_same_noise(place: Path) -> None:
    """The model in its folder was changed, too: the ledger alone tells that the first step's noise
    is taken.
    """
    model = Path(shutil.copytree(place / "model", place / "own-model"))
    run = place / "lost-and-changed"
    with pytest.raises(Stopped):
        training.start(settings(place, model=str(model)), run, StopAfter(5))
    tags = {b["commitment"] for b in bodies(run) if b.get("kind") == "release"}
    shutil.rmtree(run / "private" / "checkpoint")
    tensors = load_file(model / "model.safetensors")
    tensors["transformer.h.0.mlp.c_fc.weight"] += 1e-3
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    outcome = resumed_outcome(run)
    assert tiny.ledger_steps(run) == [(step, 0) for step in range(5)] + [
        (step, 1) for step in range(3)
    ]
    assert outcome.status == "budget exhausted"
    releases = [b for b in bodies(run) if b.get("kind") == "release"]
    assert {b["commitment"] for b in releases if b["generation"] == 0} == tags
    assert [(b["step"], b["generation"]) for b in releases] == tiny.ledger_steps(run)


def resumed_outcome(run: Path) -> training.Outcome:
    folder = RunFolder.open(run)
    return training.resume(folder, settings_of(folder), NoProgress())


def cut(run: Path, lines: int) -> None:
    """Take so many lines from the end of the ledger."""
    found = (run / "ledger.jsonl").read_text().splitlines(keepends=True)
    assert json.loads(found[-1])["body"]["kind"] == "release"
    (run / "ledger.jsonl").write_text("".join(found[:-lines]))


def test_a_ledger_cut_just_before_the_last_release_that_the_checkpoint_knows_is_found_out(
    stopped: Path,
) -> None:
    run = copied(stopped, "cut")
    cut(run, 2)  # the step after the checkpoint: nothing that it knows is gone
    (state,) = (run / "private" / "checkpoint").glob("step-*/state.json")
    assert (
        json.loads(state.read_text())["ledger_head"]
        in (run / "ledger.jsonl").read_text().splitlines()[-1]
    )
    cut(run, 1)
    with pytest.raises(InputError, match="shortened or replaced"):
        resumed(run)


def test_a_charge_without_a_release_is_replayed_with_the_same_noise(
    stopped: Path, whole: Path
) -> None:
    """As after a crash between the two: the noise was never drawn."""
    run = copied(stopped, "unreleased")
    cut(run, 1)
    assert bodies(run)[-1]["kind"] == "step"
    assert weights(resumed(run)) == weights(whole)
    assert (run / "ledger.jsonl").read_bytes() == (whole / "ledger.jsonl").read_bytes()


# --- runs of earlier versions ---------------------------------------------------------------------


def test_a_run_of_an_earlier_version_is_reported_and_not_continued(
    stopped: Path, whole: Path
) -> None:
    def older(found: list[dict[str, Any]]) -> None:
        header = found[0]
        del header["plan"]["arithmetic"], header["settings"]
        header["digest"] = "0" * 64
        found[:] = [body for body in found if body.get("kind") != "release"]

    for name, run in {"old": stopped, "old-and-complete": whole}.items():
        old = copied(run, name)
        rewrite(old, older)
        secret = json.loads((old / "private" / "secret.json").read_text())
        secret["seeded"] = secret.pop("known")
        (old / "private" / "secret.json").write_text(json.dumps(secret))
        before = (old / "ledger.jsonl").read_bytes()
        one_line(
            command("train", "--resume", old), "begun by an earlier version", "start a new run"
        )
        assert (old / "ledger.jsonl").read_bytes() == before
    report = command("report", old)
    assert report.exit_code == 0, report.output
    with pytest.raises(InputError, match="begun by an earlier version"):
        Ledger.open(old / "ledger.jsonl", RunFolder(whole).plan())
