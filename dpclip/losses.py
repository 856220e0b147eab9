"""One loss a row, for Hugging Face models.

`model(**batch).loss` is a mean over all tokens of the batch: the longer a row's neighbours, the
less the row weighs, and no clipping of rows bounds that. Here a row's loss is what the model's own
loss is of that row alone. What models add over the whole batch (load balancing of experts) is left
out. All functions of a model and a batch move the batch's tensors to the model's device, leave the
batch as it is, return shape [rows] in float32 or wider, and raise `InputError` for a batch or
logits from which no such loss can be made.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpclip.errors import InputError
from dpclip.memory import device_of
from dpclip.precision import accumulation_dtype

Batch = Mapping[str, Any]
IGNORED = -100  # the label of a token that is no target, as everywhere in transformers
_OWN = (
    "use the dpclip.losses function that fits its labels, or reduction='none' and "
    "dpclip.losses.per_row"
)


def per_row(token_losses: Tensor, counted: Tensor) -> Tensor:
    """Average each row's own counted tokens.

    Args:
        token_losses: shape [rows, ...].
        counted: of the same shape, not 0 (or True) where a token counts. What lies elsewhere is not
            looked at.

    Returns:
        the means, [rows], float32 or wider; 0 for a row that counts none.

    Raises:
        InputError: shapes that differ, or no dimension besides the rows.
    """
    if token_losses.dim() < 2 or token_losses.shape != counted.shape:
        raise InputError(
            f"shapes {[*token_losses.shape]} and {[*counted.shape]}: give both as one [rows, "
            "tokens]"
        )
    counts = counted.to(token_losses.device) != 0
    # no product: 0 times inf is nan
    kept = token_losses.to(accumulation_dtype(token_losses.dtype)).masked_fill(~counts, 0)
    return kept.flatten(1).sum(1) / counts.flatten(1).sum(1).clamp(min=1)


def causal_lm(model: nn.Module, batch: Batch, *, label_smoothing: float = 0.0) -> Tensor:
    """Next-token cross entropy, mean over the row's own target tokens; 0 for a row without one.

    Args:
        model: a causal language model.
        batch: its inputs; `labels` [rows, length] are shifted by one here, -100 is no target.
            Without labels, every token of `input_ids` that `attention_mask` (if there is one) keeps
            is a target.
        label_smoothing: share of the target's weight that is spread over the vocabulary, in [0, 1).

    Returns:
        losses in nats, [rows].
    """
    return per_row(*causal_lm_tokens(model, batch, label_smoothing=label_smoothing))


def causal_lm_tokens(
    model: nn.Module, batch: Batch, *, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Compute the token losses that `causal_lm` averages.

    Args:
        model: as in `causal_lm`.
        batch: as in `causal_lm`.
        label_smoothing: as in `causal_lm`.

    Returns:
        losses in nats and whether each counts, bool; both [rows, length - 1].
    """
    inputs, (labels,), rows = _taken(model, batch, "labels", default=_own_tokens)
    logits = _logits(model, model(**inputs, use_cache=False), rows)
    # The labels move, not the logits: a slice of those would have to be copied.
    losses = _cross_entropies(
        logits, F.pad(labels, (0, 1), value=IGNORED)[..., 1:], label_smoothing
    )
    return losses[:, :-1], labels[:, 1:] != IGNORED


