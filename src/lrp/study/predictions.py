"""The table of predictions, one row per image: `lrp evaluate` writes it, and every later step reads it.

Standard library only. The journal with which a killed run is resumed is in `journal.py`.
"""

import csv
import json
import math
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from lrp.errors import PredictionsError, os_errors
from lrp.storage.atomic import write_whole
from lrp.study.csv_lines import csv_line, spreadsheet_safe, spreadsheet_text

COLUMNS = (
    "path", "true_label", "predicted_label", "predicted_confidence", "true_confidence", "correct",
    "status", "error", "true_index", "predicted_index", "top5", "model", "weights", "restricted",
)  # fmt: skip
_NEEDED = COLUMNS[:6]
_TEXTS = ("path", "true_label", "predicted_label", "error", "model", "weights")

# For each status: columns that a row must have, and columns that must be empty.
_PRESENT = {
    "ok": ("true_label", "predicted_label", "predicted_confidence", "correct"),
    "unreadable": (),
    "unmatched": ("predicted_label", "predicted_confidence"),
}
_ABSENT = {
    "ok": (),
    "unreadable": (
        "predicted_label", "predicted_confidence", "true_confidence", "correct", "predicted_index", "top5",
    ),
    "unmatched": ("true_label", "true_confidence", "correct", "true_index"),
}  # fmt: skip

_A_CONFIDENCE = "expected a number from 0 to 1"
_A_TOP5 = "expected a JSON object of at most five different labels, each with a number from 0 to 1"
_AN_INDEX = "expected a whole number, 0 or more"

_NUMBER = re.compile(
    r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
)  # stricter than float(), which accepts "nan", "1_0" and blanks
_WHOLE = re.compile(r"([0-9]{1,18})(\.0*)?")  # pandas writes "3.0" if some cells of a column are empty

_from_json = json.JSONDecoder(
    object_pairs_hook=tuple
).decode  # objects as lists of pairs, to detect a repeated label
_as_json = json.JSONEncoder(ensure_ascii=False).encode
_LONGEST_CELL = csv.field_size_limit()
_LONGEST_LINE = 16 * 1024 * 1024  # bytes; limits the memory for a file without line ends


@dataclass(frozen=True, slots=True)
class Prediction:
    """One model's prediction for one image. Its fields are the columns, in their order."""

    path: str
    """The data folder as the user gave it, joined with the path below it; separated by "/"."""
    true_label: str = ""
    """"" if the image's folder names no class of the model."""
    predicted_label: str = ""
    """"" if the file could not be read."""
    predicted_confidence: float | None = None
    """Softmax probability, 0 to 1, of the predicted class. All probabilities have ten digits in the CSV."""
    true_confidence: float | None = None
    correct: bool | None = None
    """Whether the indices are equal. None: there is no prediction, or no true class."""
    status: str = "ok"
    """"ok"; "unreadable": not predicted, see `error`; "unmatched": predicted, but without a known true class."""
    error: str = ""
    true_index: int | None = None
    predicted_index: int | None = None
    top5: Mapping[str, float] = field(default_factory=dict)
    """Label -> probability of the at most five most probable classes, sorted. In the CSV a JSON object."""
    model: str = ""
    weights: str = ""
    """Fingerprint of the model's weights."""
    restricted: bool = False
    """Whether only the data set's classes could be predicted, instead of all classes of the model."""

    @property
    def counted(self) -> bool:
        """Whether it counts in averages. In rows read from a file, `correct`, both labels and
        `predicted_confidence` are then not None."""
        return self.status == "ok"


def prediction_fault(row: Prediction) -> tuple[str, str] | None:
    """(column, reason) of the first column that is inconsistent with the rest of its row. None: the row is valid.

    Checked before a row is written, so that every written table can be read.
    """
    if not row.path:
        return "path", "is empty"
    for column in _TEXTS:
        if "\0" in getattr(row, column):
            return column, "holds a NUL character"
    if row.status not in _PRESENT:
        return "status", f"expected ok, unreadable or unmatched, got {_shown(row.status)}"
    for column in ("predicted_confidence", "true_confidence"):
        value = getattr(row, column)
        if value is not None and not 0 <= value <= 1:  # also rejects NaN
            return column, f"{_A_CONFIDENCE}, got {value}"
    if len(row.top5) > 5 or not all(0 <= value <= 1 for value in row.top5.values()):
        return "top5", f"{_A_TOP5}, got {_shown(dict(row.top5))}"
    for column in ("true_index", "predicted_index"):
        if (getattr(row, column) or 0) < 0:
            return column, f"{_AN_INDEX}, got {getattr(row, column)}"
    for column in _ABSENT[row.status]:
        if not _nothing(value := getattr(row, column)):
            return column, f"must be empty where status is {row.status}, got {_shown(value)}"
    for column in _PRESENT[row.status]:
        if _nothing(getattr(row, column)):
            return column, f"must not be empty where status is {row.status}"
    if row.correct is not None and row.true_index is not None and row.predicted_index is not None:
        same = row.true_index == row.predicted_index
        if row.correct != same:
            return "correct", (
                f"is {row.correct}, but true_index {row.true_index} and predicted_index {row.predicted_index} "
                f"{'are the same' if same else 'differ'}"
            )
    return None


