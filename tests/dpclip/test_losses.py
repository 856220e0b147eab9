"""Losses by row: what Hugging Face computes of each row alone, whatever its neighbours are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForCausalLM,
    BartForConditionalGeneration,
    BatchEncoding,
    BertConfig,
    BertForMaskedLM,
    BertForNextSentencePrediction,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    GPT2LMHeadModel,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MBartConfig,
    MBartForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

import dpclip
from dpclip import losses
from dpclip.errors import InputError
from tests.support import reference
from tests.support.reference import VOCABULARY

ROWS, LENGTH = 4, 12
MASK = (torch.arange(LENGTH) < torch.tensor([3, 12, 7, 5])[:, None]).long()
IDS = (
    torch.randint(5, VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1)) * MASK
)
TOKENS = IDS.masked_fill(MASK == 0, -100)
TARGETS = TOKENS[:, :8].contiguous()
CLASSES = torch.tensor([0, 1, 2, 1])
_SIZE: dict[str, Any] = {"vocab_size": VOCABULARY, "d_model": 16}
_BART: dict[str, Any] = {
    **_SIZE,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 32,
}


def bert(head: Any, **extra: Any) -> nn.Module:
    return head(BertConfig(**reference._COMMON, **extra))


def gpt2_classifier() -> nn.Module:
    model = reference.MODELS["gpt2 classifier"]()
    return type(model)(type(model.config).from_dict({**model.config.to_dict(), "num_labels": 3}))


def batch(**targets: Tensor) -> dict[str, Tensor]:
    return {"input_ids": IDS, "attention_mask": MASK, **targets}


def without_padding(rows: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    length = int(MASK[index].sum())
    return {
        k: v[:, :length] if v.shape[1:] == (LENGTH,) else v
        for k, v in reference.row(rows, index).items()
    }


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    batch: dict[str, Tensor]
    loss: Callable[..., Tensor]


multi = torch.tensor([[0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1]]).float()
positions = {
    "start_positions": torch.tensor([0, 2, -3, 1]),
    "end_positions": torch.tensor([1, 11, 5, 2]),
}
seqcls = BertForSequenceClassification
CASES = {
    "gpt2": Case(reference.gpt2, batch(labels=TOKENS), losses.causal_lm),
    "llama": Case(reference.llama, batch(labels=TOKENS), losses.causal_lm),
    "bert classes": Case(
        lambda: bert(seqcls, num_labels=3), batch(labels=CLASSES), losses.classification
    ),
    "bert regression": Case(
        lambda: bert(seqcls, num_labels=1), batch(labels=multi[:, 0]), losses.classification
    ),
    "bert 3 regressions": Case(
        lambda: bert(seqcls, num_labels=3, problem_type="regression"),
        batch(labels=multi),
        losses.classification,
    ),
    "bert multi label": Case(
        lambda: bert(seqcls, num_labels=3), batch(labels=multi), losses.classification
    ),
    "gpt2 classes": Case(gpt2_classifier, batch(labels=CLASSES), losses.classification),
    "bert tokens": Case(
        lambda: bert(BertForTokenClassification, num_labels=4),
        batch(labels=(IDS % 4).masked_fill(MASK == 0, -100)),
        losses.token_classification,
    ),
    "bert masked": Case(
        lambda: bert(BertForMaskedLM),
        batch(labels=TOKENS.masked_fill(TOKENS % 3 == 0, -100)),
        losses.masked_lm,
    ),
    "t5": Case(
        lambda: T5ForConditionalGeneration(
            T5Config(**_SIZE, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0)
        ),
        batch(labels=TARGETS),
        losses.seq2seq,
    ),
    "bart": Case(
        lambda: BartForConditionalGeneration(BartConfig(**_BART)),
        batch(labels=TARGETS),
        losses.seq2seq,
    ),
    "mbart": Case(
        lambda: MBartForConditionalGeneration(MBartConfig(**_BART)),
        batch(labels=TARGETS),
        losses.seq2seq,
    ),
    "m2m100": Case(
        lambda: M2M100ForConditionalGeneration(M2M100Config(**_BART)),
        batch(labels=TARGETS),
        losses.seq2seq,
    ),
    "bert answers": Case(
        lambda: bert(BertForQuestionAnswering), batch(**positions), losses.question_answering
    ),
    "gpt2 lora": Case(reference.MODELS["gpt2 lora"], batch(labels=TOKENS), losses.causal_lm),
    "bert lora": Case(
        reference.MODELS["bert lora"], batch(labels=CLASSES % 2), losses.classification
    ),
}
everywhere = pytest.mark.parametrize("name", CASES)
by_tokens = [
    n for n, c in CASES.items() if c.loss not in (losses.classification, losses.question_answering)
]


@everywhere
def test_a_row_has_the_loss_that_it_has_alone(name: str) -> None:
    case = CASES[name]
    model = case.make().eval()
    with torch.no_grad():
        found, chosen = case.loss(model, case.batch), losses.of(model, BatchEncoding(case.batch))
        alone = torch.stack([model(**without_padding(case.batch, i)).loss for i in range(ROWS)])
    assert found.shape == (ROWS,)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, alone, atol=1e-5, rtol=0)
    assert torch.equal(chosen, found)


@pytest.mark.parametrize("name", by_tokens)
def test_the_loss_of_hugging_face_weighs_rows_by_their_neighbours(name: str) -> None:
    model = CASES[name].make().eval()
    with torch.no_grad():
        ours, theirs = losses.of(model, CASES[name].batch).mean(), model(**CASES[name].batch).loss
    assert abs(ours - theirs) > 1e-3


@everywhere
def test_neighbours_do_not_matter(name: str) -> None:
    case = CASES[name]
    model = case.make().eval()
    others = {k: torch.cat([v[:1], v[1:].roll(1, 0)]) for k, v in case.batch.items()}
    with torch.no_grad():
        before, after = case.loss(model, case.batch), case.loss(model, others)
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before, after)


@pytest.mark.parametrize("name", by_tokens)
def test_a_row_without_targets_costs_nothing(name: str) -> None:
    case = CASES[name]
    model = case.make().eval()
    labels = case.batch["labels"].clone()
    labels[2] = -100
    found = losses.of(model, {**case.batch, "labels": labels})
    assert found[2] == 0
    assert (found[[0, 1, 3]] > 0).all()
    found[2].backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_an_ignored_class_and_an_answer_beyond_the_row_cost_nothing() -> None:
    model = bert(BertForSequenceClassification, num_labels=3)
    assert losses.of(model, batch(labels=torch.tensor([0, -100, 2, 1])))[1] == 0
    model = bert(BertForQuestionAnswering).eval()
    there, beyond = torch.tensor([1, 2, 3, 4]), torch.tensor([5, 40, 3, 4])
    both = losses.of(model, batch(start_positions=beyond, end_positions=beyond))
    half = losses.of(model, batch(start_positions=there, end_positions=beyond))
    ends = losses.of(model, batch(start_positions=beyond, end_positions=there))
    assert torch.equal(both[:2], torch.zeros(2))
    whole = losses.of(model, batch(start_positions=there, end_positions=there))
    torch.testing.assert_close(half[:2] + ends[:2], whole[:2])


def test_labels_come_from_the_attention_mask_and_the_batch_stays_as_it_is() -> None:
    model, given = reference.gpt2().eval(), batch()
    assert torch.equal(
        losses.causal_lm(model, given), losses.causal_lm(model, batch(labels=TOKENS))
    )
    assert list(given) == ["input_ids", "attention_mask"]
    whole = losses.causal_lm(model, {"input_ids": IDS})
    assert torch.equal(whole, losses.causal_lm(model, {"input_ids": IDS, "labels": IDS}))


@pytest.mark.parametrize(
    "name",
    [n for n, c in CASES.items() if "regression" not in n and c.loss in losses._HEADS.values()],
)
def test_label_smoothing(name: str) -> None:
    case = CASES[name]
    model = case.make().eval()
    if name in ("bert multi label", "bert answers"):
        with pytest.raises(InputError, match=r"label_smoothing 0\.1 is not for"):
            losses.of(model, case.batch, label_smoothing=0.1)
        return
    labels = case.batch["labels"]
    with torch.no_grad():
        found = losses.of(model, case.batch, label_smoothing=0.1)
        scores = model(**case.batch).logits.log_softmax(-1)
    if case.loss is losses.causal_lm:
        labels, scores = labels[:, 1:], scores[:, :-1]
    hit = -scores.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    expected = 0.9 * hit - 0.1 * scores.mean(-1)
    if case.loss is not losses.classification:
        expected = losses.per_row(expected, labels != -100)
    torch.testing.assert_close(found, expected)


def test_half_precision_is_widened_and_double_kept() -> None:
    for dtype, wanted in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        assert losses.of(reference.gpt2().to(dtype), batch()).dtype == wanted


def test_a_mean_looks_at_counted_tokens_only() -> None:
    values = torch.tensor([[1.0, 3.0, torch.inf], [torch.nan, 4.0, 5.0], [torch.inf, 1.0, 2.0]])
    counted = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 0]])
    assert losses.per_row(values.bfloat16(), counted).tolist() == [2, 4, 0]
    assert losses.per_row(values, counted).dtype == torch.float32
    with pytest.raises(InputError, match=r"shapes \[3, 3\] and \[3, 2\]: give both"):
        losses.per_row(values, counted[:, :2])


class Flattening(GPT2LMHeadModel):
    """Forgets which row a token belongs to."""

    def forward(self, **inputs: Any) -> Any:
        output = super().forward(**inputs)
        output.logits = output.logits.flatten(0, 1)
        return output


def test_a_class_of_ones_own_has_its_base_class_s_head() -> None:
    model = Flattening(reference.gpt2().config)
    with pytest.raises(InputError, match=r"Flattening gives logits of shape \[48, 61\] for 4 rows"):
        losses.of(model, batch())


@pytest.mark.parametrize(
    ("make", "given", "message"),
    [
        (reference.gpt2, (IDS, MASK), "a tuple is no batch of named inputs"),
        (
            reference.gpt2,
            batch(labels=TOKENS[:3]),
            r"labels of shape \[3, 12\] for 4 rows of input",
        ),
        (
            reference.gpt2,
            batch(labels=TOKENS[:, :5]),
            r"labels of shape \[4, 5\] for logits of \[4, 12, 61\]",
        ),
        (
            reference.gpt2,
            batch(labels=CLASSES),
            r"labels of shape \[4\] for logits of \[4, 12, 61\]",
        ),
        (reference.gpt2, batch(labels=TOKENS.float()), "labels of torch.float32 are no classes"),
        (
            reference.gpt2,
            {"attention_mask": MASK},
            r"the batch \(attention_mask\) has no tensor 'labels'",
        ),
        (reference.gpt2, {"labels": TOKENS}, r"the batch \(labels\) has no input with rows"),
        (
            reference.gpt2,
            {"input_ids": IDS, "attention_mask": MASK[0]},
            r"attention_mask of shape \[12\] for \[4, 12\]",
        ),
        (lambda: bert(BertForMaskedLM), batch(), "has no tensor 'labels', which the loss needs"),
        (
            lambda: bert(BertForQuestionAnswering),
            batch(labels=TOKENS),
            "has no tensor 'start_positions'",
        ),
        (
            lambda: bert(seqcls, num_labels=3),
            batch(labels=multi[:, :2]),
            r"labels of shape \[4, 2\] for multi_label_",
        ),
        (
            lambda: bert(seqcls, problem_type="ranking"),
            batch(labels=CLASSES),
            "problem_type 'ranking' is none of the",
        ),
        (lambda: bert(seqcls), batch(labels=CLASSES.tolist()), "has no tensor 'labels'"),
        (
            lambda: bert(BertModel),
            batch(labels=TOKENS),
            r"is known for BertModel: use the dpclip\.losses function",
        ),
        (
            lambda: bert(BertForNextSentencePrediction),
            batch(labels=CLASSES),
            "known for BertForNextSentencePrediction",
        ),
        (
            lambda: BartForCausalLM(BartConfig(**_BART)),
            batch(labels=TOKENS),
            "is known for BartForCausalLM",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(
    make: Callable[[], nn.Module], given: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        dpclip.losses.of(make(), given)
    assert "\n" not in str(caught.value)
    assert ": " in str(caught.value)


def test_a_smoothing_that_is_no_share_and_an_output_without_logits_are_refused() -> None:
    with pytest.raises(InputError, match=r"label_smoothing 1\.5 is no share"):
        losses.causal_lm(reference.gpt2(), batch(), label_smoothing=1.5)
    with pytest.raises(InputError, match="BertModel gives no logits for 4 rows"):
        losses.masked_lm(bert(BertModel), batch(labels=TOKENS))
