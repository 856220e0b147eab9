"""Clippers inside other people's loops: once per optimizer step, after accumulation, resumed with
the checkpoint.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from dpclip.errors import InputError
from dpclip.integrations.transformers import ClipCallback
from dpclip.postprocess import AdaGC, FixedNorm, GradientClipper, ZClip

pytestmark = pytest.mark.filterwarnings("default")


def rows(count: int = 48) -> list[dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    ids = [torch.randint(30, (8,), generator=draw) for _ in range(count)]
    return [{"input_ids": row, "labels": row} for row in ids]


def trainer(folder: Path, clipper: GradientClipper | None, **settings: Any) -> Trainer:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=30,
            n_positions=8,
            n_embd=16,
            n_layer=1,
            n_head=2,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=3,
        num_train_epochs=3,
        learning_rate=1e-2,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        logging_steps=1,
        save_steps=5,
        seed=1,
        dataloader_pin_memory=False,
        **settings,
    )
    callbacks = [ClipCallback(clipper)] if clipper else []
    return Trainer(model=model, args=arguments, train_dataset=rows(), callbacks=callbacks)  # type: ignore[arg-type]


def weights(run: Trainer) -> list[Tensor]:
    return [p.detach().clone() for p in run.model.parameters()]  # type: ignore[union-attr]


def test_the_trainer_with_a_fixed_clipper_is_the_trainer_with_its_own(
    tmp_path: Path, caplog: Any
) -> None:
    own = trainer(tmp_path / "own", None, max_grad_norm=0.5)
    own.train()
    clipper = FixedNorm(max_grad_norm=0.5, match_published=True)
    with caplog.at_level(logging.WARNING):
        ours = trainer(tmp_path / "ours", clipper)
        ours.train()
    assert "max_grad_norm = 1.0 is switched off" in caplog.text
    for a, b in zip(weights(own), weights(ours), strict=True):
        # Adam makes much of gradients that are 0 but for rounding
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert clipper.state_dict()["steps"] == ours.state.global_step == 12
    logged = [entry for entry in ours.state.log_history if "fixed_factor" in entry]
    assert len(logged) >= 12
    assert min(entry["fixed_factor"] for entry in logged) < 1


@pytest.mark.parametrize("kind", [ZClip, AdaGC])
def test_a_resumed_trainer_goes_on_with_the_clipper_it_had(
    tmp_path: Path, kind: type[GradientClipper]
) -> None:
    settings = {"warmup_steps": 3}
    clippers = kind(**settings), kind(**settings)
    whole = trainer(tmp_path, clippers[0])
    whole.train()
    other = trainer(tmp_path, clippers[1])
    other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert other.state.global_step == 12
    for a, b in zip(weights(whole), weights(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    mine, theirs = (clipper.state_dict() for clipper in clippers)
    assert repr(mine) == repr(theirs)
    (tmp_path / "checkpoint-5" / "clipper.pt").unlink()
    with pytest.raises(InputError, match="saved without this callback"):
        trainer(tmp_path, kind(**settings)).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-5")
        )


# --- Lightning ------------------------------------------------------------------------------------


def lightning_run(
    clipper: GradientClipper | None, folder: Path, epochs: int = 2, **settings: Any
) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pl = pytest.importorskip("lightning.pytorch")
    from dpclip.integrations import lightning as ours

    class Module(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

        def training_step(self, batch: Any, index: int) -> Tensor:
            return self.net(batch[0]).square().mean() * 30

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.05)

    data = torch.utils.data.TensorDataset(
        torch.randn(24, 4, generator=torch.Generator().manual_seed(3))
    )
    resume = settings.pop("resume", None)
    run = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accumulate_grad_batches=2,
        default_root_dir=str(folder),
        callbacks=[ours.ClipCallback(clipper)] if clipper else [],
        **settings,
    )
    module = Module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run.fit(module, torch.utils.data.DataLoader(data, batch_size=3), ckpt_path=resume)
    return run, module


def test_lightning_with_a_fixed_clipper_is_lightning_with_its_own(tmp_path: Path) -> None:
    _, own = lightning_run(None, tmp_path / "a", gradient_clip_val=0.5, enable_checkpointing=False)
    clipper = FixedNorm(max_grad_norm=0.5, match_published=True)
    _, ours = lightning_run(clipper, tmp_path / "b", enable_checkpointing=False)
    assert clipper.state_dict()["steps"] == 8
    for a, b in zip(own.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    with pytest.raises(InputError, match="leave one of them out"):
        lightning_run(
            FixedNorm(), tmp_path / "c", gradient_clip_val=0.5, enable_checkpointing=False
        )


def test_a_resumed_lightning_run_has_the_clippers_state(tmp_path: Path) -> None:
    first = ZClip(warmup_steps=3, max_grad_norm=None)
    run, _ = lightning_run(first, tmp_path, epochs=2)
    file = tmp_path / "kept.ckpt"
    run.save_checkpoint(file)
    second = ZClip(warmup_steps=3, max_grad_norm=None)
    lightning_run(second, tmp_path, epochs=3, resume=str(file))
    whole = ZClip(warmup_steps=3, max_grad_norm=None)
    lightning_run(whole, tmp_path / "whole", epochs=3)
    assert second.state_dict()["steps"] == whole.state_dict()["steps"] == 12
    assert second.state_dict()["mean"] == pytest.approx(whole.state_dict()["mean"], rel=1e-4)
