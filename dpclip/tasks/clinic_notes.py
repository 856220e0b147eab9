"""Clinic visit notes that look private and are not: every person, number and visit is made up by a
generator.

They are the data of a first run, of examples and of privacy audits: like real letters, each note
holds rare strings (a name, a birth date, a record number, a telephone number) that a model must not
give away.

The notes of a seed are the same on every machine and in every Python version: all choices are made
from `random.Random(seed).random()`, the one method whose sequence the standard library promises to
keep.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal

__all__ = ["CATEGORIES", "Note", "clinic_notes", "public_clinic_notes"]

Pool = Literal["private", "public"]
PUBLIC_SEED = 20_240_229
MOST_NOTES = 100_000  # the public pool has 225,000 numbers, and a patient takes two


def _several(words: str, separator: str = "|") -> tuple[str, ...]:
    return tuple(words.split(separator))


GIVEN_NAMES = _several(
    "Ada Alma Amir Anton Asha Bela Bram Carla Cyril Dalia Dario Dora Edgar Elif Emil Enid Farid "
    "Fiona Gita Greta Hanna Hugo Ida Imran Ines Ivo Jamal Jana Jonas Kamal Kira Laila Lars Leona "
    "Lina Magnus Maya Milo Mona Nadia Nils Nora Olga Omar Oskar Petra Priya Quentin Rafael Rosa "
    "Ruth Samir Selma Silas Stella Tariq Tessa Theo Uma Vera Viktor Wanda Xenia Yusuf Yara Zeno",
    " ",
)
NAME_BEGINNINGS = _several(
    "Alder Bram Carn Dun Elm Fenn Gar Hazel Ing Jarr Kel Lark Mar Nether Oster Pem Quar Rams Sel "
    "Thorn Ulv Vin Wether Yar Zell",
    " ",
)
NAME_ENDINGS = _several(
    "acre bank brook by cliffe combe dale esk field garth holt ick kirk lund moor ness quist row "
    "sett thwaite vane wick worth",
    " ",
)
MONTHS = _several(  # strftime would ask the locale
    "January February March April May June July August September October November December", " "
)
DURATIONS = _several(
    "two days|four days|a week|ten days|two weeks|a month|six weeks|three months|half a year|since "
    "last night"
)
NEXT_VISITS = _several(
    "in a week|in two weeks|in a month|in six weeks|in three months|if no better|as needed"
)


@dataclass(frozen=True)
class Note:
    """One visit: its text, the patient's record number (some patients come often), the kind of
    complaint.
    """

    text: str
    patient: str
    category: str


@dataclass(frozen=True)
class Vocabulary:
    """What notes of one category speak of."""

    complaints: Sequence[str]
    findings: Sequence[str]
    drugs: Sequence[str]
    plans: Sequence[str]


def _words(complaints: str, findings: str, drugs: str, plans: str) -> Vocabulary:
    return Vocabulary(_several(complaints), _several(findings), _several(drugs), _several(plans))


VOCABULARY = {
    "airways": _words(
        "dry cough|cough with green sputum|short of breath on stairs|wheeze at night|sore throat|"
        "blocked nose|hoarse voice|chest tight in cold air",
        "wheeze both sides|clear lungs|throat red|oxygen 93 percent|fever 38.4|crackles at left "
        "base",
        "amoxicillin 500 mg|salbutamol 2 puffs|prednisolone 30 mg|budesonide 200 mcg|paracetamol "
        "1 g at night",
        "chest film|peak flow diary|stop smoking advice|sputum sample|flu shot given",
    ),
    "heart": _words(
        "palpitations|chest pain on walking uphill|swollen ankles|faint on standing|"
        "short of breath lying flat|headache with high pressure|skipped beats|leg cramps at night",
        "pressure 168 over 96|pulse irregular|soft murmur|pulse 44|ankle oedema|clear lungs",
        "bisoprolol 2.5 mg daily|ramipril 5 mg daily|furosemide 40 mg|apixaban 5 mg twice daily|"
        "atorvastatin 20 mg at night",
        "ECG today|24 hour tape|echo booked|salt advice|kidney bloods",
    ),
    "joints": _words(
        "low back pain|stiff hands in the morning|swollen knee|shoulder pain at night|twisted "
        "ankle|hip pain on stairs|neck pain after a fall|hot big toe",
        "knee effusion|straight leg raise 40 degrees|tender over L4|grip weak|no fracture "
        "seen|full movement",
        "naproxen 250 mg|paracetamol 1 g|colchicine 500 mcg|methotrexate 10 mg weekly|ibuprofen "
        "gel",
        "knee film|physio referral|home exercises|uric acid level|joint injection",
    ),
    "skin": _words(
        "itchy rash on both arms|dark mole on the back|weeping eczema|painful boil|flaky scalp|"
        "red patch on the cheek|hives after prawns|ulcer on left shin",
        "mole 7 mm with uneven edge|dry scaly plaques|red and warm|no pus|nails pitted|fades on "
        "pressure",
        "hydrocortisone cream|flucloxacillin 500 mg|cetirizine 10 mg daily|doxycycline 100 mg "
        "daily|emollient at night",
        "biopsy booked|photo taken|patch test|dressing twice a week|sun advice",
    ),
    "digestion": _words(
        "burning after meals|loose stools|cramps under the ribs|blood on the paper|constipation|"
        "nausea every morning|bloating after bread|trouble swallowing",
        "soft belly|tender upper right|weight down 6 kg|no masses|bowel sounds loud|mild jaundice",
        "omeprazole 20 mg daily|loperamide 2 mg|macrogol daily|mebeverine before "
        "meals|ondansetron 4 mg",
        "stool sample|scope booked|liver bloods|food diary|ultrasound",
    ),
    "mood": _words(
        "poor sleep|low mood after a divorce|panic in crowds|drinking every evening|tearful at "
        "work|racing thoughts|grief for a brother|worry about debts",
        "score 17 of 27|no thoughts of harm|tired and flat|restless|good eye contact|score 9 of 21",
        "sertraline 50 mg daily|mirtazapine 15 mg at night|citalopram 20 mg daily|propranolol 10 "
        "mg|melatonin 2 mg at night",
        "talking therapy|sick note two weeks|sleep diary|crisis line given|alcohol clinic",
    ),
}
CATEGORIES = tuple(VOCABULARY)

OPENINGS = (
    "{name}, born {born}, record {record}: {complaint}, {duration}.",
    "{day}. {name}, record {record}, phone {phone}. {Complaint}.",
    "{Complaint} for {name}, age {age}, record {record}, {duration}.",
    "Seen {day}: {name}, {age}, born {born}. {Complaint}, {duration}.",
    "{name}, phone {phone}, speaks of {complaint}, {duration}.",
    "Record {record}. {name}, {age}, phone {phone}: {complaint}.",
)
BODIES = (
    "{Finding}. {Drug}.",
    "{Finding}. {Plan}.",
    "Today {finding}. Keep {drug}.",
    "On exam {finding}. Plan: {plan}.",
    "Found {finding}. Told {doctor}.",
    "{Drug}; {plan}.",
    "Start {drug}. Back {next_visit}.",
    "{Plan}. Next visit {later}.",
    "Plan: {plan}, {drug}.",
    "{Finding}; {plan}. Back {next_visit}.",
)


class Choices:
    """Choices made from `random()` alone."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random

    def below(self, bound: int) -> int:
        return int(self._random() * bound)

    def one(self, options: Sequence[str]) -> str:
        return options[self.below(len(options))]

    def chance(self, probability: float) -> bool:
        return self._random() < probability

    def shuffled(self, notes: list[Note]) -> list[Note]:
        """By Fisher and Yates; `random.shuffle` is not promised to stay the same."""
        order = list(notes)
        for last in range(len(order) - 1, 0, -1):
            other = self.below(last + 1)
            order[last], order[other] = order[other], order[last]
        return order


