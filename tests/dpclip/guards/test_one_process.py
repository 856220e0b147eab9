"""Several processes are refused, however they show."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import distributed, nn

from dpclip.errors import InputError
from dpclip.guards.one_process import check_one_process


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process group of one."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    distributed.init_process_group("gloo", rank=0, world_size=1, store=distributed.HashStore())
    yield
    distributed.destroy_process_group()


def like(module: str, name: str) -> type:
    """A class as a distributed package has it."""
    return type(name, (), {"__module__": module})


def test_an_ordinary_model_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (None, "1", "", "many"):
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        if value is not None:
            monkeypatch.setenv("WORLD_SIZE", value)
        check_one_process(nn.Linear(2, 2))


@pytest.mark.usefixtures("alone")
def test_a_group_of_one_process_is_accepted() -> None:
    check_one_process(nn.Linear(2, 2))


@pytest.mark.usefixtures("alone")
def test_a_wrapped_model_is_refused() -> None:
    wrapped = nn.parallel.DistributedDataParallel(nn.Linear(2, 2))
    with pytest.raises(
        InputError, match=r"the model is wrapped in DistributedDataParallel: several .*its \.module"
    ):
        check_one_process(wrapped)
    with pytest.raises(InputError, match="module '0' is wrapped in DistributedDataParallel"):
        check_one_process(nn.Sequential(wrapped))


def test_data_parallel_is_refused() -> None:
    with pytest.raises(InputError, match="the model is wrapped in DataParallel"):
        check_one_process(nn.DataParallel(nn.Linear(2, 2)))


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("torch.distributed.fsdp.fully_sharded_data_parallel", "FullyShardedDataParallel"),
        ("torch.distributed.fsdp._fully_shard._fully_shard", "FSDPModule"),
        ("deepspeed.runtime.engine", "DeepSpeedEngine"),
    ],
)
def test_a_sharded_module_is_refused(package: str, name: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    # as fully_shard does it
    model[0].__class__ = type("ShardedLinear", (like(package, name), nn.Linear), {})
    with pytest.raises(
        InputError, match=rf"module '0' is sharded or replicated \({name}\): several processes"
    ):
        check_one_process(model)


@pytest.mark.usefixtures("alone")
def test_a_distributed_tensor_is_refused() -> None:
    tensor = pytest.importorskip("torch.distributed.tensor")
    mesh = tensor.init_device_mesh("cpu", (1,))
    model = nn.Linear(2, 2)
    model.weight = nn.Parameter(tensor.distribute_tensor(torch.zeros(2, 2), mesh))
    with pytest.raises(InputError, match="parameter 'weight' is a DTensor: several processes"):
        check_one_process(model)


def test_the_environment_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        InputError, match=r"WORLD_SIZE is 2 in the environment: several .* without torchrun"
    ):
        check_one_process(nn.Linear(2, 2))


def test_the_process_group_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 4)
    with pytest.raises(InputError, match=r"torch\.distributed runs 4 processes: several"):
        check_one_process(nn.Linear(2, 2))


def test_builds_without_distributed_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "is_available", lambda: False)
    monkeypatch.setattr(distributed, "is_initialized", lambda: 1 / 0)
    check_one_process(nn.Linear(2, 2))
