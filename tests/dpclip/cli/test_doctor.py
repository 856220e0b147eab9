"""The doctor's findings, the footprint, and the choice of rows that fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from dpclip.cli.app import app
from dpclip.diagnosis.doctor import examine
from dpclip.diagnosis.footprint import Footprint, footprint
from dpclip.errors import InputError
from dpclip.noise.keystream import SecretKey
from dpclip.train import rows as fitting
from dpclip.train.job import prepare
from dpclip.train.settings import Settings
from tests.support import reference, tiny

runner = CliRunner()


def rows(count: int, length: int) -> list[dict[str, Tensor]]:
    whole = reference.batch(count, length)
    return [reference.row(whole, i) for i in range(count)]


def collate(examples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([e[name] for e in examples]) for name in examples[0]}


def test_every_trainable_parameter_is_found_with_its_method() -> None:
    model = reference.gpt2()
    found = examine(model, reference.losses, collate, rows(4, 9), rows(3, 20))
    assert {f.parameter for f in found.findings} == {name for name, _ in model.named_parameters()}
    methods = {
        (f.parameter.split(".")[-2], f.layer): f.norm
        for f in found.findings
        if f.parameter.endswith("weight")
    }
    assert methods["wpe", "Embedding"] == "sums over equal tokens"
    assert methods["ln_f", "LayerNorm"] == "sums over positions"
    assert methods["c_attn", "Conv1D"] == "written out"
    assert [f.norm for f in found.findings if f.parameter == "transformer.wte.weight"] == [
        "Gram matrices", "sums over equal tokens",
    ]  # fmt: skip
    assert found.refusals == []
    assert found.slowdown is not None
    assert found.slowdown > 0.2
    assert found.trainable == sum(p.numel() for p in model.parameters())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_a_refused_model_is_named_with_a_remedy() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.norm, self.head = (
                nn.Embedding(61, 8),
                nn.BatchNorm1d(8),
                nn.Linear(8, 1),
            )

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.norm(self.table(ids).mean(1)))[:, 0]

    found = examine(Normed(), lambda m, b: m(b["input_ids"]), collate, rows(4, 9), rows(3, 9))
    assert len(found.refusals) == 1
    assert "'norm' is a BatchNorm1d" in found.refusals[0]
    assert found.slowdown is None


def test_footprint_grows_with_length_and_with_materialised_gradients() -> None:
    model = reference.gpt2(width=64)
    short = footprint(model, reference.losses, collate, rows(3, 8))
    long = footprint(model, reference.losses, collate, rows(3, 30))
    written = footprint(model, reference.losses, collate, rows(3, 8), "hooks")
    assert 30 / 8 < long.row / short.row < (30 / 8) ** 2
    assert written.row - short.row > 4 * 0.8 * sum(p.numel() for p in model.parameters())
    assert short.fixed == long.fixed == 12 * sum(p.numel() for p in model.parameters())


def test_rows_that_fit() -> None:
    assert Footprint(100, 10).rows(155) == 5
    assert Footprint(100, 10).rows(99) == 0


@pytest.mark.parametrize(("free", "expected"), [(1 << 40, 16), (0, None)])
def test_physical_batch_size_follows_the_free_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, expected: int | None
) -> None:
    monkeypatch.setattr(fitting, "free_bytes", lambda device: free)
    settings = Settings(8.0, data=str(tiny.write_csv(tmp_path / "n.csv")), text_column="text",
                        model=str(tiny.gpt2_folder(tmp_path / "model")), steps=2)  # fmt: skip
    if expected is None:
        with pytest.raises(InputError, match="shorten --max-length"):
            prepare(settings, SecretKey(bytes(32)))
        return
    assert prepare(settings, SecretKey(bytes(32))).physical_batch_size == expected
    assert (
        prepare(settings.changed(physical_batch_size=3), SecretKey(bytes(32))).physical_batch_size
        == 3
    )


def test_command_line(tmp_path: Path) -> None:
    folder = tiny.gpt2_folder(tmp_path / "model")
    shown = runner.invoke(app, ["doctor", str(folder)])
    assert shown.exit_code == 0
    assert "ready to train" in shown.stdout
    assert "is used 2 times" in shown.stdout
    found = json.loads(runner.invoke(app, ["doctor", str(folder), "--json", "--lora", "2"]).stdout)
    assert found["refusals"] == []
    assert all("lora_" in finding["parameter"] for finding in found["findings"])
    assert runner.invoke(app, ["doctor", str(folder), "--max-length", "4000"]).exit_code == 2
    assert runner.invoke(app, ["doctor", str(tmp_path / "none")]).exit_code == 2


@pytest.mark.parametrize(("value", "code"), [("auto", 0), ("7", 0), ("some", 2), ("0", 2)])
def test_physical_batch_size_option(tmp_path: Path, value: str, code: int) -> None:
    words = [
        "train",
        "--epsilon",
        "8",
        "--data",
        tiny.write_csv(tmp_path / "n.csv"),
        "--text-column",
        "text",
        "--steps",
        1,
    ]
    words += [
        "--model",
        tiny.gpt2_folder(tmp_path / "model"),
        "--physical-batch-size",
        value,
        "--output",
        tmp_path / "run",
    ]
    found = runner.invoke(app, [str(word) for word in words])
    assert found.exit_code == code, found.output