def write_predictions(path: Path | str, rows: Iterable[Prediction]) -> None:
    """Write the table atomically. Consumes the rows one by one, with at most a thousand in memory.

    File names that are not valid Unicode are written with backslashes: 'caf\\udce9.png'. Text that a spreadsheet
    would run as a formula is prefixed with an apostrophe, which reading removes.

    Raises:
        PredictionsError: a row is inconsistent (see `prediction_fault`), or the file cannot be written. A previous file at
            `path` is then unchanged. Repeated paths are detected only by reading.
    """
    path = Path(path)
    lines = (_line(path, number, row) for number, row in enumerate(rows, 1))
    write_whole(path, _joined([",".join(COLUMNS) + "\n"], lines), PredictionsError)


def read_predictions(path: Path | str) -> list[Prediction]:
    """All rows of a table, in its order. See `read_prediction_rows` for the accepted format and the errors."""
    return list(read_prediction_rows(path))


def read_prediction_rows(path: Path | str) -> Iterator[Prediction]:
    """Yield the rows of a table, each validated. Keeps about 80 bytes per row to detect a repeated path.

    The first six columns are required, in their order; the others are optional and in any order; unknown ones are
    ignored. A missing column has its default; without a column `status`, a row without a predicted label is
    "unreadable", one without a true label "unmatched". Without indices the value of `correct` is not checked.

    Raises:
        PredictionsError: the file cannot be read or is no such table. The message names the column and the line of
            the file (for a row of several lines the first).
    """
    path = Path(path)
    seen: set[int] = set()
    for line, row in _numbered(path):
        if (
            hash(row.path) in seen
        ):  # its line is searched only now: storing all line numbers would take memory
            first = next((n for n, other in _numbered(path) if other.path == row.path), line)
            if first < line:
                raise _wrong(path, line, "path", f"{_shown(row.path)} was there before, in line {first}")
        seen.add(hash(row.path))
        yield row


def counted_predictions(predictions: Iterable[Prediction]) -> list[Prediction]:
    """The rows that count in averages: those with status "ok".

    Raises:
        PredictionsError: such a row has no class, no confidence, or no value for `correct`.
    """
    rows = [row for row in predictions if row.counted]
    for row in rows:
        for column in ("true_label", "predicted_label", "predicted_confidence", "correct"):
            if getattr(row, column) in ("", None):
                raise PredictionsError(
                    f"{row.path}: expected a row with status ok to have all of true_label, predicted_label, "
                    f"predicted_confidence and correct, got no {column}; make the file again with `lrp evaluate`."
                )
    return rows


def prediction_labels(predictions: Iterable[Prediction]) -> list[str]:
    """The true and predicted labels of these rows, sorted by index if known, then by name."""
    index: dict[str, float] = {}
    for row in predictions:
        for label, number in ((row.true_label, row.true_index), (row.predicted_label, row.predicted_index)):
            index[label] = min(index.get(label, math.inf), math.inf if number is None else number)
    index.pop("", None)
    return sorted(index, key=lambda label: (index[label], label))


def prediction_table_paths(models: Sequence[str], folder: Path | str) -> list[Path]:
    """The path of each model's table; different models always get different paths."""
    short = [prediction_table_stem(model) for model in models]
    long = [model.replace("/", "_").replace(":", "_") for model in models]
    return [
        Path(folder, f"{s if short.count(s) == 1 else n}_results.csv")
        for s, n in zip(short, long, strict=True)
    ]


def prediction_table_stem(model: str) -> str:
    """A model's name as its table's name begins: "timm:resnet18.a1_in1k" -> "timm_resnet18.a1_in1k"."""
    return Path(model).name.replace(":", "_")


# Writing ------------------------------------------------------------------------------------------------------


def _joined(*parts: Iterable[str]) -> Iterator[str]:
    """The lines, joined into blocks of a thousand."""
    for lines in map(iter, parts):
        while chunk := "".join(islice(lines, 1000)):
            yield chunk


def _line(path: Path, number: int, row: Prediction) -> str:
    if wrong := prediction_fault(row):
        raise PredictionsError(f"{path}: row {number}, column {wrong[0]}: {wrong[1]}")
    cells = [_cell(column, getattr(row, column)) for column in COLUMNS]
    if (longest := max(map(len, cells))) > _LONGEST_CELL:
        column = COLUMNS[[len(cell) for cell in cells].index(longest)]
        raise PredictionsError(
            f"{path}: row {number}, column {column}: {longest} characters are more than {_LONGEST_CELL}"
        )
    return csv_line(cells)


def _cell(column: str, value: Any) -> str:
    if column in _TEXTS:
        return spreadsheet_safe(value)
    if column == "top5":
        return "{" + ", ".join([f"{_as_json(k)}: {p:.10g}" for k, p in value.items()]) + "}" if value else ""
    if value is None:
        return ""
    # Ten digits, not six decimals: the highest confidences differ only beyond 0.999999, and 1e-9 is a loss of 20.7.
    return f"{value:.10g}" if column.endswith("confidence") else str(value)


