"""Opacus' own per-layer test classes, run against our backends."""

from __future__ import annotations

import importlib
import unittest
from typing import Any

import pytest
import torch
from hypothesis import assume
from opacus.tests.grad_samples import common
from opacus.utils import per_sample_gradients_utils as utils
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_map_only

from dpclip.per_sample import make_backend

LAYERS = [
    "linear",
    "conv1d",
    "conv2d",
    "conv3d",
    "embedding",
    "embedding_bag",
    "group_norm",
    "instance_norm1d",
    "instance_norm2d",
    "instance_norm3d",
    "layer_norm",
    "rms_norm",
    "sequence_bias",
    "dp_multihead_attention",
    "dp_rnn",
]
# the modes that the tests ask for, and what they get
BACKENDS = {
    "hooks": "bookkeeping",
    "functorch": "hooks",
    "ew": "functorch",
}


class _Turned(nn.Module):
    """Takes and gives [B, T, ...] for a module of [T, B, ...]: rows come first in what the backend
    watches.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *xs: Tensor) -> Any:
        return tree_map_only(Tensor, _turned, self.inner(*map(_turned, xs)))


def _turned(x: Tensor) -> Tensor:
    return x.transpose(0, 1) if x.dim() > 1 else x


def per_sample_gradients(
    x: Any,
    module: nn.Module,
    batch_first: bool = True,
    loss_reduction: str = "mean",
    grad_sample_mode: str = "hooks",
) -> dict[str, Tensor | None]:
    """Opacus' helper of the same signature, with our backend inside."""
    if isinstance(x, PackedSequence):
        raise unittest.SkipTest(
            "packed sequences are for torch's own recurrent layers (tests of recurrent layers)"
        )
    torch.manual_seed(0)
    module = utils.clone_module(module)
    first = x[0] if isinstance(x, tuple) else x
    rows = first.shape[0] if batch_first else first.shape[1]
    if isinstance(x, tuple) and isinstance(module, nn.EmbeddingBag):
        rows = len(x[1])
    if rows == 0:
        return {}
    if not batch_first:
        # one position before the batch looks like an input shared by all rows
        assume(first.shape[0] > 1)
        x = tuple(map(_turned, x)) if isinstance(x, tuple) else _turned(x)
        module = _Turned(module)
    named = {name.removeprefix("inner."): p for name, p in module.named_parameters()}
    backend = make_backend(
        BACKENDS[grad_sample_mode],
        module,
        list(named.values()),
        list(range(len(named))),
        loss_reduction,
    )
    inputs = x if isinstance(x, tuple) else (x,)
    if not batch_first:  # as a run begins: with one row, so that positions are not taken for rows
        with backend.capture(1):
            _loss(module, tuple(t[:1] for t in inputs), loss_reduction).backward()
    with backend.capture(rows) as view:
        _loss(module, inputs, loss_reduction).backward()
    found = {name: view.samples(slot) for slot, name in enumerate(named)}
    backend.close()
    return found


def _loss(module: nn.Module, inputs: tuple[Any, ...], reduction: str) -> Tensor:
    out = module(*inputs)
    return nn.L1Loss(reduction=reduction)(out, torch.zeros_like(out))


@pytest.mark.filterwarnings("ignore")  # of hypothesis and of Opacus, about the tests themselves
@pytest.mark.parametrize("layer", LAYERS)
def test_opacus_tests_of(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utils, "compute_opacus_grad_sample", per_sample_gradients)
    monkeypatch.setattr(common, "compute_opacus_grad_sample", per_sample_gradients)
    module = importlib.import_module(f"opacus.tests.grad_samples.{layer}_test")
    suite = unittest.defaultTestLoader.loadTestsFromModule(module)
    result = suite.run(unittest.TestResult())
    assert result is not None
    assert result.testsRun > 0
    problems = [text for _, text in (*result.failures, *result.errors)]
    assert not problems, "\n".join(problems)