def masked_lm(model: nn.Module, batch: Batch, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross entropy of the masked tokens, mean over the row's own.

    Args:
        model: a masked language model.
        batch: its inputs; `labels` [rows, length], -100 where not masked.
        label_smoothing: share of the target's weight that is spread over the vocabulary, in [0, 1).

    Returns:
        losses in nats, [rows]; 0 for a row without a target.
    """
    return token_classification(model, batch, label_smoothing=label_smoothing)


def token_classification(model: nn.Module, batch: Batch, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross entropy of the tokens' classes, mean over the row's own.

    Args:
        model: a token classifier.
        batch: its inputs; `labels` [rows, length], -100 is no target.
        label_smoothing: share of the target's weight that is spread over the classes, in [0, 1).

    Returns:
        losses in nats, [rows]; 0 for a row without a target.
    """
    inputs, (labels,), rows = _taken(model, batch, "labels")
    logits = _logits(model, model(**inputs), rows)
    return per_row(_cross_entropies(logits, labels, label_smoothing), labels != IGNORED)


def seq2seq(model: nn.Module, batch: Batch, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross entropy of an encoder-decoder's target, mean over the row's own tokens.

    Args:
        model: an encoder-decoder.
        batch: its inputs; `labels` [rows, target length], -100 is no target. `decoder_input_ids`,
            where the batch has none, are made of the labels as the model itself does it.
        label_smoothing: share of the target's weight that is spread over the vocabulary, in [0, 1).

    Returns:
        losses in nats, [rows]; 0 for a row without a target.
    """
    inputs, (labels,), rows = _taken(model, batch, "labels")
    if inputs.get("decoder_input_ids") is None and inputs.get("decoder_inputs_embeds") is None:
        inputs["decoder_input_ids"] = _shifted_right(_base(model), labels)
    logits = _logits(model, model(**inputs, use_cache=False), rows)
    return per_row(_cross_entropies(logits, labels, label_smoothing), labels != IGNORED)


def classification(model: nn.Module, batch: Batch, *, label_smoothing: float = 0.0) -> Tensor:
    """The loss of a sequence or image classifier by its `config.problem_type`.

    Where the config does not name it, transformers' rule does:

    - regression (one output): mean of the squared errors of the row's outputs.
    - `single_label_classification` (several, labels int32 or int64): cross entropy; 0 for the label
      -100. The only one with `label_smoothing`.
    - `multi_label_classification` (otherwise): mean of the outputs' binary cross entropies.

    Args:
        model: a classifier with logits [rows, outputs].
        batch: its inputs; `labels` [rows] or [rows, outputs].
        label_smoothing: share of the target's weight that is spread over the classes, in [0, 1).

    Returns:
        losses, [rows].
    """
    inputs, (labels,), rows = _taken(model, batch, "labels")
    logits = _logits(model, model(**inputs), rows)
    columns = labels.unsqueeze(-1).flatten(1)  # [rows] and [rows, 1] are the same
    several = "single_label" if labels.dtype in (torch.int64, torch.int32) else "multi_label"
    kind = getattr(getattr(_base(model), "config", None), "problem_type", None)
    kind = kind or ("regression" if logits.shape[1] == 1 else f"{several}_classification")
    if kind == "single_label_classification":
        return _cross_entropies(logits, columns.squeeze(1), label_smoothing)
    if kind not in ("regression", "multi_label_classification"):
        raise InputError(
            f"problem_type {kind!r} is none of the three of transformers: correct it in the "
            "model's config"
        )
    if label_smoothing:
        raise InputError(f"label_smoothing {label_smoothing} is not for {kind}: leave it at 0")
    if columns.shape != logits.shape:
        raise InputError(
            f"labels of shape {[*labels.shape]} for {kind} of {[*logits.shape]}: give one an output"
        )
    loss = F.mse_loss if kind == "regression" else F.binary_cross_entropy_with_logits
    return loss(logits, columns.to(logits.dtype), reduction="none").mean(1)


def question_answering(model: nn.Module, batch: Batch) -> Tensor:
    """Half the cross entropy of an answer's start and half that of its end.

    Both are over the row's own tokens. transformers lets padding compete with the answer, so that a
    longer neighbour changes the loss; here `attention_mask` takes padding out.

    Args:
        model: an extractive question answerer.
        batch: its inputs; `start_positions` and `end_positions` are [rows] token positions. One in
            the padding or beyond is no target and adds 0, one below 0 is taken for 0.

    Returns:
        losses in nats, [rows].
    """
    inputs, targets, rows = _taken(model, batch, "start_positions", "end_positions")
    output, halves = model(**inputs), []
    for name, positions in zip(("start_logits", "end_logits"), targets, strict=True):
        logits = _logits(model, output, rows, name)
        kept = F.pad(_attended(inputs, logits), (0, 1))  # one more, for what lies beyond
        found = positions.unsqueeze(-1).flatten(1).long().clamp(0, logits.shape[1])
        found = found.masked_fill(~kept.gather(1, found), IGNORED).squeeze(1)
        halves.append(
            _cross_entropies(
                logits.masked_fill(~kept[:, :-1], torch.finfo(logits.dtype).min), found, 0.0
            )
        )
    return (halves[0] + halves[1]) / 2


_HEADS: dict[tuple[str, ...], Callable[..., Tensor]] = {
    ("ForCausalLM", "LMHeadModel"): causal_lm,
    ("ForMaskedLM",): masked_lm,
    ("ForTokenClassification",): token_classification,
    ("ForConditionalGeneration", "MarianMTModel", "EncoderDecoderModel"): seq2seq,
    ("ForSequenceClassification", "ForImageClassification"): classification,
    ("ForQuestionAnswering", "ForQuestionAnsweringSimple"): question_answering,
}
# Their own loss does not shift the labels, or is of another kind than the name says.
_OTHERWISE = re.compile(
    "(Bart|BigBirdPegasus|Blenderbot|BlenderbotSmall|CpmAnt|Marian|MBart|Mvp|Pegasus|PLBart|TrOCR|Whisper)ForCausalLM|"
    r"(XLMWith|FlaubertWith|XLNet)LMHeadModel|ProphetNetFor\w+|BrosSpadeEL\w+"
)


def of(model: nn.Module, batch: Batch, *, label_smoothing: float = 0.0) -> Tensor:
    """The loss of the model's head, known by its class name or a base class's, in a peft model too.

    Args:
        model: with a head that is known here.
        batch: as the head's own function asks.
        label_smoothing: in [0, 1).

    Returns:
        losses, [rows].

    Raises:
        InputError: an unknown head, or `label_smoothing` other than 0 for a head that has none.
    """
    loss = _loss_of(_base(model))
    if loss is None:
        raise InputError(
            f"no loss of one value a row is known for {type(_base(model)).__name__}: {_OWN}"
        )
    if loss is not question_answering:
        return loss(model, batch, label_smoothing=label_smoothing)
    if label_smoothing:
        raise InputError(
            f"label_smoothing {label_smoothing} is not for question answering: leave it at 0"
        )
    return loss(model, batch)


def _loss_of(base: nn.Module) -> Callable[..., Tensor] | None:
    for name in (kind.__name__ for kind in type(base).__mro__):
        known = next((loss for endings, loss in _HEADS.items() if name.endswith(endings)), None)
        if known is not None:
            # Many models of images and text are called ForConditionalGeneration and have no decoder
            # of their own.
            lacks = known is seq2seq and not getattr(
                getattr(base, "config", None), "is_encoder_decoder", False
            )
            return None if lacks or _OTHERWISE.fullmatch(name) else known
    return None


def _taken(
    model: nn.Module,
    batch: Batch,
    *names: str,
    default: Callable[[Batch], Tensor | None] = lambda _: None,
) -> tuple[dict[str, Any], list[Tensor], int]:
    """The model's inputs and the named targets, on its device, and the number of rows."""
    if not isinstance(batch, Mapping):
        raise InputError(
            f"a {type(batch).__name__} is no batch of named inputs: give a dict as a tokenizer "
            "makes it"
        )
    held = f"the batch ({', '.join(map(str, batch))})"
    inputs = {
        k: v.to(device_of(model)) if isinstance(v, Tensor) else v
        for k, v in batch.items()
        if k not in names
    }
    likely = (getattr(_base(model), "main_input_name", "input_ids"), "inputs_embeds", *inputs)
    first = next(
        (inputs[k] for k in likely if isinstance(inputs.get(k), Tensor) and inputs[k].dim()), None
    )
    if first is None:
        raise InputError(f"{held} has no input with rows: give input_ids of shape [rows, length]")
    targets = []
    for name in names:
        target = default(batch) if batch.get(name) is None else batch[name]
        if not isinstance(target, Tensor):
            raise InputError(
                f"{held} has no tensor {name!r}, which the loss needs: add it where the batch is "
                "made"
            )
        if target.shape[:1] != first.shape[:1]:
            raise InputError(
                f"{name} of shape {[*target.shape]} for {len(first)} rows of input: give each row "
                "its own"
            )
        targets.append(target.to(first.device))
    return inputs, targets, len(first)


def _own_tokens(batch: Batch) -> Tensor | None:
    """Labels for a batch without any: the tokens that are attended to."""
    ids = batch.get("input_ids")
    return None if ids is None else ids.masked_fill(~_attended(batch, ids), IGNORED)


def _attended(batch: Batch, tokens: Tensor) -> Tensor:
    mask = (
        torch.ones_like(tokens) if batch.get("attention_mask") is None else batch["attention_mask"]
    )
    if mask.shape != tokens.shape:
        raise InputError(
            f"attention_mask of shape {[*mask.shape]} for {[*tokens.shape]} tokens: give each its "
            "own"
        )
    return mask != 0


def _logits(model: nn.Module, output: Any, rows: int, name: str = "logits") -> Tensor:
    found = getattr(output, name, None)
    if not isinstance(found, Tensor) or found.dim() < 2 or len(found) != rows:
        what = f"{name} of shape {[*found.shape]}" if isinstance(found, Tensor) else f"no {name}"
        raise InputError(
            f"{type(_base(model)).__name__} gives {what} for {rows} rows, not one entry a row: "
            f"{_OWN}"
        )
    return found.to(accumulation_dtype(found.dtype))


def _cross_entropies(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Cross entropy of every label, of the labels' shape; 0 where ignored."""
    if not 0 <= smoothing < 1:
        raise InputError(
            f"label_smoothing {smoothing} is no share: give a number from 0 to below 1"
        )
    if labels.shape != logits.shape[:-1]:
        raise InputError(
            f"labels of shape {[*labels.shape]} for logits of {[*logits.shape]}: give one a "
            "prediction"
        )
    if labels.is_floating_point():
        raise InputError(
            f"labels of {labels.dtype} are no classes: give whole numbers (labels.long())"
        )
    flat, targets = logits.flatten(0, -2), labels.flatten().long()
    losses = F.cross_entropy(
        flat, targets, ignore_index=IGNORED, reduction="none", label_smoothing=smoothing
    )
    return losses.view(labels.shape)


def _shifted_right(base: Any, labels: Tensor) -> Tensor:
    """The decoder's inputs as the model would make them of its labels."""
    # mBART's starts with the last target
    labels = labels.masked_fill((labels == IGNORED).all(-1, keepdim=True), 0)
    for name in ("prepare_decoder_input_ids_from_labels", "_shift_right"):
        if hasattr(base, name):
            return getattr(base, name)(labels)
    # Whisper, NLLB and Blenderbot do it by a function of their module.
    shift = getattr(sys.modules[type(base).__module__], "shift_tokens_right", None)
    if shift is None:
        raise InputError(
            f"{type(base).__name__} does not say how its decoder starts: put decoder_input_ids in "
            "the batch"
        )
    return shift(labels, base.config.pad_token_id, base.config.decoder_start_token_id)


def _base(model: Any) -> Any:
    """The model inside a peft wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
