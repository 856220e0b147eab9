"""Read what a run folder releases: the statement and the metrics, nothing from its private part."""

import json
import math
from pathlib import Path
from typing import Any

from accounting.wording import STATEMENT_SCHEMA
from dpclip.errors import InputError

Statement = dict[str, Any]
Metrics = list[dict[str, Any]]


def read_statement(run: Path) -> Statement:
    """Read ``RUN/public/statement.json``.

    Args:
        run: the run folder.

    Raises:
        InputError: it is no run folder, or the statement is missing, unreadable or newer than this
            version knows; with the reason and the remedy.
    """
    path = run / "public" / "statement.json"
    if not (run / "public").is_dir():
        raise InputError(
            f"{run} is not a run folder (no public/ in it): give the folder that training wrote"
        )
    try:
        statement = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path} is missing: the run has not written its statement; let it finish"
        ) from None
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}): mend its permissions"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is not valid JSON ({_one_line(error)}): restore it from the run"
        ) from None
    if not isinstance(statement, dict):
        raise InputError(
            f"{path} holds no JSON object: it is not a privacy statement; restore it from the run"
        )
    _require_known_schema(statement.get("schema"), path)
    return statement


def _require_known_schema(schema: object, path: Path) -> None:
    if schema is None:
        return
    if isinstance(schema, bool) or not isinstance(schema, int):
        raise InputError(
            f"{path} has schema {schema!r}, which is no version number: restore it from the run"
        )
    if schema > STATEMENT_SCHEMA:
        raise InputError(
            f"{path} has schema {schema}, newer than the {STATEMENT_SCHEMA} known here: upgrade "
            "dpclip"
        )


def read_metrics(run: Path) -> Metrics:
    """Read the lines of ``RUN/public/released_metrics.jsonl``.

    Args:
        run: the run folder.

    Returns:
        one record a line; none when the file is missing. A last line cut short by a crash is
        dropped.

    Raises:
        InputError: the file cannot be read, or any other line is no JSON object.
    """
    path = run / "public" / "released_metrics.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({_one_line(error)}): mend or remove it") from None
    records: Metrics = []
    for position, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            records.append(record)
        elif position < len(lines):
            raise InputError(
                f"line {position} of {path} is no JSON object: mend or remove the line"
            )
    return records


def as_json(statement: Statement) -> str:
    """Spell the statement as JSON, indented and in its own order; byte-stable.

    Args:
        statement: from `read_statement`; numbers that are not finite become strings.
    """
    clean = _without_non_finite(statement)
    pretty = json.dumps(clean, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        pretty.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate can be spelled in JSON, not in UTF-8
        pretty = json.dumps(clean, indent=2, allow_nan=False)
    return pretty + "\n"


def _without_non_finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_non_finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_non_finite(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
