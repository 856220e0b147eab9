"""Merging journals counts every charge of every history once, and refuses what cannot be
added up.
"""

import hashlib
import json
import shutil

import pytest

from accounting import (
    InputError,
    Journal,
    JournalBusyError,
    JournalCorruptError,
    NonPrivate,
    PoissonGaussian,
    make_accountant,
)
from accounting.journal.merge import merged, write_merged

A, B, C = (PoissonGaussian(0.01, sigma) for sigma in (1.0, 1.5, 2.0))


def plan_header(run=None, **changes):
    plan = {"adjacency": "add-remove", "unit": "one row", "units": 1000, "delta": 1e-5} | changes
    digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
    return {"plan": plan, "digest": digest} | ({"run": run} if run else {})


def step(number, event=A, generation=0, **more):
    return {
        "kind": "step",
        "step": number,
        "generation": generation,
        "event": event.to_json(),
    } | more


def write(path, records, header=None):
    with Journal.create(path, plan_header() if header is None else header) as journal:
        for record in records:
            journal.append(record)
    return path


def extend(path, records):
    with Journal.open(path) as journal:
        for record in records:
            journal.append(record)
    return path


@pytest.fixture
def forked(tmp_path):
    """A run of five steps; its copy was resumed at step 3 with fresh randomness and other noise."""
    first = write(tmp_path / "first", [step(n) for n in range(3)], plan_header("r1"))
    second = tmp_path / "second"
    shutil.copy(first, second)
    extend(first, [step(3), step(4)])
    fresh = {"kind": "fresh-randomness", "from_step": 3, "generation": 1, "reason": "moved"}
    extend(second, [fresh, step(3, A, 1), step(4, B, 1)])
    return [first, second]


def test_a_shared_prefix_is_counted_once_and_the_rest_added_up(forked):
    assert dict(merged(forked)) == {A: 6, B: 1}
    assert dict(merged(forked[::-1])) == {A: 6, B: 1}


def test_an_older_copy_of_a_run_adds_nothing(tmp_path):
    old = write(tmp_path / "old", [step(0), step(1)], plan_header("r1"))
    new = tmp_path / "new"
    shutil.copy(old, new)
    extend(new, [step(2, B)])
    assert dict(merged([old, new])) == dict(merged([new, old])) == {A: 2, B: 1}


def test_different_runs_add_up_even_line_for_line_equal_ones(tmp_path):
    lines = [step(0), step(1, B)]
    unnamed = [write(tmp_path / f"u{i}", lines) for i in range(2)]
    assert unnamed[0].read_bytes() == unnamed[1].read_bytes()
    assert dict(merged(unnamed)) == {A: 2, B: 2}, "no header says that these are one run"
    named = [write(tmp_path / f"n{i}", lines, plan_header(f"r{i}")) for i in range(2)]
    assert dict(merged(named)) == {A: 2, B: 2}
    assert dict(merged([*unnamed, *named])) == {A: 4, B: 4}


def test_the_merged_cost_is_that_of_all_charges(forked):
    book, expected = make_accountant("rdp", "add-remove"), make_accountant("rdp", "add-remove")
    for event, count in merged(forked):
        book.charge(event, count)
    expected.charge(A, 6)
    expected.charge(B, 1)
    assert book.epsilon(1e-5) == expected.epsilon(1e-5)


def test_runs_may_have_different_plans_on_the_same_unit(tmp_path):
    one = write(tmp_path / "one", [step(0)], plan_header("r1", delta=1e-5))
    two = write(tmp_path / "two", [step(0, B), step(1, B)], plan_header("r2", delta=1e-6))
    assert merged([one, two]) == [(A, 1), (B, 2)]


def test_journals_may_be_open_and_only_one_may_be_given(tmp_path):
    path = write(tmp_path / "j", [step(0), step(1, count=3)])
    with Journal.open(path) as journal:
        assert merged([journal]) == [(A, 4)]
        with pytest.raises(JournalBusyError):
            merged([path])
    assert merged([path]) == merged([str(path)]) == [(A, 4)]


def test_unprotected_and_unknown_releases_are_kept(tmp_path):
    path = write(
        tmp_path / "j", [step(0, NonPrivate("a leak")), step(1) | {"event": {"kind": "tomorrow"}}]
    )
    book = make_accountant("rdp", "add-remove")
    for event, count in merged([path]):
        book.charge(event, count)
    assert book.steps == 2
    assert book.epsilon(1e-5).upper == float("inf")


def test_a_merged_journal_holds_its_sources_heads_and_counts_the_same(tmp_path, forked):
    other = write(tmp_path / "other", [step(0, C)])
    sources = [*forked, other]
    journal = write_merged(tmp_path / "m", sources)
    assert [source["head"] for source in journal.header["sources"]] == [
        Journal.read(path).head for path in sources
    ]
    assert journal.header["plan"] == {"adjacency": "add-remove", "unit": "one row"}
    assert merged([journal]) == merged([tmp_path / "m"]) == merged(sources)
    with pytest.raises(InputError, match="closed"):
        journal.append(step(9))
    with pytest.raises(InputError, match="exists"):
        write_merged(tmp_path / "m", sources)


