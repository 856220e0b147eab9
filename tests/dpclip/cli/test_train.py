"""`dpclip train` and its relatives as a user meets them: what they write, what they refuse, how
they exit.
"""

from __future__ import annotations

import json
import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner, Result

from dpclip.budget.spending import epsilon_after
from dpclip.cli.app import app
from dpclip.cli.progress import NoProgress
from dpclip.models import loading
from dpclip.record import run_record
from dpclip.record.run_folder import RunFolder
from dpclip.train import run as training
from dpclip.train.settings import Settings
from tests.support import tiny
from tests.support.runs import one_line


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    tiny.gpt2_folder(folder / "gpt2")
    tiny.gpt2_folder(folder / "padded", pad=True)
    tiny.bert_folder(folder / "bert")
    tiny.write_csv(folder / "notes.csv")
    (folder / "notes.txt").write_text("\n".join(tiny.notes(60)) + "\n")
    return folder


def dpclip(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def train(place: Path, output: str, *words: object, **replaced: object) -> Result:
    """A short run on the tiny files; options by keyword, None leaves one out."""
    options: dict[str, object] = {
        "--epsilon": 8,
        "--delta": 1e-3,
        "--data": place / "notes.csv",
        "--model": place / "gpt2",
        "--steps": 4,
        "--batch-size": 12,
        "--accountant": "rdp",
        "--output": place / output,
        **{f"--{name.replace('_', '-')}": value for name, value in replaced.items()},
    }
    given = [part for name, value in options.items() if value is not None for part in (name, value)]
    return dpclip("train", *given, *words)


@pytest.mark.parametrize(
    ("rule", "name", "sampler"),
    [
        ("dice", "alternating halves", "Poisson on alternating halves"),
        ("dice:mode=capped", "one Gaussian over the whole run", "shuffled passes"),
        ("per-layer-quantile", "Poisson-subsampled Gaussian", "Poisson"),
        ("geoclip", "Poisson-subsampled Gaussian", "Poisson"),
    ],
)
def test_a_rule_brings_its_own_batches_and_the_statement_names_them(
    place: Path, rule: str, name: str, sampler: str
) -> None:
    output = f"rule-{rule.replace(':', '-')}"
    result = train(place, output, clipping=rule, grad_sample_mode="auto")
    assert result.exit_code == 0, result.output
    statement = json.loads((place / output / "public" / "statement.json").read_text())
    assert name in statement["mechanism"]["name"]
    assert statement["mechanism"]["sampler"] == sampler
    assert statement["guarantee"]["kind"] == "worst-case"
    assert 0 < statement["guarantee"]["epsilon"] <= 8
    assert statement["spend"][-1]["step"] == 4
    assert statement["spend"][-1]["epsilon"] <= 8
    # what it has learned or carries stays in private/
    assert not list((place / output / "public").rglob("*rule*"))
    assert "geoclip" not in rule or list((place / output / "private").rglob("rule.safetensors"))


def test_clippers_after_the_noise_cost_nothing_and_are_named(place: Path) -> None:
    """The same epsilon, in the panel, the statement, the report and the curves."""
    assert train(place, "no-clipper").exit_code == 0
    result = train(place, "clipper", postprocess="zclip:z_thresh=2.5,warmup_steps=2+adagc")
    assert result.exit_code == 0, result.output
    assert "after noise" in result.output
    plain, clipped = (
        json.loads((place / run / "public" / "statement.json").read_text())
        for run in ("no-clipper", "clipper")
    )
    assert clipped["guarantee"] == plain["guarantee"]
    assert [c["name"] for c in clipped["mechanism"]["postprocessing"]] == ["zclip", "adagc"]
    assert clipped["mechanism"]["postprocessing"][0]["warmup_steps"] == 2
    assert plain["mechanism"]["postprocessing"] == []
    assert "zclip" in (place / "clipper" / "public" / "report.html").read_text()
    lines = (place / "clipper" / "public" / "released_metrics.jsonl").read_text().splitlines()
    assert any("zclip_mean" in json.loads(line).get("values", json.loads(line)) for line in lines)
    assert list((place / "clipper" / "private").rglob("postprocess.pt"))


def test_statistics_that_cost_more_than_a_step_has_are_refused_before_anything_is_written(
    place: Path,
) -> None:
    result = train(place, "greedy", clipping="quantile:count_noise=0.01")
    one_line(result, "clipping quantile", "more than one step's budget", "give them more noise")
    assert not (place / "greedy").exists()


def test_a_conditional_guarantee_has_to_be_asked_for_and_is_named_everywhere(place: Path) -> None:
    rule = "dice:mode=literal,calibration=published"
    one_line(
        train(place, "conditional", clipping=rule), "could not be verified", "--accept-conditional"
    )
    assert not (place / "conditional").exists()
    result = train(place, "conditional", "--accept-conditional", clipping=rule)
    assert result.exit_code == 0, result.output
    assert "conditional" in result.output
    public = place / "conditional" / "public"
    guarantee = json.loads((public / "statement.json").read_text())["guarantee"]
    assert guarantee["kind"] == "conditional"
    assert "bounded" in guarantee["assumption"]
    assert "conditional" in guarantee["sentence"]
    assert "conditional" in (public / "report.html").read_text().lower()


# --- what it does ---------------------------------------------------------------------------------


def test_a_run_leaves_a_folder_that_tells_the_truth(place: Path) -> None:
    result = train(place, "run", eval_data=place / "notes.csv")
    assert result.exit_code == 0, result.output
    run = place / "run"
    stated = tiny.statement(run)
    assert list(stated)[:2] == ["schema", "guarantee"]
    assert stated["schema"] == 1
    guarantee = stated["guarantee"]
    assert set(guarantee) >= {"epsilon", "delta", "kind", "adjacency", "unit", "accountant"}
    assert 7.9 < guarantee["epsilon"] <= 8.0
    assert guarantee["kind"] == "worst-case"
    mechanism = stated["mechanism"]
    assert (mechanism["units"], mechanism["expected_batch_size"], mechanism["sample_rate"]) == (
        60,
        12,
        0.2,
    )
    assert stated["run"]["steps_charged"] == 4 == len(tiny.ledger_steps(run))
    assert stated["evaluation"]["after"] < stated["evaluation"]["before"]
    assert "declared public by the user" in stated["data"]["evaluation"]["declared"]
    assert (
        guarantee["sentence"] in result.output.replace("\n", " ")
        or "differentially private" in result.output
    )
    names = {a["accountant"] for a in stated["accountants"]}
    assert names >= {"rdp", "prv", "prv-accountant"}
    assert (run / "public" / "report.html").read_text().startswith("<!")
    metrics = [
        json.loads(x) for x in (run / "public" / "released_metrics.jsonl").read_text().splitlines()
    ]
    assert [m["step"] for m in metrics] == [0, 1, 2, 3, 4, 4]
    assert metrics[4]["epsilon"] == pytest.approx(guarantee["epsilon"])
    model = AutoModelForCausalLM.from_pretrained(run / "public" / "model")
    tokenizer = AutoTokenizer.from_pretrained(run / "public" / "model")
    assert model(**tokenizer("mild pain", return_tensors="pt")).logits.isfinite().all()


def test_the_resolved_configuration_repeats_the_run(place: Path) -> None:
    train(
        place,
        "first",
        seed=3,
        steps=None,
        epochs=1,
        batch_size=None,
        task="classification",
        label_column="label",
    )
    written = tomllib.loads((place / "first" / "private" / "config.toml").read_text())
    assert written["batch_size"] == 15
    assert written["labels"] == "a,b"
    assert written["lr"] == pytest.approx(0.768 / 16)
    file = place / "first" / "private" / "config.toml"
    again = dpclip("train", "--config", file, "--output", place / "again")
    assert again.exit_code == 0, again.output
    key, _ = RunFolder(place / "first").secret()
    training.start(Settings.from_toml(file), place / "same key", NoProgress(), key=key)
    runs = [place / name for name in ("first", "again", "same key")]
    first, other, same = (
        (run / "public" / "model" / "model.safetensors").read_bytes() for run in runs
    )
    assert first == same
    assert first != other, "the seed is no key: the noise is another"
    for name in ("again", "same key"):
        assert (place / name / "private" / "config.toml").read_text() == file.read_text()
    assert "seed = 3" in (place / "first" / "public" / "config.toml").read_text()


@pytest.mark.parametrize(
    ("name", "words", "replaced"),
    [
        ("text", [], {"data": "notes.txt"}),
        ("functorch", [], {"grad_sample_mode": "functorch"}),
        ("automatic", [], {"clipping": "automatic:gamma=0.1"}),
        ("target", [], {"input_column": "question", "target_column": "text"}),
        ("lora", [], {"lora": 2}),
        ("people", [], {"unit_column": "person", "batch_size": 5, "delta": 1e-2}),
        ("scratch", ["--from-scratch"], {"optimizer": "sgd", "lr_schedule": "cosine"}),
        (
            "classes",
            [],
            {"task": "classification", "label_column": "label", "eval_data": "notes.csv"},
        ),
        (
            "bert run",
            [],
            {"task": "classification", "label_column": "label", "model": "bert", "lora": 2},
        ),
    ],
)
def test_variants_train_and_report(
    place: Path, name: str, words: list[str], replaced: dict[str, Any]
) -> None:
    for key in ("data", "eval_data", "model"):
        if key in replaced:
            replaced = {**replaced, key: place / str(replaced[key])}
    result = train(place, name, *words, **replaced)
    assert result.exit_code == 0, (result.output, result.exception)
    stated = tiny.statement(place / name)
    assert 7.0 < stated["guarantee"]["epsilon"] <= 8.0
    assert 0 < stated["model"]["trainable_parameters"] <= stated["model"]["parameters"]


def test_adapters_are_merged_into_a_standard_folder(place: Path) -> None:
    train(
        place, "merged", lora=2, task="classification", label_column="label", model=place / "padded"
    )
    model = AutoModelForSequenceClassification.from_pretrained(
        place / "merged" / "public" / "model"
    )
    assert model.config.id2label == {0: "a", 1: "b"}
    assert not any("lora" in name for name, _ in model.named_parameters())
    stated = tiny.statement(place / "merged")["model"]
    assert 0 < stated["trainable_parameters"] < stated["parameters"]


def test_only_the_target_is_learned(place: Path) -> None:
    from dpclip.tasks.language_modelling import LanguageModelling
    from dpclip.tasks.reading import read_records

    loaded = loading.load_model(str(place / "gpt2"), LanguageModelling.head())
    task = LanguageModelling(loaded.tokenizer, 32)
    records = read_records(
        str(place / "notes.csv"), task="lm", input_column="question", target_column="text"
    )
    batch = task.collate(task.encode(records)[:4])
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        counted = loaded.tokenizer.decode(ids[labels != -100])
        whole = loaded.tokenizer.decode(ids)
        question, target = whole.removeprefix("<|endoftext|>").split("\n")
        assert counted == target.split("<|endoftext|>")[0] + "<|endoftext|>"
        assert question in tiny.WORDS


def test_a_long_record_is_truncated_to_the_end_or_refused_but_never_split(place: Path) -> None:
    assert train(place, "short", max_length=6).exit_code == 0
    assert tiny.statement(place / "short")["data"]["training"]["units"] == 60
    one_line(
        train(place, "refused", max_length=6, long_records="refuse"),
        "longer than 6 tokens",
        "--max-length",
    )
    assert not (place / "refused").exists()


def test_without_privacy_the_same_road_says_so_plainly(place: Path) -> None:
    result = train(place, "plain", epsilon="inf")
    assert result.exit_code == 0, result.output
    stated = tiny.statement(place / "plain")
    assert stated["guarantee"]["epsilon"] == "inf"
    assert "no privacy guarantee" in stated["guarantee"]["sentence"]
    assert dpclip("report", place / "plain").exit_code == 0


def test_the_baseline_stays_private(place: Path) -> None:
    result = train(place, "based", "--baseline", eval_data=place / "notes.csv")
    assert result.exit_code == 0, result.output
    kept = json.loads((place / "based" / "private" / "baseline.json").read_text())
    value = kept["after_without_privacy"]
    assert math.isfinite(value)
    public = "".join(p.read_text() for p in (place / "based" / "public").glob("*.*"))
    assert str(value)[:8] not in public
    assert f"{value:.4g}" in result.output


def test_options_come_from_toml_and_the_command_line_wins(place: Path) -> None:
    file = place / "run.toml"
    file.write_text(
        f'epsilon = 3\nsteps = 9\nbatch-size = 12\ndata = "{place}/notes.csv"\n'
        f'model = "{place}/gpt2"\n'
        f'accountant = "rdp"\ndelta = 1e-3\noutput = "{place}/toml"\n'
    )
    result = dpclip("train", "--config", file, "--steps", 2)
    assert result.exit_code == 0, result.output
    stated = tiny.statement(place / "toml")
    assert stated["run"]["steps_planned"] == 2
    assert stated["run"]["target_epsilon"] == 3.0
    file.write_text("epsilon = 3\nstpes = 9\n")
    one_line(dpclip("train", "--config", file), "'stpes'", "steps")
    file.write_text('epsilon = "three"\n')
    one_line(dpclip("train", "--config", file), "epsilon = 'three'", "float")


def test_json_is_the_statement_alone(place: Path) -> None:
    result = train(place, "json", "--json")
    fields = json.loads(result.stdout)
    assert fields["guarantee"] == tiny.statement(place / "json")["guarantee"]
    assert fields["run_folder"] == str(place / "json")


def test_live_epsilon_is_read_from_above_and_never_beyond_the_budget() -> None:
    curve = [(0, 0.0), (4, 1.5), (8, 2.5)]
    found = [epsilon_after(curve, charges, 3.0) for charges in (1, 4, 5, 8, 9)]
    assert found == [1.5, 1.5, 2.5, 2.5, 3.0]


def test_an_exhausted_budget_exits_with_3(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train(place, "spent", seed=1).exit_code == 0
    checkpoints = place / "spent" / "private" / "checkpoint"
    (folder,) = checkpoints.glob("step-*")
    state = json.loads((folder / "state.json").read_text())
    # As if the run had stopped at step 2 and gone on elsewhere.
    (folder / "state.json").write_text(json.dumps({**state, "step": 2}))
    monkeypatch.setattr(run_record, "fingerprint", lambda *_: {"threads": "64"})
    result = dpclip("train", "--resume", place / "spent")
    assert result.exit_code == 3, result.output
    assert "given up" in result.output
    assert tiny.statement(place / "spent")["run"]["status"] == "budget exhausted"


# --- what it refuses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("replaced", "parts"),
    [
        ({"epsilon": None}, ["--epsilon 8"]),
        ({"epsilon": 0}, ["0.0", "positive"]),
        ({"epsilon": -3}, ["-3", "positive"]),
        ({"delta": 0.5}, ["0.5", "not below 1/N", "choose at most"]),
        ({"delta": 0}, ["delta = 0", "between 0 and 1"]),
        ({"batch_size": 61}, ["61", "N = 60", "between 1 and 60"]),
        ({"batch_size": 0}, ["--batch-size 0", "at least 1"]),
        ({"text_column": "words"}, ["words", "text"]),
        ({"clipping": "none"}, ["none", "bounds nothing", "--epsilon inf"]),
        ({"clipping": "flatt"}, ["'flatt'", "automatic-v, dc-sgd-e"]),
        ({"grad_sample_mode": "magic"}, ["'magic'", "hooks"]),
        ({"accountant": "moments"}, ["'moments'", "prv, rdp"]),
        ({"arithmetic": "quick"}, ["--arithmetic 'quick'", "exact, fast"]),
        ({"task": "translation"}, ["'translation'", "classification, lm"]),
        ({"model": "/no/such/model"}, ["/no/such/model", "builtin"]),
        ({"data": "/no/such/file.csv"}, ["/no/such/file.csv"]),
        ({"max_length": 64}, ["64", "context of 32"]),
        ({"epochs": 2}, ["--epochs", "--steps"]),
        ({"lr": -1}, ["--lr -1", "positive"]),
        ({"device": "abacus"}, ["'abacus'", "cpu"]),
        ({"postprocess": "zclap"}, ["'zclap'", "autoclip", "zclip"]),
        ({"postprocess": "zclip:z=1"}, ["'z'", "z_thresh"]),
        ({"postprocess": "zclip:input=ratio", "clipping": "adaclip"}, ["adaclip", "input=noised"]),
    ],
)
def test_bad_values_get_one_line_and_leave_nothing(
    place: Path, replaced: dict[str, Any], parts: list[str]
) -> None:
    one_line(train(place, "bad", **replaced), *parts)
    assert not (place / "bad").exists()
    assert not list(place.glob(".bad*"))


def test_an_empty_file_is_refused(place: Path) -> None:
    (place / "empty.csv").write_text("text\n")
    one_line(train(place, "bad", data=place / "empty.csv"), "empty.csv")


def test_a_folder_that_is_no_model_is_refused(place: Path) -> None:
    (place / "nothing").mkdir(exist_ok=True)
    one_line(train(place, "bad", model=place / "nothing"), "nothing", "config.json")


def test_a_model_with_batch_norm_is_refused_by_the_name_of_the_module(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loading.load_model

    def with_batch_norm(*args: Any, **kwargs: Any) -> loading.LoadedModel:
        loaded = original(*args, **kwargs)
        loaded.model.transformer.h[0].ln_1 = nn.BatchNorm1d(16)  # type: ignore[union-attr, index]
        return loaded

    monkeypatch.setattr("dpclip.train.job.load_model", with_batch_norm)
    one_line(train(place, "bad"), "transformer.h.0.ln_1", "BatchNorm1d", "GroupNorm or LayerNorm")


def test_a_hidden_coupling_of_rows_is_found_by_trying(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Centred(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x - x.mean((0, 1), keepdim=True)

    original = loading.load_model

    def coupled(*args: Any, **kwargs: Any) -> loading.LoadedModel:
        loaded = original(*args, **kwargs)
        loaded.model.transformer.h[0].mlp.act = Centred()  # type: ignore[union-attr, index]
        return loaded

    monkeypatch.setattr("dpclip.train.job.load_model", coupled)
    one_line(train(place, "bad"), "other rows of its batch")


def test_an_output_folder_in_use_is_refused_untouched(place: Path) -> None:
    train(place, "used")
    before = {p: p.read_bytes() for p in (place / "used").rglob("*") if p.is_file()}
    one_line(train(place, "used"), "holds another run", "--resume")
    assert {p: p.read_bytes() for p in (place / "used").rglob("*") if p.is_file()} == before
    (place / "full").mkdir()
    (place / "full" / "thesis.txt").write_text("mine")
    one_line(train(place, "full"), "not empty")


def test_resume_refuses_what_it_cannot_continue(place: Path) -> None:
    train(place, "resumable")
    one_line(dpclip("train", "--resume", place / "nowhere"), "nowhere", "holds no run")
    one_line(dpclip("train", "--resume", place / "resumable", "--epsilon", 4), "--epsilon 4", "8")
    one_line(dpclip("train", "--resume", place / "resumable", "--lr", 0.5), "--lr 0.5")
    one_line(dpclip("train", "--resume", place / "resumable", "--output", place / "x"), "leave out")
    assert dpclip("train", "--resume", place / "resumable", "--epsilon", 8).exit_code == 0


def test_report_of_what_is_no_run_is_refused(place: Path) -> None:
    one_line(dpclip("report", place), str(place))
    train(place, "reported")
    one_line(dpclip("report", place / "reported", "--format", "pdf"), "'pdf'", "html, md, json")
    assert json.loads(dpclip("report", place / "reported", "--json").stdout) == tiny.statement(
        place / "reported"
    )


# --- epsilon and calibrate ------------------------------------------------------------------------


def test_epsilon_and_calibrate_speak_the_contract() -> None:
    words = [
        "--sample-rate",
        0.01,
        "--noise-multiplier",
        1,
        "--steps",
        1000,
        "--delta",
        1e-5,
        "--json",
    ]
    found = json.loads(dpclip("epsilon", *words).stdout)
    assert set(found) >= {"epsilon", "estimate", "lower", "delta", "accountant", "adjacency"}
    assert 1.82824 <= found["epsilon"] <= 1.84  # certified reference of the tilted FFT: 1.82824
    words = ["--epsilon", 8, "--delta", 1e-5, "--sample-rate", 0.01, "--steps", 300, "--json"]
    found = json.loads(dpclip("calibrate", *words).stdout)
    assert 7.99 <= found["epsilon"] <= 8
    assert 0.50 < found["noise_multiplier"] < 0.516  # Opacus' PRV accountant: 0.5142
    one_line(
        dpclip(
            "epsilon", "--sample-rate", 2, "--noise-multiplier", 1, "--steps", 1, "--delta", 0.1
        ),
        "2",
    )
    one_line(
        dpclip(
            "calibrate",
            "--epsilon",
            1,
            "--delta",
            1e-5,
            "--sample-rate",
            0.1,
            "--steps",
            1,
            "--adjacency",
            "x",
        ),
        "'x'",
        "add-remove",
    )


def test_the_public_settings_name_files_without_their_folders() -> None:
    kept = Settings(
        epsilon=8, clipping="rl:mode=B,policy=/home/someone/taught.safetensors,interval=4"
    )
    public = tomllib.loads(kept.to_toml(public=True))
    assert public["clipping"] == "rl:mode=B,policy=taught.safetensors,interval=4"
    assert tomllib.loads(kept.to_toml())["clipping"] == kept.clipping
