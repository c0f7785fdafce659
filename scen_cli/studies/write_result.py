"""A study's findings as files: JSON, CSV, and for figures a picture."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from scen_cli.studies.paper import Finding


def write_finding(name: str, finding: Finding, about: dict[str, Any], folder: Path) -> list[Path]:
    """Write `NAME.json`, `NAME.csv`, and `NAME.png` for a figure; returns what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    as_json, as_csv = folder / f"{name}.json", folder / f"{name}.csv"
    as_json.write_text(json.dumps({**about, "rows": finding.rows, "maps": finding.maps}, indent=1), encoding="utf-8")
    with as_csv.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(finding.rows[0]))
        writer.writeheader()
        writer.writerows(finding.rows)
    if not name.startswith("fig"):
        return [as_json, as_csv]
    from scen_cli.report import pictures

    picture = folder / f"{name}.png"
    pictures.save(pictures.of_study(name, finding.rows, finding.maps, about), picture)
    return [as_json, as_csv, picture]