def test_equal_merges_give_equal_files(tmp_path, forked):
    for name in ("m1", "m2"):
        write_merged(tmp_path / name, forked)
    assert (tmp_path / "m1").read_bytes() == (tmp_path / "m2").read_bytes()


def test_a_merged_journal_can_be_merged_with_new_ones(tmp_path, forked):
    first = write_merged(tmp_path / "m1", forked)
    other = write(tmp_path / "other", [step(0, C)])
    second = write_merged(tmp_path / "m2", [first, other])
    assert len(second.header["sources"]) == 3
    assert dict(merged([second])) == {A: 6, B: 1, C: 1}
    # A source that went on after the merge brings its new charges only.
    extend(forked[0], [step(5, C)])
    assert (
        dict(merged([second, forked[0]])) == dict(merged([forked[0], second])) == {A: 6, B: 1, C: 2}
    )


@pytest.mark.parametrize("run", [None, "r1"])
def test_what_was_merged_already_is_refused(tmp_path, run):
    path = write(tmp_path / "j", [step(0), step(1)], plan_header(run))
    other = write(tmp_path / "other", [step(0, B)], plan_header("r2"))
    whole = write_merged(tmp_path / "m", [path, other])
    for again in ([whole, path], [path, whole], [other, whole]):
        with pytest.raises(InputError, match=r"merged into .* already"):
            merged(again)
    overlapping = write_merged(tmp_path / "m2", [path])
    with pytest.raises(InputError, match=r"merged into .* already"):
        merged([whole, overlapping])


def test_an_older_copy_of_a_merged_source_is_refused(tmp_path):
    path = write(tmp_path / "j", [step(0)], plan_header("r1"))
    shutil.copy(path, tmp_path / "old")
    extend(path, [step(1)])
    whole = write_merged(tmp_path / "m", [path])
    with pytest.raises(InputError, match=r"merged into .* already"):
        merged([whole, tmp_path / "old"])


def test_the_same_file_twice_is_refused(tmp_path):
    path = write(tmp_path / "j", [step(0)])
    (tmp_path / "link").symlink_to(path)
    for pair in ([path, path], [path, tmp_path / "link"], [path, Journal.read(path)]):
        with pytest.raises(InputError, match="given twice"):
            merged(pair)


@pytest.mark.parametrize("none", [[], "j"])
def test_a_merge_needs_a_list_of_journals(none):
    with pytest.raises(InputError, match="give a list"):
        merged(none)


@pytest.mark.parametrize(
    ("field", "value"), [("adjacency", "replace-one"), ("unit", "one patient")]
)
def test_another_adjacency_or_unit_is_refused(tmp_path, field, value):
    one = write(tmp_path / "one", [step(0)])
    two = write(tmp_path / "two", [step(0)], plan_header(**{field: value}))
    with pytest.raises(InputError, match=f"their {field} differs .*{value}") as refusal:
        merged([one, two])
    assert "\n" not in str(refusal.value)
    with pytest.raises(InputError, match=field):
        write_merged(tmp_path / "m", [one, two])
    assert not (tmp_path / "m").exists()


def test_a_changed_plan_is_refused(tmp_path):
    changed = plan_header()
    changed["plan"]["unit"] = "one patient"
    # the chain is whole: the digest alone gives it away
    path = write(tmp_path / "j", [step(0)], changed)
    assert Journal.read(path).header == changed
    with pytest.raises(InputError, match="does not match its digest"):
        merged([path])
    one = write(tmp_path / "one", [step(0)], plan_header("r1"))
    two = write(tmp_path / "two", [step(0)], plan_header("r1", delta=1e-6))
    with pytest.raises(InputError, match="same run but have different plans"):
        merged([one, two])


@pytest.mark.parametrize(
    "header", [{}, {"plan": {}}, {"plan": {"unit": "x"}}, {"plan": {"adjacency": "add-remove"}}]
)
def test_without_unit_or_adjacency_nothing_is_claimed(tmp_path, header):
    with pytest.raises(InputError, match="nothing can be"):
        merged([write(tmp_path / "j", [step(0)], header)])


def test_the_same_randomness_in_two_histories_is_refused(tmp_path):
    first = write(tmp_path / "first", [step(0)], plan_header("r1"))
    second = tmp_path / "second"
    shutil.copy(first, second)
    extend(first, [step(1, A)])
    extend(second, [step(1, B)])
    with pytest.raises(InputError, match="step 1 of generation 0 is charged twice"):
        merged([first, second])
    fresh = tmp_path / "third"
    shutil.copy(first, fresh)
    for path, reason in ((first, "crash"), (fresh, "moved")):
        note = {"kind": "fresh-randomness", "from_step": 2, "generation": 1, "reason": reason}
        extend(path, [note, step(2, A, 1)])
    with pytest.raises(InputError, match="step 2 of generation 1 is charged twice"):
        merged([first, fresh])


