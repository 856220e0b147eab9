"""The settings of a training run: one typed home for every option, in TOML and on the
command line.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import tomllib
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import tomli_w

from dpclip.errors import InputError
from dpclip.registry import Registry
from dpclip.tasks import TASKS
from dpclip.train.optimization import OPTIMIZERS, SCHEDULES

LongRecords = Literal["truncate", "refuse"]
ArithmeticName = Literal["exact", "fast"]

# Settings that leave the privacy plan and the result's meaning alone, so a resumed run may change
# them.
PERFORMANCE = frozenset({"physical_batch_size", "checkpoint_every"})
# Those and what may be asked for once the run is over; all others are bound to the run's ledger.
UNBOUND = PERFORMANCE | {"baseline"}
_NAMED: dict[str, Registry[Any]] = {
    "task": TASKS,
    "optimizer": OPTIMIZERS,
    "lr_schedule": SCHEDULES,
}
_COUNTS = (
    "batch_size", "physical_batch_size", "rows_per_unit", "steps", "public_units", "max_length",
    "checkpoint_every", "eval_every", "lora",
)  # fmt: skip
_POLICY = re.compile(r"\bpolicy=([^,]*)")  # a file that a clipping rule begins with


@dataclass(frozen=True)
class Settings:
    """What `dpclip train` was asked for. Each field is an option of the same name, with dashes.

    Attributes:
        epsilon: privacy budget; inf trains without privacy.
        delta: default min(1e-5, 1/(10 N)).
        batch_size: expected units a logical batch; default 256, or N/4 if that is less.
        epochs: default 3 (or `steps`).
        physical_batch_size: default ("auto" in TOML) 16, or what fits into memory if that is less.
        lr: default 0.768 / width for AdamW (1e-3 at width 768), four times that with adapters; 0.5
            for SGD.
        seed: chooses the weights that start at random, and nothing else: sampling and noise have a
            secret key.
    """

    epsilon: float
    delta: float | None = None
    data: str = "builtin"
    eval_data: str | None = None
    task: str = "lm"
    text_column: str | None = None
    input_column: str | None = None
    target_column: str | None = None
    label_column: str | None = None
    labels: str | None = None
    unit_column: str | None = None
    rows_per_unit: int = 8
    public_units: int | None = None
    model: str = "builtin"
    tokenizer: str | None = None
    from_scratch: bool = False
    lora: int | None = None
    device: str = "auto"
    max_length: int | None = None
    long_records: LongRecords = "truncate"
    clipping: str = "flat"
    accept_conditional: bool = False
    postprocess: str = "none"
    arithmetic: ArithmeticName = "exact"
    grad_sample_mode: str = "auto"
    accountant: str = "prv"
    epochs: float | None = None
    steps: int | None = None
    batch_size: int | None = None
    physical_batch_size: int | None = None
    optimizer: str = "adamw"
    lr: float | None = None
    lr_schedule: str = "linear"
    checkpoint_every: int | None = None
    eval_every: int | None = None
    seed: int | None = None
    baseline: bool = False

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            choices = get_args(hint)
            value = getattr(self, name)
            if choices and isinstance(choices[0], str) and value not in choices:
                raise InputError(
                    f"{option(name)} {value!r} is unknown: choose one of {', '.join(choices)}"
                )
        for name, registry in _NAMED.items():
            registry.check(getattr(self, name).partition(":")[0])
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{option(name)} {value} must be at least 1")
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise InputError(f"--lr {self.lr} must be positive and finite")
        if self.epochs is not None and self.steps is not None:
            raise InputError(
                "--epochs and --steps both set the length of training: give one of them"
            )

    def to_toml(self, *, public: bool = False) -> str:
        """All settings that have a value; the public form leaves out the folders of files."""
        values = {k: v for k, v in asdict(self).items() if v is not None}
        if public:
            for key in ("data", "eval_data", "model", "tokenizer"):
                if key in values and Path(values[key]).exists():
                    values[key] = Path(values[key]).name
            values["clipping"] = _POLICY.sub(
                lambda found: f"policy={Path(found[1]).name}", self.clipping
            )
        return tomli_w.dumps(values)

    @classmethod
    def from_toml(cls, path: Path) -> Settings:
        """Read what `to_toml` wrote."""
        return cls(**read_toml(path))

    def digest(self, key: bytes) -> str:
        """Fingerprint of what a resumed run must not change, under a key because some settings may
        be private.
        """
        hints = get_type_hints(type(self))
        # 8 is read back as 8.0
        real = {name for name, hint in hints.items() if float in (hint, *get_args(hint))}
        given = {k: v for k, v in asdict(self).items() if v is not None and k not in UNBOUND}
        bound = {k: float(v) if k in real else v for k, v in given.items()}
        return hashlib.blake2b(
            json.dumps(bound, sort_keys=True).encode(), key=key, digest_size=32
        ).hexdigest()

    def changed(self, **values: Any) -> Settings:
        """A copy with some settings replaced."""
        return replace(self, **values)


def option(name: str) -> str:
    """The command-line spelling of a setting."""
    return "--" + name.replace("_", "-")


def read_toml(path: Path) -> dict[str, Any]:
    """Settings of a TOML file, keys with dashes or underscores.

    Raises:
        InputError: unreadable file or unknown setting.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(
            f"cannot read the configuration {path}: {error}; it must be a TOML file"
        ) from error
    known = {field.name for field in fields(Settings)} | {"output"}
    values = {key.replace("-", "_"): value for key, value in table.items()}
    unknown = sorted(set(values) - known)
    if unknown:
        raise InputError(
            f"{path} has the unknown setting {unknown[0]!r}: it knows {', '.join(sorted(known))}"
        )
    if values.get("physical_batch_size") == "auto":
        del values["physical_batch_size"]
    return {key: _typed(path, key, value) for key, value in values.items()}


def _typed(path: Path, key: str, value: Any) -> Any:
    """Hold a TOML value to the setting's type; whole numbers may stand for real ones."""
    hint = get_type_hints(Settings).get(key, str)
    allowed = {t for t in (hint, *get_args(hint)) if t in (bool, int, float, str)} or {str}
    if float in allowed and type(value) is int:
        return float(value)
    if type(value) not in allowed:
        names = " or ".join(sorted(t.__name__ for t in allowed))
        raise InputError(f"{path}: {key} = {value!r} is not of type {names}")
    return value
