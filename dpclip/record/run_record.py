"""A private run and its folder: saved, gone on with, or begun afresh where it was last whole."""

from __future__ import annotations

from dpclip.engine.private_training import PrivateTraining
from dpclip.memory import device_of
from dpclip.record.checkpoint import Checkpoints
from dpclip.record.environment import differences, fingerprint
from dpclip.record.run_folder import RunFolder


class RunRecord:
    """Keeps what a run needs to go on bit for bit.

    Args:
        training: the run.
        folder: where it is kept; None keeps nothing.
    """

    def __init__(self, training: PrivateTraining, folder: RunFolder | None) -> None:
        self.training, self.folder = training, folder
        self._environment = fingerprint(training.physical_batch_size, device_of(training.model))
        self._checkpoints = Checkpoints(folder.private / "checkpoint") if folder else None

    def save(self) -> None:
        """Write the state after the steps so far; who resumes begins an open step again."""
        if self._checkpoints is not None:
            training = self.training
            self._checkpoints.save(training.engine, training.model, self._environment)

    def restore(self) -> str | None:
        """Load the latest state; where there is none yet, save this one, to go back to.

        Returns:
            a note for the user, if steps that were begun have to be charged again because they
            cannot be replayed bit for bit here.

        Raises:
            InputError: the state belongs to another plan, or the ledger lacks its history.
        """
        if self._checkpoints is None:
            return None
        engine = self.training.engine
        restored = self._checkpoints.restore(engine, self.training.model)
        if restored is None:
            self.save()
            return None
        changed = differences(restored.environment, self._environment)
        unfinished = engine.ledger.charges_after(engine.step)
        if not (changed and unfinished):
            return None
        reason = f"cannot replay bit for bit: {', '.join(changed)} changed"
        engine.start_generation(reason)
        self.save()
        return f"{reason}; {unfinished} steps are charged again with fresh randomness"

    def start_afresh(self, reason: str) -> str:
        """Go back to the latest state, and on from there with randomness of its own.

        The abandoned noise is never used again.

        Args:
            reason: for the ledger.

        Returns:
            a note for the user.
        """
        assert self._checkpoints is not None
        self.training.close_step()
        engine = self.training.engine
        self._checkpoints.restore(engine, self.training.model)
        engine.start_generation(reason)
        self.save()
        return f"{reason}; going on from step {engine.step} with fresh randomness, charged again"
