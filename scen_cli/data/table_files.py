"""Reads tables that the package `datasets` exports: CSV, Parquet and Arrow. A row becomes what a JSON record would be.

An empty cell is a field that the record lacks. The other cells of a CSV file are text; in a column of `LIST_FIELDS` a
cell may be a JSON list or object.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from scen_cli.errors import UsageError

if TYPE_CHECKING:
    from datasets import Dataset

TABLES = (".csv", ".parquet", ".arrow")
# Fields that some form has as a list or an object.
LIST_FIELDS = frozenset(
    "rephrases train_rephrases truth portability locality answers rephrase rephrase_prompt ood_rephrase personas "
    "ground_truth target_new target_true target_old alt ans loc_ans mhop_ans A requested_rewrite questions "
    "paraphrase_prompts neighborhood_prompts locality_ground_truth other".split()
)
_FEATHER = b"ARROW1"  # how an Arrow file begins that is no stream: other programs write these
_BATCH = 1000  # rows in memory at a time
# pandas' name of a CSV column without one, and the column in which it stores the row index: no part of a record.
_INDEX_COLUMNS = ("", "__index_level_0__")


def read_table(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, record) of each row; the number counts from 1, without the header of a CSV file.

    Raises:
        UsageError: The file cannot be read as what its name says, a cell cannot be read, or `datasets` is missing.
    """
    is_csv = path.lower().endswith(".csv")
    with TemporaryDirectory(prefix="scen-") as cache:
        number = 0
        for batch in _load(path, cache).with_format("arrow").iter(_BATCH):
            for row in batch.to_pylist():
                number += 1
                try:
                    yield number, {name: value for name, value in _fields(row, is_csv) if name not in _INDEX_COLUMNS}
                except ValueError as error:
                    raise UsageError(f"{Path(path).name}:{number}: {error}") from error


def _load(path: str, cache: str) -> Dataset:
    """A table on disk; `cache` is for a copy of it. No other folder is written, and the hub is not asked."""
    try:
        import datasets
        from datasets.table import InMemoryTable
        from pyarrow import ipc, parquet
    except ImportError as error:
        raise UsageError(f"`{path}` needs the package `datasets`", hint="pip install 'scen-cli[datasets]'") from error
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)  # an error is told by its exception
    ending = Path(path).suffix.lower()
    columns = _check_csv(path) if ending == ".csv" else []
    link = Path(cache) / f"table{ending}"  # `datasets` takes a path for a pattern
    link.symlink_to(Path(path).resolve(strict=True))
    try:
        if ending == ".arrow":
            with link.open("rb") as file:
                if file.read(len(_FEATHER)) == _FEATHER:
                    return datasets.Dataset(InMemoryTable(ipc.open_file(str(link)).read_all()))
            return datasets.Dataset.from_file(str(link))
        if ending == ".parquet":
            if not parquet.read_metadata(str(link)).num_rows:
                raise UsageError(f"`{path}` holds no records")
            return datasets.Dataset.from_parquet(str(link), cache_dir=cache, batch_size=_BATCH)
        # By default it takes the text 1987 for a number, NA for an empty cell, and a first column for row names.
        as_text = datasets.Features(dict.fromkeys(columns, datasets.Value("string")))
        options = {"keep_default_na": False, "na_filter": False, "index_col": False, "header": 0, "names": columns}
        return datasets.Dataset.from_csv(str(link), features=as_text, cache_dir=cache, **options)
    except UsageError:
        raise
    except Exception as error:  # of pyarrow, pandas, or the package's own, around one of these
        reason = str(error.__cause__ or error).strip().split("\n")[0]
        raise UsageError(f"`{path}` cannot be read as a table: {reason}") from error


def _check_csv(path: str) -> list[str]:
    """The columns of a CSV file. Raises `UsageError` for a row with more or fewer cells, which pandas would cut."""
    name, number = Path(path).name, 0
    with Path(path).open(encoding="utf-8-sig", newline="") as file:
        rows = (row for row in csv.reader(file, strict=True) if row)
        try:
            columns = [column.strip() for column in next(rows, [])]
            for number, row in enumerate(rows, 1):
                if len(row) != len(columns):
                    message = f"{name}:{number}: {len(row)} cells, but the header has {len(columns)}"
                    raise UsageError(message, hint='a cell with a comma needs quotes: "a, b"')
        except csv.Error as error:
            raise UsageError(f"{name}:{number + 1}: not valid CSV: {error}") from error
    if not number:
        raise UsageError(f"`{path}` holds no records", hint="expected a header such as prompt,target,subject and rows")
    if len(set(columns)) < len(columns):
        twice = next(column for column in columns if columns.count(column) > 1)
        raise UsageError(f"`{path}` has the column {twice!r} twice")
    return columns


def _fields(row: dict[str, Any], is_csv: bool) -> Iterator[tuple[str, Any]]:
    """The fields of a row that are not empty."""
    for name, value in row.items():
        if is_csv and name in LIST_FIELDS and value.lstrip().startswith(("[", "{")):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"`{name}` is neither text nor a JSON list") from error
        value = None if is_csv and value == "" else _plain(value, name)
        if value is not None:
            yield name, value


def _plain(value: Any, name: str) -> Any:
    """A value as JSON would have it: without empty fields, and dates as text."""
    if isinstance(value, dict):
        return {key: plain for key, item in value.items() if (plain := _plain(item, name)) is not None}
    if isinstance(value, list):
        return [_plain(item, name) for item in value]
    if isinstance(value, date | datetime | time | Decimal):
        return str(value)
    if isinstance(value, float) and math.isnan(value):  # pandas' mark of an empty cell
        return None
    if value is None or isinstance(value, str | int | float):
        return value
    raise ValueError(f"`{name}` holds {type(value).__name__}, which is no text")
