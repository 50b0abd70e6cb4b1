"""Synthetic clinical notes with known names, dates, phones and places: three hospitals' files.

    python examples/synthetic_notes.py FOLDER 600,400,250

Each hospital has its own mix of sentences and of ways to write a date. The same sizes give the same
notes. Sentences and names repeat: real notes are harder.
"""

from __future__ import annotations

import csv
import random
import re
import sys
from collections.abc import Mapping
from pathlib import Path


def list_words(text: str, between: str = " ") -> list[str]:
    """Return the words of a text."""
    return text.split(between)


HOSPITALS = ("north", "south", "west")
FIRST = list_words(
    "Anna Maria Peter Paul John Jane Ahmed Lena Otto Karl Mia Noah Olivia Emma Liam Sofia Hugo"
    " Clara Ivan Yusuf Chen Wei Priya Ravi Fatima Omar Elena Marta Jonas Felix Ingrid Bjorn Aisha"
    " Kofi Amara Diego Lucia Mateo Nina Viktor"
)
LAST = list_words(
    "Smith Jones Miller Garcia Schmidt Weber Fischer Meyer Wagner Becker Hoffmann Kowalski Novak"
    " Rossi Ferrari Silva Santos Kim Park Nguyen Tran Singh Patel Khan Hassan Ali Larsen Olsen"
    " Johansson Andersson Dubois Laurent Moreau O'Brien Murphy Kelly Walsh Yamamoto Tanaka Suzuki"
    " Mensah Okafor Diallo Petrov Ivanova Brown Clark Lewis Young Hall"
)
PLACES = [
    "St Mary Hospital",
    "North Clinic",
    "General Hospital of Linden",
    "Sunnyside Clinic",
    "Charity Hospital",
    "Mount Hope Hospital",
    "Riverside Medical Center",
    "University Hospital Aalen",
    "Lakeview Clinic",
    "Holy Cross Hospital",
]
MONTHS = list_words(
    "January February March April May June July August September October November December"
)
COMPLAINTS = list_words(
    "cough|fever|chest pain|shortness of breath|a rash on both arms|abdominal pain|dizziness"
    "|back pain|a headache|swollen ankles|palpitations|weight loss|blurred vision|joint stiffness"
    "|nausea",
    "|",
)
DRUGS = list_words(
    "aspirin|ibuprofen|metformin|lisinopril|amoxicillin|prednisone|warfarin|omeprazole"
    "|atorvastatin|insulin",
    "|",
)
# sentences without an entity, some with words and numbers that look like one
PLAIN = list_words(
    "No known allergies.|Vital signs were stable.|The abdomen was soft.|Blood pressure 140/85."
    "|Lungs were clear on both sides.|He took two tablets a day.|Temperature was 38.4 degrees."
    "|Creatinine rose to 1.9.|The wound was clean and dry.|X-ray showed no fracture."
    "|The patient lives alone.|She smokes ten cigarettes a day.|May was told to rest."
    "|Will be seen again in March or April.|The ECG was normal.|Grade 2 ulcer, 3 cm, heals well.",
    "|",
)
SENTENCES = [
    "{NAME} was admitted on {DATE} with {complaint}.",
    "Seen by Dr. {NAME} on {DATE} for {complaint}.",
    "Patient {NAME}, {age} years old, has had {complaint} since {DATE}.",
    "Please call {PHONE} with the results.",
    "Referred from {PLACE} on {DATE}.",
    "Transferred to {PLACE} for {complaint}.",
    "{drug} {dose} mg was given on {DATE}.",
    "Mr. {NAME} takes {drug} {dose} mg daily.",
    "His daughter {NAME} can be reached at {PHONE}.",
    "Discharged on {DATE}, follow-up with {NAME}.",
    "Operated at {PLACE} by {NAME}.",
    "Contact: {NAME}, {PHONE}.",
    "Mrs. {NAME} complains of {complaint}.",
    "Signed {NAME}, {DATE}.",
]
# how often a hospital writes a date in each of six ways
DATES = ([4, 0, 1, 3, 1, 1], [0, 4, 1, 0, 3, 1], [1, 1, 4, 1, 1, 1])


def write_name(draw: random.Random) -> str:
    """Return a name, in one of five ways."""
    first = draw.choice(FIRST)
    last = draw.choice(LAST)
    way = draw.random()
    if way < 0.5:
        return f"{first} {last}"
    if way < 0.65:
        return f"{last}, {first}"
    if way < 0.8:
        return last
    if way < 0.9:
        return f"{first[0]}. {last}"
    return first


def write_date(draw: random.Random, hospital: int) -> str:
    """Return a date as a hospital writes it."""
    day = draw.randint(1, 28)
    month = draw.randint(1, 12)
    year = draw.randint(1990, 2024)
    name = MONTHS[month - 1]
    ways = [
        f"{month:02d}/{day:02d}/{year}",
        f"{day}.{month}.{year}",
        f"{year}-{month:02d}-{day:02d}",
        f"{name} {day}, {year}",
        f"{day} {name}",
        f"{name} {year}",
    ]
    return draw.choices(ways, DATES[hospital])[0]


def write_phone(draw: random.Random) -> str:
    """Return a phone number, in one of five ways."""

    def digits(count: int) -> str:
        return "".join(draw.choice("0123456789") for _ in range(count))

    ways = [
        f"({digits(3)}) {digits(3)}-{digits(4)}",
        f"{digits(3)}-{digits(4)}",
        f"0{digits(3)} {digits(6)}",
        f"+49 {digits(3)} {digits(7)}",
        f"ext. {digits(4)}",
    ]
    return draw.choice(ways)


def write_entity(kind: str, draw: random.Random, hospital: int) -> str:
    """Return an entity of a type."""
    if kind == "NAME":
        return write_name(draw)
    if kind == "DATE":
        return write_date(draw, hospital)
    if kind == "PHONE":
        return write_phone(draw)
    return draw.choice(PLACES)


def draw_words(draw: random.Random) -> Mapping[str, str]:
    """Return what fills a gap that is no entity."""
    return {
        "complaint": draw.choice(COMPLAINTS),
        "age": str(draw.randint(20, 95)),
        "drug": draw.choice(DRUGS),
        "dose": str(draw.choice([5, 10, 50, 100, 500])),
    }


def write_note(draw: random.Random, hospital: int) -> tuple[str, str]:
    """Return a note of two to five sentences, and where its entities lie."""
    text = ""
    spans: list[str] = []
    # a hospital leaves out some sentences and writes others twice as often
    own = SENTENCES[2 * hospital :] + SENTENCES[:hospital]
    for _ in range(draw.randint(2, 5)):
        sentence = draw.choice(PLAIN) if draw.random() < 0.45 else draw.choice(own)
        if text:
            text += draw.choice([" ", " ", "\n"])
        for part in re.split(r"(\{\w+\})", sentence):
            gap = part[1:-1] if part.startswith("{") else ""
            if gap.isupper():
                entity = write_entity(gap, draw, hospital)
                spans.append(f"{len(text)}:{len(text) + len(entity)}:{gap}")
                text += entity
            elif gap:
                text += draw_words(draw)[gap]
            else:
                text += part
    return text, "|".join(spans) or "none"


def main(folder: Path, sizes: list[int]) -> None:
    """Write a file of so many notes for each hospital."""
    folder.mkdir(parents=True, exist_ok=True)
    for hospital, size in enumerate(sizes):
        draw = random.Random(100 + hospital)
        with (folder / f"{HOSPITALS[hospital]}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["text", "target"])
            for _ in range(size):
                rows.writerow(write_note(draw, hospital))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(size) for size in sys.argv[2].split(",")])
