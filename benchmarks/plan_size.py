"""Times what `scen edit` does before it trains: `python -m benchmarks.plan_size [--records 30000]`

Reads and plans a file of records about different subjects, on the toy base. Prints seconds and peak memory, and the
memory before, which torch, transformers and the base take.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from benchmarks.measuring import make_parser, peak_megabytes, seconds_of
from scen_cli import Editor, load_base, new_project
from scen_cli.data.entries import read_entries
from scen_cli.demo.world import further_facts


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--records", type=int, default=30_000)
    records = parser.parse_args().records
    facts = further_facts(min(records, 20_000))  # the toy world has no more names
    base = load_base("demo", device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "records.jsonl"
        with file.open("w", encoding="utf-8") as lines:
            for number in range(records):
                fact, again = facts[number % len(facts)], number // len(facts)
                subject = fact.subject + " Junior" * again
                prompt = fact.phrasings[0].replace(fact.subject, subject)
                lines.write(json.dumps({"prompt": prompt, "target": fact.answer, "subject": subject}) + "\n")
        editor = Editor(new_project(Path(folder) / "p", "demo", base=base), base=base)
        before = peak_megabytes()
        seconds = seconds_of(lambda: editor.plan(read_entries(str(file))))
    print(f"{records} records: {seconds:.0f} s, {peak_megabytes():.0f} MB at most, {before:.0f} MB before")


if __name__ == "__main__":
    main()