@dataclass(frozen=True)
class Patient:
    name: str
    born: date
    record: str
    phone: str
    category: str


def _family_names(pool: Pool) -> list[str]:
    """One name in four belongs to the public pool: no private patient, of any seed, has a public
    name.
    """
    return [
        beginning + ending
        for i, beginning in enumerate(NAME_BEGINNINGS)
        for j, ending in enumerate(NAME_ENDINGS)
        if ((i + j) % 4 == 0) == (pool == "public")
    ]


def _new_number(choose: Choices, pool: Pool, taken: set[int]) -> int:
    """Six digits nobody has yet; those divisible by 4 are the public pool's."""
    while True:
        number = (
            100_000 + 4 * choose.below(225_000) + (0 if pool == "public" else 1 + choose.below(3))
        )
        if number not in taken:
            taken.add(number)
            return number


def _new_patient(choose: Choices, pool: Pool, families: Sequence[str], taken: set[int]) -> Patient:
    record, phone = f"{_new_number(choose, pool, taken)}", f"{_new_number(choose, pool, taken)}"
    return Patient(
        name=f"{choose.one(GIVEN_NAMES)} {choose.one(families)}",
        born=date(1931, 1, 1) + timedelta(days=choose.below(75 * 365)),
        record=record,
        phone=f"000 {phone[:3]} {phone[3:]}",  # no country gives out the area code 000
        category=choose.one(CATEGORIES),
    )


