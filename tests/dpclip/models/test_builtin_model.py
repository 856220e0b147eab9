"""The built-in model: it loads offline, it knows some English, it is small."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from dpclip import models
from dpclip.models import builtin_model_path
from dpclip.tasks.clinic_notes import clinic_notes, public_clinic_notes

VOCABULARY = 2048
CONTEXT = 128
SENTENCES = [
    "The river runs through the middle of the town and then turns to the south.",
    "She was born in London and moved to the United States when she was ten years old.",
    "In the second half of the season the team won most of its games at home.",
    "The building was opened in 1912 and is now used as a public library.",
    "He wrote several books about the history of the war, but none of them was published.",
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(builtin_model_path(), local_files_only=True)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(builtin_model_path(), local_files_only=True).eval()


@torch.no_grad()
def perplexity(model: Any, rows: list[list[int]]) -> float:
    """Per token; the first token of a row is given, not scored."""
    losses = [
        model(torch.tensor([row]), labels=torch.tensor([row])).loss.item() * (len(row) - 1)
        for row in rows
    ]
    return math.exp(sum(losses) / sum(len(row) - 1 for row in rows))


def test_it_has_learnt_english(model: Any, tokenizer: Any) -> None:
    """A model that knows nothing scores the size of its vocabulary; one that knows the spelling,
    hundreds.
    """
    rows = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in SENTENCES]
    generator = torch.Generator().manual_seed(0)
    shuffled = [
        [row[i] for i in torch.randperm(len(row), generator=generator).tolist()] for row in rows
    ]
    learnt = perplexity(model, rows)
    assert learnt < VOCABULARY / 20
    assert learnt < perplexity(model, shuffled) / 4


def test_what_it_has_yet_to_learn_of_clinic_notes_is_much(model: Any, tokenizer: Any) -> None:
    rows = [
        [*tokenizer(note.text)["input_ids"], tokenizer.eos_token_id]
        for note in public_clinic_notes(64)
    ]
    assert 50 < perplexity(model, rows) < VOCABULARY


def test_its_weights_load_as_float32_and_are_the_ones_counted(model: Any) -> None:
    record = json.loads((builtin_model_path() / "training.json").read_text(encoding="utf-8"))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert sum(parameter.numel() for parameter in model.parameters()) == record["parameters"]
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert record["data_licence"] == "CC BY-SA 3.0"


def test_its_tokenizer_spells_every_string_and_adds_nothing(model: Any, tokenizer: Any) -> None:
    text = "  Grüße, 漢字 🩺\tand\nlines <|x|>"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token_id not in ids
    assert len(tokenizer) == model.config.vocab_size == VOCABULARY


def test_padding_is_never_mistaken_for_an_end(model: Any, tokenizer: Any) -> None:
    assert tokenizer.bos_token == tokenizer.eos_token == "<|endoftext|>"
    assert tokenizer.pad_token == "<|pad|>"
    for config in (model.config, model.generation_config):
        assert config.eos_token_id == tokenizer.eos_token_id
        assert config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id


@torch.no_grad()
def test_a_classifier_on_it_reads_padded_rows_as_if_alone(tokenizer: Any) -> None:
    torch.manual_seed(0)
    classifier = AutoModelForSequenceClassification.from_pretrained(
        builtin_model_path(), num_labels=3
    ).eval()
    together = classifier(**tokenizer(SENTENCES[:2], padding=True, return_tensors="pt")).logits
    alone = [classifier(**tokenizer(text, return_tensors="pt")).logits for text in SENTENCES[:2]]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_clinic_notes_fit_into_three_quarters_of_its_context(tokenizer: Any) -> None:
    lengths = [
        len(ids) + 1 for ids in tokenizer([note.text for note in clinic_notes()])["input_ids"]
    ]
    assert max(lengths) <= 0.75 * CONTEXT
    assert 30 < sum(lengths) / len(lengths) < 60


def test_all_its_files_together_are_under_ten_megabytes() -> None:
    assert sum(path.stat().st_size for path in builtin_model_path().iterdir()) <= 10_000_000


def test_an_installation_without_the_files_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(models, "files", lambda package: tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no built-in model"):
        builtin_model_path()
