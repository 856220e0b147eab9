"""What the parts of a run are told of each other when they are put together."""

from __future__ import annotations

import pytest

from dpclip.engine.setup import parameter_kinds, trainable_parameters
from tests.support import reference


@pytest.mark.parametrize(
    ("name", "expected"),
    [("gpt2 tied", {"embedding", "matrix", "vector"}), ("llama lora", {"adapter"})],
)
def test_each_parameter_is_known_for_what_it_is(name: str, expected: set[str]) -> None:
    model = reference.MODELS[name]()
    told = dict(zip(trainable_parameters(model), parameter_kinds(model), strict=True))
    assert set(told.values()) == expected
    for parameter, kind in told.items():
        if kind != "adapter":
            assert kind == ("embedding" if ".wt" in parameter or ".wp" in parameter else kind)
            assert (kind == "vector") == (trainable_parameters(model)[parameter].dim() == 1)
