"""The contract of a task: records, examples, a batch, one loss a row, and a metric."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from dpclip.tasks.records import Columns, Records
from dpclip.tasks.tables import RecordTable

if TYPE_CHECKING:  # names of tasks are listed where torch is not loaded
    from torch import Tensor, nn

    from dpclip.models.heads import ModelHead


class Task(ABC):
    """What is learned, and how well; a new one is one file and one line in `tasks/__init__.py`.

    Its class says which columns it reads and which head a model needs. An object belongs to one
    tokenizer: `kind(tokenizer, max_length, **options)`, with the options of `options`.

    Attributes:
        name: what `--task` calls it.
        metric: what `evaluate` gives, "perplexity".
        max_length: longest record in tokens; longer ones are truncated, never split into several
            units.
    """

    name: ClassVar[str]
    metric: str
    max_length: int

    if TYPE_CHECKING:  # dataclasses make their own

        def __init__(self, tokenizer: Any, max_length: int, **options: Any) -> None: ...

    # --- before there is a model -----------------------------------------------------------------

    @classmethod
    @abstractmethod
    def columns(cls, table: RecordTable, asked: Columns) -> Mapping[str, str | None]:
        """Choose the columns of a table.

        Args:
            table: opened for reading.
            asked: what the user named.

        Returns:
            {role: column}, roles the fields of `Records`: "texts", or "inputs" with "targets";
            "labels", "units".

        Raises:
            InputError: they cannot be told, or contradict each other.
        """

    @classmethod
    def options(cls, records: Records, labels: Sequence[str] | None) -> dict[str, Any]:
        """Further arguments of the constructor and of `head`.

        Args:
            records: the private records.
            labels: classes that the user declared, or None.
        """
        return {}

    @classmethod
    def stand_in_options(cls) -> dict[str, Any]:
        """`options` for trying a model without data."""
        return {}

    @classmethod
    @abstractmethod
    def head(cls, **options: Any) -> ModelHead:
        """What a model needs for the task.

        Args:
            options: as `options` gives them.
        """

    # --- examples and batches --------------------------------------------------------------------

    @abstractmethod
    def encode(self, records: Records) -> list[Any]:
        """One example a record, in their order.

        Raises:
            InputError: a record that the task cannot use.
        """

    @abstractmethod
    def truncated(self, records: Records) -> int:
        """How many records are longer than `max_length` (a private number)."""

    @abstractmethod
    def collate(self, examples: Sequence[Any]) -> Any:
        """A batch of the examples, each row padded to a length that follows from itself."""

    @abstractmethod
    def synthetic(self, rows: int, vocabulary: int, length: int | None = None) -> list[Any]:
        """Public stand-in examples.

        Args:
            rows: how many.
            vocabulary: tokens are below this.
            length: of each, in tokens; by default they differ.
        """

    # --- what is learned -------------------------------------------------------------------------

    @abstractmethod
    def losses(self, model: nn.Module, batch: Any) -> Tensor:
        """One loss a row, shape [rows], each of that row alone."""

    @abstractmethod
    def evaluate(self, model: nn.Module, examples: Sequence[Any]) -> float:
        """The metric over held-out examples; the model is left in training mode."""

    # --- what is said of it ----------------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """What the statement says of the training data besides its size; public."""
        return {}

    def resolved(self) -> dict[str, Any]:
        """Settings that the task has filled in, by name."""
        return {}