@pytest.mark.parametrize(
    "record",
    [
        {"kind": "release", "event": A.to_json()},
        {"kind": "tomorrow"},
        {"kind": "fresh-randomness", "event": A.to_json()},
        {"kind": "step", "step": 0, "generation": 0},
        {"event": A.to_json()},
        {"kind": "step", "event": A.to_json()},
        step(0, count=-1),
        step(0, count=1.5),
        step([0]),
        step(0) | {"event": {"kind": "poisson-gaussian"}},
    ],
)
def test_no_charge_is_lost_because_it_was_not_understood(tmp_path, record):
    path = write(tmp_path / "j", [record])
    with pytest.raises(InputError):
        merged([path])
    with pytest.raises(InputError):
        write_merged(tmp_path / "m", [path])
    assert not (tmp_path / "m").exists()


def test_a_broken_chain_is_refused(tmp_path):
    good, bad = write(tmp_path / "good", [step(0)]), write(tmp_path / "bad", [step(0), step(1)])
    lines = bad.read_bytes().splitlines(keepends=True)
    bad.write_bytes(b"".join([lines[0], lines[2]]))
    with pytest.raises(JournalCorruptError, match="bad line 2"):
        merged([good, bad])


def rebuilt(path, change):
    """The journal with its lines changed and a chain that is whole again."""
    journal = Journal.read(path)
    bodies = [journal.header, *journal.records]
    change(bodies)
    path.unlink()
    return write(path, bodies[1:], bodies[0])


def lose_a_line(bodies):
    del bodies[2]


def cheapen_a_line(bodies):
    bodies[1]["line"]["body"]["event"]["noise_multiplier"] = 9.0


def rename_a_head(bodies):
    bodies[0]["sources"][0]["head"] = "1" * 64


def point_nowhere(bodies):
    bodies[1]["source"] = 7


def forget_the_line(bodies):
    del bodies[1]["line"]


@pytest.mark.parametrize(
    "change", [lose_a_line, cheapen_a_line, rename_a_head, point_nowhere, forget_the_line]
)
def test_a_merged_journal_that_was_rewritten_is_found_out(tmp_path, forked, change):
    write_merged(tmp_path / "m", forked)
    assert merged([rebuilt(tmp_path / "m", lambda bodies: None)]) == merged(forked)
    rebuilt(tmp_path / "m", change)
    with pytest.raises(JournalCorruptError, match="merge"):
        merged([tmp_path / "m"])


def test_a_merge_that_was_cut_short_is_found_out(tmp_path, forked):
    write_merged(tmp_path / "m", forked)
    lines = (tmp_path / "m").read_bytes().splitlines(keepends=True)
    for kept in range(1, len(lines)):
        (tmp_path / "m").write_bytes(b"".join(lines[:kept]))
        with pytest.raises(JournalCorruptError, match="lacks line"):
            merged([tmp_path / "m"])


def test_the_ledgers_of_training_runs_can_be_merged(tmp_path):
    pytest.importorskip("torch")
    from dpclip.budget.ledger import Ledger
    from dpclip.budget.plan import Plan

    plan = Plan(1000, 10, 5, 1.0, 1e-5, 8.0)
    for name, steps in (("one", 3), ("two", 2)):
        ledger = Ledger.create(tmp_path / name, plan)
        for number in range(steps):
            ledger.charge(number, 0, 1.0)
        ledger.start_generation(steps, "crash")
        ledger.close()
    assert merged([tmp_path / "one", tmp_path / "two"]) == [(plan.event(), 5)]


def release(number, commitment, generation=0):
    return {"kind": "release", "step": number, "generation": generation, "commitment": commitment}


def test_releases_charge_nothing(tmp_path):
    path = write(
        tmp_path / "j", [step(0), release(0, "aa"), step(1, B), release(1, "bb")], plan_header("r1")
    )
    assert merged([path]) == [(A, 1), (B, 1)]
    assert merged([write_merged(tmp_path / "m", [path])]) == [(A, 1), (B, 1)]


def test_copies_that_gave_one_noise_to_two_sums_are_refused(tmp_path):
    """Copied between the charge and the release: the shared charge is no proof that one sum was
    released.
    """
    first = write(tmp_path / "first", [step(0)], plan_header("r1"))
    for name, commitment in (("same", "aa"), ("other", "bb")):
        shutil.copy(first, tmp_path / name)
        extend(tmp_path / name, [release(0, commitment)])
    extend(first, [release(0, "aa"), step(1)])
    assert merged([first, tmp_path / "same"]) == [(A, 2)]
    with pytest.raises(
        InputError, match=r"step 0 of generation 0 hid two different sums.*no bound"
    ):
        merged([first, tmp_path / "other"])
