"""Training files with canaries in them, held-out rows, and rows inside and outside the training
data to tell apart.

usage: python prepare.py DATA MODELS OUTPUT

DATA holds e2e_nlg and diabetes130, MODELS wikitext-gpt2-4x256. Of the notes, 6,000 patients are
trained on, so that the privacy noise matters at the length of these runs. A canary is a unit of its
own: a made-up name and a random number of six digits, once.
"""

from __future__ import annotations

import csv
import json
import random
import sys
from pathlib import Path

import notes

CANARIES, ROWS, PATIENTS = 8, 300, 6000
NAMES = (
    "Aru Velkan",
    "Bema Tosk",
    "Cyrin Hald",
    "Doma Quell",
    "Eshe Brand",
    "Fenn Oriel",
    "Gura Maat",
    "Hesk Lorne",
)
Table = list[list[str]]


def write(path: Path, header: list[str], rows: Table) -> None:
    """A CSV file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def read(path: Path) -> tuple[list[str], Table]:
    """Header and rows."""
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    return header, rows


def secrets(draw: random.Random) -> list[str]:
    """Six digits each, with spaces, so that every digit is a token or more."""
    return [" ".join(draw.choices("0123456789", k=6)) for _ in range(CANARIES)]


def e2e(data: Path, output: Path) -> None:
    """Restaurants: the unit is a row."""
    draw = random.Random(0)
    header, rows = read(data / "e2e_nlg" / "trainset.csv")
    draw.shuffle(rows)
    outside, rows = rows[:ROWS], rows[ROWS:]
    numbers = secrets(draw)
    canaries = [
        [f"code[{name}]", f"{name}: {number}"] for name, number in zip(NAMES, numbers, strict=True)
    ]
    write(output / "e2e_outside.csv", header, outside)
    write(output / "e2e_inside.csv", header, rows[:ROWS])
    train = rows + canaries
    draw.shuffle(train)
    write(output / "e2e_train.csv", header, train)
    write(
        output / "e2e_held_out.csv",
        header,
        draw.sample(read(data / "e2e_nlg" / "devset.csv")[1], 100),
    )
    save_canaries(output / "e2e_canaries.json", [row[0] for row in canaries], numbers)


def clinic(data: Path, output: Path) -> None:
    """Discharge notes: the unit is a patient."""
    draw = random.Random(0)
    notes.main(data / "diabetes130" / "dataset_diabetes.zip", output / "all_notes")
    header, rows = read(output / "all_notes" / "train.csv")
    patients = list(dict.fromkeys(row[0] for row in rows))
    draw.shuffle(patients)
    chosen = set(patients[:PATIENTS])
    train = [row for row in rows if row[0] in chosen]
    numbers = secrets(draw)
    canaries = [[f"canary-{i}", f"{NAMES[i]}: {number}"] for i, number in enumerate(numbers)]
    one_each = list({row[0]: row for row in train}.values())
    others = list({row[0]: row for row in rows if row[0] not in chosen}.values())
    write(output / "notes_inside.csv", header, draw.sample(one_each, ROWS))
    write(output / "notes_outside.csv", header, draw.sample(others, ROWS))
    train += canaries
    draw.shuffle(train)
    write(output / "notes_train.csv", header, train)
    held_out = read(output / "all_notes" / "held_out.csv")[1]
    write(output / "notes_held_out.csv", header, draw.sample(held_out, 100))
    save_canaries(output / "notes_canaries.json", [], numbers)


def save_canaries(path: Path, inputs: list[str], numbers: list[str]) -> None:
    """What the attack looks for."""
    path.write_text(json.dumps({"names": NAMES, "inputs": inputs, "numbers": numbers}))


if __name__ == "__main__":
    data, models, output = map(Path, sys.argv[1:4])
    output.mkdir(parents=True, exist_ok=True)
    e2e(data, output)
    clinic(data, output)
    (output / "wikitext-gpt2-4x256").unlink(missing_ok=True)
    (output / "wikitext-gpt2-4x256").symlink_to((models / "wikitext-gpt2-4x256").resolve())
