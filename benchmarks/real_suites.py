"""Write the suites that `real.sh` edits, from the published files: different subjects, in a seeded order."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import jsonlines

from scen_cli.data.entries import good_records
from scen_cli.data.records import EditRecord
from scen_cli.data.suites import read_prompts

SEED = 0
SUITES = {  # name: the published file, and how many records
    "zsre": ("zsre/ZsRE-test-all.json", 500),
    "counterfact": ("counterfact/counterfact-train.json", 300),
}
NATURAL = "natural/nq-questions.jsonl"


def different_subjects(records: list[EditRecord], count: int) -> list[EditRecord]:
    """Records in a seeded order, one of each subject and with a rephrase."""
    chosen: dict[str, EditRecord] = {}
    for record in random.Random(SEED).sample(records, len(records)):
        if record.subject and record.rephrases:
            chosen.setdefault(record.subject.casefold(), record)
    return list(chosen.values())[:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with the published files")
    parser.add_argument("out", type=Path, help="folder for the suites")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, (file, count) in SUITES.items():
        records = different_subjects(good_records(str(args.data / file)), count)
        with jsonlines.open(args.out / f"{name}.jsonl", "w") as lines:
            lines.write_all(record.as_json() for record in records)
        print(f"{name}.jsonl: {len(records)} records of different subjects")
    questions = read_prompts(args.data / NATURAL)
    with jsonlines.open(args.out / "natural.jsonl", "w") as lines:
        lines.write_all({"prompt": question} for question in dict.fromkeys(questions))
    print(f"natural.jsonl: {len({*questions})} questions")


if __name__ == "__main__":
    main()
