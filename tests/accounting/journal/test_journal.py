"""The journal survives crashes, notices edits and admits one writer."""

import json

import pytest

from accounting import InputError, Journal, JournalBusyError, JournalCorruptError


def write(path, records=3):
    with Journal.create(path, {"plan": "p", "delta": 1e-5}) as journal:
        for number in range(records):
            journal.append({"step": number, "sigma": 1.1})
        return journal.head


def test_equal_histories_give_equal_bytes(tmp_path):
    heads = [write(tmp_path / name) for name in ("a", "b")]
    assert heads[0] == heads[1]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_journal_reopens_with_everything_and_continues(tmp_path):
    head = write(tmp_path / "j")
    with Journal.open(tmp_path / "j") as journal:
        assert journal.header == {"plan": "p", "delta": 1e-5}
        assert journal.records == [{"step": n, "sigma": 1.1} for n in range(3)]
        assert journal.head == head
        assert not journal.recovered_torn_line
        assert journal.append({"step": 3}) == journal.head != head
    with Journal.open(tmp_path / "j") as journal:
        assert len(journal.records) == 4


def test_an_append_is_on_disk_before_it_returns(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(
        "os.fsync", lambda descriptor: synced.append((tmp_path / "j").stat().st_size)
    )
    journal = Journal.create(tmp_path / "j", {})
    assert len(synced) == 2, "the file and its directory"
    journal.append({"step": 0})
    assert synced[-1] == (tmp_path / "j").stat().st_size
    journal.close()


def test_a_journal_is_never_overwritten_nor_invented(tmp_path):
    write(tmp_path / "j")
    with pytest.raises(InputError, match="exists"):
        Journal.create(tmp_path / "j", {})
    with pytest.raises(InputError, match="does not exist"):
        Journal.open(tmp_path / "other")


def test_every_torn_write_is_cut_off_and_reported(tmp_path):
    head_after_two = write(tmp_path / "short", 2)
    write(tmp_path / "whole", 3)
    whole, short = (tmp_path / "whole").read_bytes(), (tmp_path / "short").read_bytes()
    for length in range(len(short) + 1, len(whole), 17):
        (tmp_path / "j").write_bytes(whole[:length])
        with Journal.open(tmp_path / "j") as journal:
            assert journal.recovered_torn_line
            assert journal.head == head_after_two
            journal.append({"step": 2, "sigma": 1.1})
        assert (tmp_path / "j").read_bytes() == whole


def test_an_unparsable_last_line_is_torn(tmp_path):
    write(tmp_path / "j", 1)
    with open(tmp_path / "j", "ab") as file:
        file.write(b'{"seq": 2, \x00\x00\n')
    with Journal.open(tmp_path / "j") as journal:
        assert journal.recovered_torn_line
        assert len(journal.records) == 1


@pytest.mark.parametrize("line", [0, 1, 2])
def test_any_edit_is_found_and_its_line_named(tmp_path, line):
    write(tmp_path / "j")
    lines = (tmp_path / "j").read_bytes().splitlines(keepends=True)
    entry = json.loads(lines[line])
    entry["body"]["sigma"] = 99.0
    lines[line] = json.dumps(entry, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    (tmp_path / "j").write_bytes(b"".join(lines))
    with pytest.raises(JournalCorruptError, match=f"line {line + 1}:"):
        Journal.open(tmp_path / "j")


@pytest.mark.parametrize("damage", ["drop", "swap", "repeat", "garble", "extra"])
def test_dropped_reordered_or_garbled_lines_are_found(tmp_path, damage):
    write(tmp_path / "j")
    lines = (tmp_path / "j").read_bytes().splitlines(keepends=True)
    if damage == "drop":
        del lines[1]
    elif damage == "swap":
        lines[1], lines[2] = lines[2], lines[1]
    elif damage == "repeat":
        lines.insert(2, lines[1])
    elif damage == "garble":
        lines[1] = b"not json\n"
    else:
        lines[1] = lines[1].replace(b'"seq"', b'"note":1,"seq"')
    (tmp_path / "j").write_bytes(b"".join(lines))
    with pytest.raises(JournalCorruptError, match=r"line [23]:"):
        Journal.open(tmp_path / "j")


def test_an_empty_file_is_no_journal(tmp_path):
    (tmp_path / "j").write_bytes(b"")
    with pytest.raises(JournalCorruptError, match="header"):
        Journal.open(tmp_path / "j")


def test_two_writers_cannot_share_a_journal(tmp_path):
    with Journal.create(tmp_path / "j", {}) as first:
        with pytest.raises(JournalBusyError, match="another writer"):
            Journal.open(tmp_path / "j")
        first.append({"step": 0})
    Journal.open(tmp_path / "j").close()


@pytest.mark.parametrize(
    "record", [{"x": float("nan")}, {"x": float("inf")}, {"x": object()}, {1: "x"}, {"x": (1,)}]
)
def test_what_json_cannot_hold_is_refused_and_not_written(tmp_path, record):
    with Journal.create(tmp_path / "j", {}) as journal:
        before = (tmp_path / "j").read_bytes()
        with pytest.raises(InputError):
            journal.append(record)
        assert (tmp_path / "j").read_bytes() == before
    with pytest.raises(InputError):
        Journal.create(tmp_path / "k", record)
    assert not (tmp_path / "k").exists()


def test_a_closed_journal_charges_nothing(tmp_path):
    journal = Journal.create(tmp_path / "j", {})
    journal.close()
    journal.close()
    with pytest.raises(InputError, match="closed"):
        journal.append({"step": 0})


def test_records_are_copies(tmp_path):
    with Journal.create(tmp_path / "j", {"a": [1]}) as journal:
        journal.header["a"].append(2)
        assert journal.header == {"a": [1]}


def test_a_journal_contains_every_head_it_ever_had_and_no_other(tmp_path):
    with Journal.create(tmp_path / "j", {"plan": "p"}) as journal:
        heads = [journal.head] + [journal.append({"step": number}) for number in range(4)]
        assert len(set(heads)) == 5
        assert all(journal.contains(head) for head in heads)
    whole = (tmp_path / "j").read_bytes().splitlines(keepends=True)
    with Journal.open(tmp_path / "j") as again:
        assert all(again.contains(head) for head in heads)
        assert not again.contains("")
        assert not again.contains("0" * 64)
        assert not again.contains(heads[-1][:-1])
    (tmp_path / "j").write_bytes(b"".join(whole[:3]))
    with Journal.open(tmp_path / "j") as shortened:
        assert [shortened.contains(head) for head in heads] == [True, True, True, False, False]
        shortened.append({"step": "another"})
        assert not shortened.contains(heads[3]), "a line that was replaced is found out, too"


def test_equal_records_after_different_ones_have_different_heads(tmp_path):
    heads = []
    for first in (0, 1):
        with Journal.create(tmp_path / f"j{first}", {"plan": "p"}) as journal:
            journal.append({"step": first})
            heads.append(journal.append({"step": 2}))
    assert heads[0] != heads[1]


def test_entries_are_the_lines_on_disk(tmp_path):
    write(tmp_path / "j")
    with Journal.open(tmp_path / "j") as journal:
        assert journal.entries == [
            json.loads(line) for line in (tmp_path / "j").read_bytes().splitlines()
        ]
        assert journal.path == tmp_path / "j"


def test_reading_writes_nothing_and_leaves_a_torn_line_out(tmp_path):
    head = write(tmp_path / "j")
    torn = (tmp_path / "j").read_bytes() + b'{"body": {"st'
    (tmp_path / "j").write_bytes(torn)
    (tmp_path / "j").chmod(0o400)
    journal = Journal.read(tmp_path / "j")
    assert journal.recovered_torn_line
    assert (journal.head, len(journal.records)) == (head, 3)
    assert (tmp_path / "j").read_bytes() == torn
    with pytest.raises(InputError, match="closed"):
        journal.append({"step": 3})


def test_reading_refuses_what_opening_refuses(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        Journal.read(tmp_path / "other")
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(JournalCorruptError, match="header"):
        Journal.read(tmp_path / "empty")
    with Journal.create(tmp_path / "j", {}), pytest.raises(JournalBusyError):
        Journal.read(tmp_path / "j")
    write(tmp_path / "edited")
    edited = (tmp_path / "edited").read_bytes().replace(b"1.1", b"9.1", 1)
    (tmp_path / "edited").write_bytes(edited)
    with pytest.raises(JournalCorruptError, match="line 2:"):
        Journal.read(tmp_path / "edited")
