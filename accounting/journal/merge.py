"""Several journals of runs on the same data as one: every charge of every history once.

Lines are told apart by their hashes, which commit to everything before them. So a run that was
copied and continued elsewhere shares a prefix with its copy, and the prefix is counted once;
everything else is added up.

Equal hashes mean one release only within one run: two runs of the same plan write the same lines. A
header names its run in the field "run", a random string chosen when the run was started; journals
without it are never taken for copies of each other, and all their charges are added up. Within one
run a slot of randomness, (step, generation), may
be charged in one history only: after the histories parted, the same noise would have hidden two
different sums, which no composition theorem covers. What two machines did under equal lines must
have been the same, bit for bit; where the journals say which sum met a step's noise (records of
kind "release"), two different ones are refused.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accounting.errors import JournalCorruptError, require
from accounting.events import (
    ApproximateDP,
    Event,
    event_from_json,
    require_adjacency,
    require_count,
)
from accounting.journal.journal import ORIGIN, Journal, sealed

Source = str | Path | Journal
Entry = dict[str, Any]

_MERGED = "merged"
_CHARGE = "step"
_RELEASE = "release"
# records that charge nothing: a release is paid for by its step
_FREE = frozenset({"fresh-randomness", _RELEASE})


@dataclass(frozen=True)
class _History:
    """One run's lines up to a head, header first.

    Attributes:
        name: where they were found, for messages.
        run: the same for copies of one run, and for nothing else.
        entries: the lines.
        from_merged: whether a merged journal holds them.
    """

    name: str
    run: str
    entries: tuple[Entry, ...]
    from_merged: bool

    @property
    def header(self) -> dict[str, Any]:
        return self.entries[0]["body"]

    @property
    def head(self) -> str:
        return self.entries[-1]["hash"]

    @property
    def filtered(self) -> bool:
        """Whether its noise was chosen while it ran, so that adding up what was charged proves
        nothing.
        """
        return self.header["plan"].get("sampling") == "filtered"


def merged(journals: Sequence[Source]) -> list[tuple[Event, int]]:
    """What several journals charged together.

    A run whose noise was chosen under a filter counts as its preset (epsilon, delta).

    Args:
        journals: paths or journals; one that `write_merged` made counts for all it came from.

    Returns:
        distinct events with their counts, in order of first appearance.

    Raises:
        InputError: the histories cannot be added up: another adjacency or unit, a plan that was
            changed, a journal given twice, the same randomness used twice, a record of unknown
            kind.
        JournalCorruptError: a broken chain.
    """
    histories = _histories(journals)
    counts: Counter[Event] = Counter()
    for source, entry in _union(histories):
        event, count = _charge(entry)
        if event is not None and not histories[source].filtered:
            counts[event] += count
    counts.update(
        _preset(history) for history in histories if history.filtered and len(history.entries) > 1
    )
    return [(event, count) for event, count in counts.items() if count > 0]


def _preset(history: _History) -> Event:
    """The budget that a filter enforced, which is what such a run promises, copies of it each for
    themselves.
    """
    plan = history.header["plan"]
    return ApproximateDP(float(plan["target_epsilon"]), float(plan["delta"]), plan["adjacency"])


def write_merged(path: str | Path, journals: Sequence[Source]) -> Journal:
    """Write the journals' union to a new journal, with the heads it came from.

    Its header holds the sources' heads and headers, its records are their lines.

    Args:
        path: of the new journal.
        journals: as in `merged`.

    Returns:
        the new journal, closed.

    Raises:
        InputError: the path exists, or as in `merged`.
        JournalCorruptError: a broken chain.
    """
    histories = _histories(journals)
    union = _union(histories)
    for _, entry in union:
        _charge(entry)
    plan = histories[0].header["plan"]
    header = {
        "kind": _MERGED,
        "plan": {"adjacency": plan["adjacency"], "unit": plan["unit"]},
        "sources": [{"head": history.head, "header": history.header} for history in histories],
    }
    with Journal.create(path, header) as journal:
        for source, entry in union:
            journal.append({"kind": _MERGED, "source": source, "line": entry})
    return Journal.read(path)


def _histories(journals: Sequence[Source]) -> list[_History]:
    """Everything to be merged, checked against each other."""
    listed = not isinstance(journals, str | Path | Journal) and len(journals) > 0
    require(listed, "there are no journals to merge; give a list of them")
    opened = [
        journal if isinstance(journal, Journal) else Journal.read(journal) for journal in journals
    ]
    paths = [journal.path.resolve() for journal in opened]
    for number, path in enumerate(paths):
        require(
            path not in paths[:number], f"journal {path} is given twice; give each journal once"
        )
    histories: list[_History] = []
    for number, journal in enumerate(opened):
        found = _sources(journal, number)
        for history in found:
            _check_plan(history)
            _check_new(history, histories)
        histories += found
    _check_agreement(histories)
    return histories


def _sources(journal: Journal, number: int) -> list[_History]:
    """The history a journal holds, or those that it was merged from."""
    name = str(journal.path)
    if journal.header.get("kind") != _MERGED:
        run = _run_of(journal.header, f"{number}")
        return [_History(name, run, tuple(journal.entries), False)]
    try:
        return _unfolded(journal, number)
    except (KeyError, TypeError, IndexError) as error:
        raise JournalCorruptError(
            f"merged journal {name} is malformed ({error!r}); merge the originals again"
        ) from error


def _unfolded(journal: Journal, number: int) -> list[_History]:
    """The histories of a merged journal, each chain verified down to its header."""
    sources = journal.header["sources"]
    runs = [_run_of(source["header"], f"{number}/{index}") for index, source in enumerate(sources)]
    lines: dict[tuple[str, str], Entry] = {}
    for run, source in zip(runs, sources, strict=True):
        first = sealed(0, ORIGIN, source["header"])
        lines[run, first["hash"]] = first
    for record in journal.records:
        run, entry = runs[record["source"]], record["line"]
        if entry != sealed(entry["seq"], entry["prev"], entry["body"]):
            raise JournalCorruptError(
                f"merged journal {journal.path}: a line does not match its hash; merge again"
            )
        lines[run, entry["hash"]] = entry
    return [
        _History(
            f"{journal.path}, source {index + 1}",
            run,
            _chain(journal, lines, run, source["head"]),
            True,
        )
        for index, (run, source) in enumerate(zip(runs, sources, strict=True))
    ]


def _chain(
    journal: Journal, lines: dict[tuple[str, str], Entry], run: str, head: str
) -> tuple[Entry, ...]:
    """The lines from the header to a head."""
    chain: list[Entry] = []
    while head != ORIGIN:
        if (run, head) not in lines:
            raise JournalCorruptError(
                f"merged journal {journal.path} lacks line {head[:12]} of a source; merge again"
            )
        chain.append(lines[run, head])
        head = chain[-1]["prev"]
    chain.reverse()
    if [entry["seq"] for entry in chain] != list(range(len(chain))) or not chain:
        raise JournalCorruptError(
            f"merged journal {journal.path}: a source's lines are out of order; merge again"
        )
    return tuple(chain)


def _run_of(header: dict[str, Any], position: str) -> str:
    run = header.get("run")
    return f"run {run}" if isinstance(run, str) and run else f"journal {position}"


def _check_plan(history: _History) -> None:
    plan = history.header.get("plan")
    known = isinstance(plan, dict) and isinstance(plan.get("unit"), str) and plan["unit"]
    require(
        bool(known),
        f"journal {history.name} has no plan with a unit, so nothing can be added to it; leave it "
        "out",
    )
    assert isinstance(plan, dict)
    require_adjacency(plan.get("adjacency", "not given"))
    digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
    require(
        history.header.get("digest") == digest,
        f"journal {history.name} has a plan that does not match its digest: it was changed; "
        "restore the original",
    )


def _check_new(history: _History, others: Sequence[_History]) -> None:
    """Refuse a history that a merged journal holds already."""
    for other in others:
        same_run = history.run == other.run
        unknown = history.run.startswith("journal") or other.run.startswith("journal")
        for inner, outer in ((history, other), (other, history)):
            held = (
                inner.head in {entry["hash"] for entry in outer.entries}
                if same_run
                else inner.head == outer.head
            )
            require(
                not (held and outer.from_merged and (same_run or unknown)),
                f"journal {inner.name} was merged into {outer.name} already; merge the original "
                "journals at once",
            )


def _check_agreement(histories: Sequence[_History]) -> None:
    first = histories[0]
    headers: dict[str, _History] = {}
    for history in histories:
        other = headers.setdefault(history.run, history)
        require(
            other.header == history.header,
            f"journals {other.name} and {history.name} name the same run but have different "
            "plans; leave one out",
        )
    for field in ("adjacency", "unit"):
        for other in histories[1:]:
            mine, theirs = first.header["plan"][field], other.header["plan"][field]
            require(
                mine == theirs,
                f"journals {first.name} and {other.name} cannot be added up: their {field} differs "
                f"({mine!r} and {theirs!r}); account for each alone",
            )


def _union(histories: Sequence[_History]) -> list[tuple[int, Entry]]:
    """(source, line) of every line after the headers, each line of a run once."""
    seen: set[tuple[str, str]] = set()
    slots: dict[tuple[str, int, int], str] = {}
    sums: dict[tuple[str, int, int], tuple[object, str]] = {}
    union = []
    for source, history in enumerate(histories):
        for entry in history.entries[1:]:
            if (history.run, entry["hash"]) in seen:
                continue
            seen.add((history.run, entry["hash"]))
            union.append((source, entry))
            if entry["body"].get("kind") == _CHARGE:
                _take_slot(history, entry["body"], slots)
            if entry["body"].get("kind") == _RELEASE:
                _take_sum(history, entry["body"], sums)
    return union


def _take_slot(
    history: _History, body: dict[str, Any], slots: dict[tuple[str, int, int], str]
) -> None:
    """Note that a run used this step's randomness; refuse it the second time."""
    slot = _slot(history, body, "a charge")
    _, step, generation = slot
    require(
        slot not in slots,
        f"step {step} of generation {generation} is charged twice in one run ({slots.get(slot)} "
        f"and {history.name}): the same noise may have hidden two sums, so there is no bound",
    )
    slots[slot] = history.name


