"""Discharge notes from the Diabetes 130-US hospitals data: each encounter as a few sentences, the
unit is the patient.

usage: python notes.py dataset_diabetes.zip OUTPUT_DIR

Writes train.csv and held_out.csv (columns patient, text), split by patient, one patient in ten held
out. Which sentences an encounter gets, in which words, follows from a hash of its identifier, so
that the files are always the same. The words are ours; the facts are the table's (Strack et al.,
2014).
"""

from __future__ import annotations

import csv
import hashlib
import io
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

Row = dict[str, str]
DRUGS = (
    "metformin",
    "repaglinide",
    "nateglinide",
    "glimepiride",
    "glipizide",
    "glyburide",
    "pioglitazone",
    "rosiglitazone",
    "acarbose",
    "insulin",
)
CHANGES = {"Steady": "continued on {}", "Up": "{} was increased", "Down": "{} was reduced"}
CHAPTERS = (
    (139, "an infectious disease"),
    (239, "a neoplasm"),
    (279, "an endocrine or metabolic disorder"),
    (289, "a blood disorder"),
    (319, "a mental disorder"),
    (389, "a disorder of the nervous system"),
    (459, "a disease of the circulation"),
    (519, "a respiratory disease"),
    (579, "a digestive disease"),
    (629, "a genitourinary disease"),
    (679, "a complication of pregnancy"),
    (709, "a disease of the skin"),
    (739, "a musculoskeletal disease"),
    (759, "a congenital anomaly"),
    (779, "a perinatal condition"),
    (799, "unspecific symptoms"),
    (999, "an injury or poisoning"),
)
NAMED = {
    "428": "heart failure",
    "414": "coronary heart disease",
    "786": "chest or breathing complaints",
    "410": "acute myocardial infarction",
    "486": "pneumonia",
    "427": "cardiac arrhythmia",
    "491": "chronic bronchitis",
    "715": "osteoarthritis",
    "434": "stroke",
    "682": "cellulitis",
    "780": "general symptoms",
    "996": "a device complication",
    "276": "a fluid disorder",
    "38": "septicaemia",
    "584": "acute kidney failure",
    "250": "diabetes",
}
ADMISSIONS = {
    "1": "as an emergency",
    "2": "urgently",
    "3": "electively",
    "7": "through the trauma centre",
}
DISCHARGES = {
    "1": "home",
    "3": "to a nursing facility",
    "6": "home with home health care",
    "11": "",
}
RETURNS = {"NO": "No readmission is recorded.", ">30": "Readmitted after more than 30 days.",
           "<30": "Readmitted within 30 days."}  # fmt: skip


def condition(code: str) -> str:
    """A diagnosis in words, from its ICD-9 code."""
    stem = code.split(".")[0]
    if stem in NAMED:
        return NAMED[stem]
    if not stem.isdigit():
        return "an external cause" if stem.startswith("E") else "a follow-up need"
    return next((words for last, words in CHAPTERS if int(stem) <= last), "an unclear condition")


class Coins:
    """Choices that follow from an encounter's identifier."""

    def __init__(self, seed: str) -> None:
        self._words = list(hashlib.sha256(seed.encode()).digest())

    def pick(self, *options: str) -> str:
        """One of the options."""
        return options[self._words.pop() % len(options)]


def note(row: Row) -> str:
    """An encounter in words."""
    coins = Coins(row["encounter_id"])
    low = row["age"].strip("[)").split("-")[0]
    who = {"Female": "woman", "Male": "man"}.get(row["gender"], "person")
    person = coins.pick(
        f"{who.capitalize()} aged {low} to {int(low) + 9}", f"A {who} in the decade from {low}"
    )
    days = row["time_in_hospital"]
    stay = coins.pick(
        f"stayed {days} days",
        f"was in hospital for {days} days",
        f"was discharged after {days} days",
    )
    how = ADMISSIONS.get(row["admission_type_id"], "")
    came = " ".join(filter(None, ["admitted", how, "with", condition(row["diag_1"])]))
    return " ".join(
        filter(
            None,
            [
                f"{person} {came}, {stay}.",
                *_findings(row, coins),
                _treatment(row, coins),
                _end(row),
            ],
        )
    )


def _findings(row: Row, coins: Coins) -> Iterator[str]:
    others = [condition(row[f"diag_{k}"]) for k in (2, 3) if row[f"diag_{k}"] != "?"]
    if others:
        yield coins.pick("Also known: {}.", "Secondary diagnoses: {}.", "History of {}.").format(
            " and ".join(others)
        )
    if row["A1Cresult"] in (">7", ">8", "Norm"):
        value = {"Norm": "normal", ">7": "above 7 per cent", ">8": "above 8 per cent"}[
            row["A1Cresult"]
        ]
        yield coins.pick(f"HbA1c {value}.", f"Glycated haemoglobin was {value}.")
    labs, drugs = row["num_lab_procedures"], row["num_medications"]
    yield coins.pick(
        f"{labs} laboratory tests, {drugs} medications.",
        f"Received {drugs} drugs and {labs} laboratory tests.",
    )


def _treatment(row: Row, coins: Coins) -> str:
    given = [CHANGES[row[drug]].format(drug) for drug in DRUGS if row[drug] in CHANGES]
    if not given:
        return coins.pick("No diabetes medication.", "Diabetes was managed without drugs.")
    text = ", ".join(given[:3])
    return f"{text[0].upper()}{text[1:]}."


def _end(row: Row) -> str:
    if row["discharge_disposition_id"] == "11":
        return "Died in hospital."
    place = DISCHARGES.get(row["discharge_disposition_id"], "to further care")
    return f"Discharged {place}. {RETURNS[row['readmitted']]}"


def held_out(patient: str) -> bool:
    """One patient in ten."""
    return hashlib.sha256(f"patient {patient}".encode()).digest()[0] < 26


def main(archive: Path, output: Path) -> None:
    """Write both files."""
    output.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive) as files, files.open("dataset_diabetes/diabetic_data.csv") as raw:
        rows = list(csv.DictReader(io.TextIOWrapper(raw, "utf-8")))
    for name, held in {"train": False, "held_out": True}.items():
        chosen = [row for row in rows if held_out(row["patient_nbr"]) == held]
        with (output / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["patient", "text"])
            writer.writerows((row["patient_nbr"], note(row)) for row in chosen)
        print(
            f"{name}: {len(chosen)} notes of {len({row['patient_nbr'] for row in chosen})} patients"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
