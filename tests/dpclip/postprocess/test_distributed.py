"""Two real processes: sharded gradients are clipped as whole ones, and all ranks decide alike."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from dpclip.postprocess import GradientClipper, make_postprocessors

TEXTS = [
    "fixed:max_grad_norm=2",
    "normalized",
    "autoclip:percentile=50",
    "autoclip:percentile=50,scope=tensor",
    "zclip:warmup_steps=4,max_grad_norm=none",
    "adagc:warmup_steps=3",
    "agc:clip_factor=0.1",
    "spam:skip_steps=2",
    "stable-spam",
]
SHAPES, STEPS = [(6, 4), (8,), (2, 3)], 14


def weights() -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=draw) for shape in SHAPES]


def gradient(step: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(100 + step)
    return [torch.randn(shape, generator=draw) * (20 if step == 9 else 1) for shape in SHAPES]


def clipped(clipper: GradientClipper, parameters: list[nn.Parameter], step: int) -> None:
    for parameter, values in zip(parameters, gradient(step), strict=True):
        parameter.grad = values
    clipper.step()


def _worker(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    placements = [[Shard(0)], [Shard(0)], [Replicate()]]
    found: dict[str, list[list[Tensor]]] = {}
    for text in TEXTS:
        (clipper,) = make_postprocessors(text)
        held = [
            nn.Parameter(distribute_tensor(w, mesh, p))
            for w, p in zip(weights(), placements, strict=True)
        ]
        clipper.bind([(str(i), p) for i, p in enumerate(held)])
        found[text] = []
        for step in range(STEPS):
            for parameter, values, where in zip(held, gradient(step), placements, strict=True):
                parameter.grad = distribute_tensor(values, mesh, where)
            clipper.step()
            found[text].append([p.grad.full_tensor().clone() for p in held])  # type: ignore[union-attr]
    torch.save({"sharded": found, "ddp": _ddp(rank)}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def _ddp(rank: int) -> list[Tensor]:
    """A data-parallel run whose ranks see other data; the weights it ends with, and what the
    clippers know.
    """
    from torch.nn.parallel import DistributedDataParallel

    torch.manual_seed(0)
    net = DistributedDataParallel(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    clippers = make_postprocessors("adagc:warmup_steps=3+zclip:warmup_steps=4,max_grad_norm=none")
    for clipper in clippers:
        clipper.bind(net.named_parameters())
        clipper.attach(optimizer)
    draw = torch.Generator().manual_seed(rank)
    for _ in range(12):
        optimizer.zero_grad()
        net(torch.randn(8, 4, generator=draw)).square().mean().backward()
        optimizer.step()
    known = [
        torch.tensor(clippers[1].state_dict()["mean"]),
        *clippers[0].state_dict()["gamma"].values(),
    ]
    return [p.detach().clone() for p in net.parameters()] + known


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_worker, args=(port, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("text", TEXTS)
def test_sharded_gradients_are_clipped_as_whole_ones(
    text: str, ranks: list[dict[str, dict[str, list[list[Tensor]]]]]
) -> None:
    (clipper,) = make_postprocessors(text)
    held = [nn.Parameter(w) for w in weights()]
    clipper.bind([(str(i), p) for i, p in enumerate(held)])
    changed = 0
    for step in range(STEPS):
        clipped(clipper, held, step)
        for rank in ranks:
            for whole, sharded in zip(held, rank["sharded"][text][step], strict=True):
                torch.testing.assert_close(sharded, whole.grad, rtol=1e-5, atol=1e-7)
        changed += any(
            not torch.equal(p.grad, g) for p, g in zip(held, gradient(step), strict=True)
        )  # type: ignore[arg-type]
    assert changed


def test_ranks_of_a_data_parallel_run_decide_alike(ranks: list[dict[str, list[Tensor]]]) -> None:
    for one, other in zip(ranks[0]["ddp"], ranks[1]["ddp"], strict=True):
        assert torch.equal(one, other)