def _take_sum(
    history: _History, body: dict[str, Any], sums: dict[tuple[str, int, int], tuple[object, str]]
) -> None:
    """Note which sum met a step's noise; refuse a second one."""
    slot = _slot(history, body, "a release")
    commitment, name = sums.setdefault(slot, (body.get("commitment"), history.name))
    require(
        commitment == body.get("commitment"),
        f"step {slot[1]} of generation {slot[2]} hid two different sums with the same noise "
        f"({name} and {history.name}), so there is no bound",
    )


def _slot(history: _History, body: dict[str, Any], what: str) -> tuple[str, int, int]:
    step, generation = body.get("step", "missing"), body.get("generation", "missing")
    require_count(step, "step", remedy=f"{what} names its step")
    require_count(generation, "generation", remedy=f"{what} names its generation")
    return history.run, step, generation


def _charge(entry: Entry) -> tuple[Event | None, int]:
    """What a line charged; (None, 0) if it released nothing."""
    body = entry["body"]
    kind = body.get("kind")
    if kind in _FREE and "event" not in body:
        return None, 0
    require(
        kind == _CHARGE and "event" in body,
        f"line {entry['seq'] + 1} has a record of kind {kind!r}, which may be a charge; upgrade "
        "to read it",
    )
    count = body.get("count", 1)
    require_count(count)
    return event_from_json(body["event"]), count
