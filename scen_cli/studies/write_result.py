"""Write the result of a study to files: JSON, CSV, and a picture for a figure."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from scen_cli.studies.paper_tables import StudyResult


def write_result(name: str, result: StudyResult, metadata: dict[str, Any], folder: Path) -> list[Path]:
    """Write `NAME.json`, `NAME.csv`, and `NAME.png` for a figure; return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    json_path, csv_path, picture = (folder / f"{name}.{suffix}" for suffix in ("json", "csv", "png"))
    content = {**metadata, "rows": result.rows, "maps": result.maps}
    json_path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    with csv_path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(result.rows[0]))
        writer.writeheader()
        writer.writerows(result.rows)
    if not name.startswith("fig"):
        return [json_path, csv_path]
    from scen_cli.report import pictures

    pictures.save(pictures.of_study(name, result.rows, result.maps, metadata), picture)
    return [json_path, csv_path, picture]