def _day_and_month(day: date) -> str:
    return f"{day.day} {MONTHS[day.month - 1]}"


def _visit(choose: Choices, patient: Patient, day: date) -> Note:
    """Most visits are about the patient's usual complaint."""
    category = patient.category if choose.chance(0.75) else choose.one(CATEGORIES)
    words = VOCABULARY[category]
    age = (
        day.year
        - patient.born.year
        - ((day.month, day.day) < (patient.born.month, patient.born.day))
    )
    values = {
        "name": patient.name,
        "born": f"{_day_and_month(patient.born)} {patient.born.year}",
        "record": patient.record,
        "phone": patient.phone,
        "day": f"{_day_and_month(day)} {day.year}",
        "age": str(age),
        "duration": choose.one(DURATIONS),
        "next_visit": choose.one(NEXT_VISITS),
        "later": _day_and_month(day + timedelta(days=7 * (1 + choose.below(12)))),
        "doctor": f"Dr {choose.one(NAME_BEGINNINGS)}",
        "complaint": choose.one(words.complaints),
        "finding": choose.one(words.findings),
        "drug": choose.one(words.drugs),
        "plan": choose.one(words.plans),
    }
    for word in ("complaint", "finding", "drug", "plan"):
        values[word.capitalize()] = values[word][0].upper() + values[word][1:]
    template = f"{choose.one(OPENINGS)} {choose.one(BODIES)}"
    return Note(template.format_map(values), patient.record, category)


def _notes(count: int, seed: int, pool: Pool) -> list[Note]:
    if not 0 <= count <= MOST_NOTES:
        raise ValueError(f"count = {count}: give how many notes to make, 0 to {MOST_NOTES}")
    choose, families = Choices(seed), _family_names(pool)
    taken: set[int] = set()
    notes: list[Note] = []
    while len(notes) < count:
        patient = _new_patient(choose, pool, families, taken)
        day = date(2021, 1, 4) + timedelta(days=choose.below(3 * 365))
        notes.append(_visit(choose, patient, day))
        while choose.chance(0.35):
            day += timedelta(days=7 + choose.below(120))
            notes.append(_visit(choose, patient, day))
    return choose.shuffled(notes[:count])


def clinic_notes(count: int = 3072, seed: int = 0) -> list[Note]:
    """`count` notes of invented visits, in random order; about a third of the patients have
    several.

    Args:
        count: how many notes, 0 to 100,000.
        seed: another seed gives other notes; nothing else does.

    Raises:
        ValueError: another count.
    """
    return _notes(count, seed, "private")


def public_clinic_notes(count: int = 512) -> list[Note]:
    """Notes of the same kind about other people: no name, record or telephone number of
    `clinic_notes`.

    For evaluation and as the public data some methods ask for. Always the same `count` notes.
    """
    return _notes(count, PUBLIC_SEED, "public")