# Reading ------------------------------------------------------------------------------------------------------


def _numbered(path: Path) -> Iterator[tuple[int, Prediction]]:
    """(line number, row); of a row of several lines the first line."""
    with os_errors(path, "read", PredictionsError):
        if not stat.S_ISREG(path.stat().st_mode):  # opening a FIFO would block forever
            raise PredictionsError(f"{path}: cannot be read: not a regular file")
        reader = csv.reader(_lines(path), strict=True)
        columns: list[str] = []
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                raise PredictionsError(
                    f"{path}: line {line}: is no row of a CSV ({error}). A cell with a comma, a quotation mark or "
                    "a line break stands in quotation marks, and those inside are doubled"
                ) from error
            if not columns:
                columns = _header(path, line, cells)
            elif cells:  # empty for a blank line
                yield line, _row(path, line, columns, cells)
        if not columns:
            raise PredictionsError(f"{path}: is empty; expected a table of predictions with a header line")


def _lines(path: Path) -> Iterator[str]:
    """Lines ended only by \\n, as editors count them: a carriage return inside a cell does not start a line."""
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(_LONGEST_LINE):
            number += 1
            if b"\0" in raw:
                raise PredictionsError(f"{path}: line {number}: holds a NUL byte; damaged, or no CSV")
            if len(raw) == _LONGEST_LINE:
                raise PredictionsError(f"{path}: line {number}: is longer than 16 MiB; this is no CSV")
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise PredictionsError(
                    f"{path}: line {number}: byte 0x{error.object[error.start]:02X} is not UTF-8; save the table as "
                    "CSV in UTF-8"
                ) from error
            if line:  # empty if the file has only a byte-order mark
                yield line


def _header(path: Path, line: int, cells: list[str]) -> list[str]:
    if tuple(cells[:6]) != _NEEDED:
        got = _shown(", ".join(cells[:6])) if cells else "a blank line"
        needed = ", ".join(_NEEDED)
        raise PredictionsError(f"{path}: line {line}: expected the first six columns {needed}; got {got}")
    if twice := [column for column in COLUMNS if cells.count(column) > 1]:
        raise PredictionsError(f"{path}: line {line}: columns that come twice: {', '.join(twice)}")
    return cells


def _row(path: Path, line: int, columns: list[str], cells: list[str]) -> Prediction:
    if len(cells) != len(columns):
        raise PredictionsError(
            f"{path}: line {line}: expected {len(columns)} cells, as in the header, got {len(cells)}; a text with a "
            "comma stands in quotation marks"
        )
    values: dict[str, Any] = {}
    for column, cell in zip(columns, cells, strict=True):
        if column in _READ:
            try:
                values[column] = _READ[column](cell)
            except ValueError as error:
                raise _wrong(path, line, column, f"{error}, got {_shown(cell)}") from error
    if "status" not in values:
        predicted, known = values["predicted_label"], values["true_label"]
        values["status"] = "unreadable" if not predicted else "ok" if known else "unmatched"
    row = Prediction(**values)
    if wrong := prediction_fault(row):
        raise _wrong(path, line, *wrong)
    return row


def _wrong(path: Path, line: int, column: str, what: str) -> PredictionsError:
    return PredictionsError(f"{path}: line {line}, column {column}: {what}")


def _confidence(cell: str) -> float | None:
    if cell and not _NUMBER.fullmatch(cell):
        raise ValueError(_A_CONFIDENCE)
    return float(cell) if cell else None


def _index(cell: str) -> int | None:
    whole = _WHOLE.fullmatch(cell)
    if cell and not whole:
        raise ValueError(_AN_INDEX)
    return int(whole[1]) if whole else None


def _correct(cell: str) -> bool | None:
    return _boolean(cell) if cell else None


def _boolean(cell: str) -> bool:
    if cell.lower() not in ("true", "false", "1", "0"):
        raise ValueError("expected True or False")
    return cell.lower() in ("true", "1")


def _top5(cell: str) -> dict[str, float]:
    try:
        pairs = _from_json(cell) if cell else ()
        ours = isinstance(pairs, tuple) and all(type(p) in (int, float) for _, p in pairs)
        top5 = {label: float(p) for label, p in pairs} if ours else {}
    except (ValueError, RecursionError, OverflowError):
        ours = False
    if not ours or len(top5) < len(pairs):
        raise ValueError(_A_TOP5)
    return top5


_READ: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(_TEXTS, spreadsheet_text),
    "predicted_confidence": _confidence, "true_confidence": _confidence, "correct": _correct, "status": str,
    "true_index": _index, "predicted_index": _index, "top5": _top5, "restricted": _boolean,
}  # fmt: skip


def _nothing(value: object) -> bool:
    return value is None or value == "" or value == {}


def _shown(value: object) -> str:
    """A value for an error message: quoted, on one line, truncated."""
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
