"""predictions.py: the oracle is `plainly`, ten lines over csv.DictReader that know nothing of it."""

import csv
import errno
import json
import os
import pickle
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lrp.study.predictions
from helpers.disks import small_disk
from lrp.errors import LrpError, PredictionsError
from lrp.study.predictions import (
    COLUMNS,
    Prediction,
    read_prediction_rows,
    read_predictions,
    write_predictions,
)

FORMULA = ("=", "+", "-", "@", "\t", "\r")
SIX = "path,true_label,predicted_label,predicted_confidence,true_confidence,correct"
ALL = ",".join(COLUMNS)
GOOD = Prediction(
    "val/n01/a.png", "tench", "tench", 0.75, 0.75, True, "ok", "", 0, 0, {"tench": 0.75, "goldfish": 0.125}, "vgg19", "1f", True
)  # fmt: skip


def plainly(path: Path) -> list[dict]:
    """A table of predictions, read without the package."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        for name, cell in row.items():
            if cell.startswith("'") and cell.lstrip("'")[:1] in FORMULA and cell.lstrip("'"):
                row[name] = cell[1:]
            elif name.endswith(("confidence", "index")):
                row[name] = json.loads(cell) if cell else None
            elif name in ("correct", "restricted"):
                row[name] = {"True": True, "False": False, "": None}[cell]
            elif name == "top5":
                row[name] = json.loads(cell) if cell else {}
    return rows


def plain(row: Prediction) -> dict:
    return {f.name: getattr(row, f.name) for f in fields(row)}


def rounded(row: Prediction) -> Prediction:
    """As ten digits keep it."""
    sure, true = (
        None if c is None else float(f"{c:.10g}") for c in (row.predicted_confidence, row.true_confidence)
    )
    top5 = {label: float(f"{p:.10g}") for label, p in row.top5.items()}
    return replace(row, predicted_confidence=sure, true_confidence=true, top5=top5)


letters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
pieces = st.sampled_from(
    [*FORMULA, "'", "''", '"', '""', ",", "\n", "\r\n", "\ufeff", "=1+1", "\u2028", "é", "🐟", " ", "\\"]
)
texts = st.lists(st.one_of(pieces, st.text(letters, max_size=5)), max_size=4).map("".join)
some = texts.filter(bool)
confidences = st.floats(0, 1)
top5s = st.dictionaries(texts, confidences, max_size=5)
indices = st.none() | st.integers(0, 10**9)


@st.composite
def predictions(draw: st.DrawFn) -> Prediction:
    status = draw(st.sampled_from(["ok", "unreadable", "unmatched"]))
    row = Prediction(draw(some), status=status, error=draw(texts), model=draw(texts), weights=draw(texts))
    row = replace(row, restricted=draw(st.booleans()))
    if status != "unreadable":
        row = replace(row, predicted_label=draw(some), predicted_confidence=draw(confidences))
        row = replace(row, predicted_index=draw(indices), top5=draw(top5s))
    if status != "unmatched":
        row = replace(row, true_label=draw(some), true_index=draw(indices))
    if status == "ok":
        known = row.true_index is not None and row.predicted_index is not None
        correct = row.true_index == row.predicted_index if known else draw(st.booleans())
        row = replace(row, correct=correct, true_confidence=draw(st.none() | confidences))
    return row


tables = st.lists(predictions(), max_size=6, unique_by=lambda row: row.path)


def refusal(path: Path, content: str | bytes) -> str:
    """What reading says, less the folder."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(PredictionsError) as caught:
        read_predictions(path)
    assert issubclass(PredictionsError, LrpError)
    return str(caught.value).replace(f"{path}", path.name)


# There and back -----------------------------------------------------------------------------------------------


@given(tables)
@settings(max_examples=100, deadline=None)
def test_what_is_written_is_read_here_and_by_others(rows: list[Prediction]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.csv"
        write_predictions(path, iter(rows))
        expected = [rounded(row) for row in rows]
        assert read_predictions(path) == expected
        assert plainly(path) == [plain(row) for row in expected]
        with path.open(encoding="utf-8", newline="") as file:  # a spreadsheet runs none of it
            assert not [cell for row in csv.reader(file) for cell in row if cell.startswith(FORMULA)]
        again = Path(folder) / "again.csv"
        write_predictions(again, read_prediction_rows(path))
        assert again.read_bytes() == path.read_bytes()
        assert sorted(os.listdir(folder)) == ["again.csv", "results.csv"]


@pytest.mark.parametrize(
    "text", ["=1+1", "'=1+1", "''=1", "+a", "-a", "@a", "\ta", "\ra", "=", "'", "'a", "''", "1=1", " =1"]
)
def test_formulas_are_neutralised_and_come_back(tmp_path: Path, text: str) -> None:
    row = Prediction(text, text, text, 0.5, 0.5, True, "ok", text, None, None, {text: 0.5}, text, text)
    write_predictions(tmp_path / "r.csv", [row])
    assert read_predictions(tmp_path / "r.csv") == [row]
    assert plainly(tmp_path / "r.csv") == [plain(row)]
    with (tmp_path / "r.csv").open(newline="") as file:
        cells = list(csv.reader(file))[1]
    dangerous = text.lstrip("'").startswith(FORMULA)
    assert cells[0] == cells[1] == cells[2] == cells[7] == cells[11] == cells[12] == "'" * dangerous + text


def test_by_pencil(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    write_predictions(path, [
        GOOD,
        Prediction("val/=1.png", "crane", 'say "cheese", please', 1, 0.00000000041, False, true_index=134, predicted_index=517),
        Prediction("val/n02/b.png", "tench", status="unreadable", error="no photo:\nempty", true_index=0, model="vgg19"),
        Prediction("=c.png", predicted_label="fish", predicted_confidence=1 / 3, status="unmatched", predicted_index=1),
    ])  # fmt: skip
    assert path.read_bytes().decode() == (
        "path,true_label,predicted_label,predicted_confidence,true_confidence,correct,"
        "status,error,true_index,predicted_index,top5,model,weights,restricted\n"
        'val/n01/a.png,tench,tench,0.75,0.75,True,ok,,0,0,"{""tench"": 0.75, ""goldfish"": 0.125}",vgg19,1f,True\n'
        'val/=1.png,crane,"say ""cheese"", please",1,4.1e-10,False,ok,,134,517,,,,False\n'
        'val/n02/b.png,tench,,,,,unreadable,"no photo:\nempty",0,,,vgg19,,False\n'
        "'=c.png,,fish,0.3333333333,,,unmatched,,,1,,,,False\n"
    )
    assert [row.counted for row in read_prediction_rows(path)] == [True, True, False, False]
    assert list(read_predictions(path)[0].top5) == ["tench", "goldfish"]  # likeliest first


def test_an_empty_table_is_its_header(tmp_path: Path) -> None:
    write_predictions(tmp_path / "r.csv", [])
    assert (tmp_path / "r.csv").read_text() == ALL + "\n"
    assert read_predictions(tmp_path / "r.csv") == []


def test_a_row_is_plain_data() -> None:
    assert tuple(f.name for f in fields(Prediction)) == COLUMNS
    assert pickle.loads(pickle.dumps(GOOD)) == GOOD
    assert Prediction("a").top5 is not Prediction("a").top5
    with pytest.raises(AttributeError):
        GOOD.path = "b"  # type: ignore[misc]


def test_neither_torch_nor_numpy_is_needed() -> None:
    code = (
        "import sys, lrp.study.journal, lrp.study.predictions; print({'torch', 'numpy'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_a_file_name_that_is_no_unicode(tmp_path: Path) -> None:
    write_predictions(tmp_path / "r.csv", [replace(GOOD, path=os.fsdecode(b"caf\xe9.png"))])
    assert [row.path for row in read_prediction_rows(tmp_path / "r.csv")] == ["caf\\udce9.png"]


# Other people's files -----------------------------------------------------------------------------------------


def test_the_first_six_columns_are_enough(tmp_path: Path) -> None:
    path = tmp_path / "six.csv"
    path.write_text(
        f"{SIX}\na.png,tench,tench,0.9,0.9,True\nb.png,tench,,,,\nc.png,,crane,0.5,,\n=d.png,x,y,1e-3,.5,0\n"
    )
    assert read_predictions(path) == [
        Prediction("a.png", "tench", "tench", 0.9, 0.9, True),
        Prediction("b.png", "tench", status="unreadable"),
        Prediction("c.png", predicted_label="crane", predicted_confidence=0.5, status="unmatched"),
        Prediction("=d.png", "x", "y", 0.001, 0.5, False),
    ]


@pytest.mark.parametrize(
    ("word", "expected"), [("true", True), ("TRUE", True), ("True", True), ("1", True), ("false", False), ("FALSE", False), ("0", False)]
)  # fmt: skip
def test_correct_as_others_write_it(tmp_path: Path, word: str, expected: bool) -> None:
    (tmp_path / "r.csv").write_text(f"{SIX}\na.png,x,y,0.5,0.5,{word}\n")
    assert read_predictions(tmp_path / "r.csv")[0].correct is expected


def test_mark_line_ends_blank_lines_order_and_unknown_columns(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    header = f'"path",{SIX[5:]},predicted_index,note,true_index,status,note'
    path.write_bytes(
        f'\ufeff{header}\r\n\r\n"a\r\nb.png",x,y,1,0,True,3.0,=1,3,ok,\r\n\r\nc.png,x,y,1,0,0,3.,,,ok,'.encode()
    )
    a, c = read_predictions(path)
    assert a == Prediction("a\r\nb.png", "x", "y", 1, 0, True, true_index=3, predicted_index=3)
    assert c == Prediction("c.png", "x", "y", 1, 0, False, predicted_index=3)


# What is refused, word for word -------------------------------------------------------------------------------

OK = "a.png,x,y,0.5,0.5,True,ok,,3,3,,m,w,False"
CSV_HELP = ". A cell with a comma, a quotation mark or a line break stands in quotation marks, and those inside are doubled"
NEEDED = SIX.replace(",", ", ")
TOP5 = "column top5: expected a JSON object of at most five different labels, each with a number from 0 to 1, got "


def row(**cells: str) -> str:
    """The good row with other cells."""
    values = dict(zip(COLUMNS, OK.split(","), strict=True)) | cells
    return ",".join('"' + c.replace('"', '""') + '"' for c in values.values())


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"path": ""}, "column path: is empty"),
        ({"predicted_confidence": "high"}, "column predicted_confidence: expected a number from 0 to 1, got 'high'"),
        ({"predicted_confidence": "0,5"}, "column predicted_confidence: expected a number from 0 to 1, got '0,5'"),
        ({"predicted_confidence": "nan"}, "column predicted_confidence: expected a number from 0 to 1, got 'nan'"),
        ({"true_confidence": "-inf"}, "column true_confidence: expected a number from 0 to 1, got '-inf'"),
        ({"true_confidence": "0_1"}, "column true_confidence: expected a number from 0 to 1, got '0_1'"),
        ({"true_confidence": " 0.5"}, "column true_confidence: expected a number from 0 to 1, got ' 0.5'"),
        ({"true_confidence": "٣"}, "column true_confidence: expected a number from 0 to 1, got '٣'"),
        ({"true_confidence": "1.5"}, "column true_confidence: expected a number from 0 to 1, got 1.5"),
        ({"true_confidence": "-0.1"}, "column true_confidence: expected a number from 0 to 1, got -0.1"),
        ({"true_confidence": "1e999"}, "column true_confidence: expected a number from 0 to 1, got inf"),
        ({"correct": "yes"}, "column correct: expected True or False, got 'yes'"),
        ({"correct": "Tru"}, "column correct: expected True or False, got 'Tru'"),
        ({"restricted": ""}, "column restricted: expected True or False, got ''"),
        ({"true_index": "-1"}, "column true_index: expected a whole number, 0 or more, got '-1'"),
        ({"true_index": "1.5"}, "column true_index: expected a whole number, 0 or more, got '1.5'"),
        ({"predicted_index": "9" * 19}, f"column predicted_index: expected a whole number, 0 or more, got '{'9' * 19}'"),
        ({"predicted_index": "x" * 999}, f"column predicted_index: expected a whole number, 0 or more, got '{'x' * 116}..."),
        ({"top5": "tench"}, TOP5 + "'tench'"),
        ({"top5": "[]"}, TOP5 + "'[]'"),
        ({"top5": '[["x", 0.5]]'}, TOP5 + "'[[\"x\", 0.5]]'"),
        ({"top5": '"x"'}, TOP5 + "'\"x\"'"),
        ({"top5": '{"x": "1"}'}, TOP5 + "'{\"x\": \"1\"}'"),
        ({"top5": '{"x": true}'}, TOP5 + "'{\"x\": true}'"),
        ({"top5": '{"x": {}}'}, TOP5 + "'{\"x\": {}}'"),
        ({"top5": '{"x": 0.1, "x": 0.2}'}, TOP5 + '\'{"x": 0.1, "x": 0.2}\''),
        ({"top5": '{"x": NaN}'}, TOP5 + "{'x': nan}"),
        ({"top5": '{"x": 2}'}, TOP5 + "{'x': 2.0}"),
        ({"top5": json.dumps(dict.fromkeys("abcdef", 0))}, TOP5 + "{'a': 0.0, 'b': 0.0, 'c': 0.0, 'd': 0.0, 'e': 0.0, 'f': 0.0}"),
        ({"top5": f'{{"x": {"9" * 400}}}'}, TOP5 + f"'{{\"x\": {'9' * 110}..."),
        ({"top5": f'{{"x": {"9" * 5000}}}'}, TOP5 + f"'{{\"x\": {'9' * 110}..."),
        ({"top5": "[" * 100_000}, TOP5 + f"'{'[' * 116}..."),
        ({"status": "fine"}, "column status: expected ok, unreadable or unmatched, got 'fine'"),
        ({"status": ""}, "column status: expected ok, unreadable or unmatched, got ''"),
        ({"predicted_index": "4"}, "column correct: is True, but true_index 3 and predicted_index 4 differ"),
        ({"correct": "False"}, "column correct: is False, but true_index 3 and predicted_index 3 are the same"),
        ({"correct": ""}, "column correct: must not be empty where status is ok"),
        ({"true_label": ""}, "column true_label: must not be empty where status is ok"),
        ({"predicted_label": ""}, "column predicted_label: must not be empty where status is ok"),
        ({"predicted_confidence": ""}, "column predicted_confidence: must not be empty where status is ok"),
        ({"status": "unreadable"}, "column predicted_label: must be empty where status is unreadable, got 'y'"),
        (
            {"status": "unreadable", "predicted_label": "", "predicted_confidence": "", "true_confidence": "", "correct": "",
             "predicted_index": "0"},
            "column predicted_index: must be empty where status is unreadable, got 0",
        ),
        ({"status": "unmatched"}, "column true_label: must be empty where status is unmatched, got 'x'"),
        (
            {"status": "unmatched", "true_label": "", "true_confidence": "", "true_index": "", "correct": "0"},
            "column correct: must be empty where status is unmatched, got False",
        ),
        (
            {"status": "unmatched", "true_label": "", "true_confidence": "", "true_index": "", "correct": "",
             "predicted_confidence": ""},
            "column predicted_confidence: must not be empty where status is unmatched",
        ),
    ],
)  # fmt: skip
def test_a_cell_is_refused(tmp_path: Path, cells: dict[str, str], message: str) -> None:
    content = f'{ALL}\n"a\nb",{OK[6:]}\n{row(path="c", **cells) if "path" not in cells else row(**cells)}\n'
    assert refusal(tmp_path / "r.csv", content) == f"r.csv: line 4, {message}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "r.csv: is empty; expected a table of predictions with a header line"),
        ("\ufeff", "r.csv: is empty; expected a table of predictions with a header line"),
        ("\n", f"r.csv: line 1: expected the first six columns {NEEDED}; got a blank line"),
        ("path,label\n", f"r.csv: line 1: expected the first six columns {NEEDED}; got 'path, label'"),
        (SIX[:-8] + "\n", f"r.csv: line 1: expected the first six columns {NEEDED}; got '{NEEDED[:-9]}'"),
        ("x," + SIX, f"r.csv: line 1: expected the first six columns {NEEDED}; got 'x, {NEEDED[:-9]}'"),
        (SIX.replace(",", ";"), f"r.csv: line 1: expected the first six columns {NEEDED}; got '{SIX.replace(',', ';')}'"),
        (f"{SIX},path,model,model", "r.csv: line 1: columns that come twice: path, model"),
        (f"{SIX}\na,x,y,0.5,0.5", "r.csv: line 2: expected 6 cells, as in the header, got 5; a text with a comma stands in quotation marks"),
        (f"{ALL}\n{OK},", "r.csv: line 2: expected 14 cells, as in the header, got 15; a text with a comma stands in quotation marks"),
        (f'{ALL}\n"a\nb"{OK[5:]}\n\na,', "r.csv: line 5: expected 14 cells, as in the header, got 2; a text with a comma stands in quotation marks"),
        (f'{ALL}\n{OK}\n"a\n.png,x', f"r.csv: line 3: is no row of a CSV (unexpected end of data){CSV_HELP}"),
        (f'{ALL}\n{OK}\n"a"b.png,x', f"r.csv: line 3: is no row of a CSV (',' expected after '\"'){CSV_HELP}"),
        (f"{ALL}\n{'a' * 200_000}", f"r.csv: line 2: is no row of a CSV (field larger than field limit (131072)){CSV_HELP}"),
        (f"{ALL}\n{OK}\n\nb{OK}\n{OK}", "r.csv: line 5, column path: 'a.png' was there before, in line 2"),
        (f'{ALL}\n"a\nb"{OK[5:]}\nc{OK}\n"a\nb"{OK[5:]}', "r.csv: line 5, column path: 'a\\nb' was there before, in line 2"),
        (f"{ALL}\n{OK}\nb\xe9{OK}".encode("latin-1"), "r.csv: line 3: byte 0xE9 is not UTF-8; save the table as CSV in UTF-8"),
        (ALL.encode("utf-16"), "r.csv: line 1: holds a NUL byte; damaged, or no CSV"),
        (b"\xff\xfea", "r.csv: line 1: byte 0xFF is not UTF-8; save the table as CSV in UTF-8"),
        (f"{ALL}\n{OK}\na\0{OK}", "r.csv: line 3: holds a NUL byte; damaged, or no CSV"),
        (b"x" * 2**24, "r.csv: line 1: is longer than 16 MiB; this is no CSV"),
    ],
)  # fmt: skip
def test_a_file_is_refused(tmp_path: Path, content: str | bytes, message: str) -> None:
    assert refusal(tmp_path / "r.csv", content) == message


def test_a_carriage_return_within_a_cell_is_no_line(tmp_path: Path) -> None:
    write_predictions(tmp_path / "r.csv", [replace(GOOD, path="a\r\rb"), replace(GOOD, path="c\nd")])
    content = (tmp_path / "r.csv").read_bytes() + b"e,"
    assert refusal(tmp_path / "r.csv", content).startswith("r.csv: line 5: expected 14 cells")


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name, message in (
        ("none.csv", "cannot be read: No such file or directory"),
        (".", "cannot be read: not a regular file"),
        ("fifo", "cannot be read: not a regular file"),
    ):
        with pytest.raises(PredictionsError) as caught:
            read_predictions(tmp_path / name)
        assert str(caught.value) == f"{tmp_path / name}: {message}"


def test_two_paths_of_one_hash_are_two_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lrp.study.predictions, "hash", lambda _: 0, raising=False)
    rows = [replace(GOOD, path=name) for name in "abc"]
    write_predictions(tmp_path / "r.csv", rows)
    assert read_predictions(tmp_path / "r.csv") == rows
    assert refusal(tmp_path / "r.csv", f"{SIX}\na,x,x,1,1,1\nb,x,x,1,1,1\nc,x,x,1,1,1\nb,x,x,1,1,1") == (
        "r.csv: line 5, column path: 'b' was there before, in line 3"
    )


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_damaged_table_is_read_or_refused(data: st.DataObject) -> None:
    """Whatever bytes come: rows that can be written again, or a PredictionsError on one line."""
    content = bytearray(f"{ALL}\n{OK}\n{row(path='b', top5=json.dumps({'x': 0.5}))}\n".encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(
            st.binary(max_size=2) | st.sampled_from([b'"', b",", b"\n", b"'"])
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.csv"
        path.write_bytes(content)
        try:
            rows = read_predictions(path)
        except PredictionsError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
        else:
            write_predictions(path, rows)
            assert read_predictions(path) == [rounded(row) for row in rows]


# Whole or not at all ------------------------------------------------------------------------------------------


def failing(error: BaseException) -> Iterator[Prediction]:
    for number in range(1500):
        yield replace(GOOD, path=f"{number}.png")
    raise error


@contextmanager
def unharmed(folder: Path) -> Iterator[Path]:
    """A table that is there before, and is the only thing there, as it was, afterwards."""
    path = folder / "r.csv"
    path.write_text("before")
    yield path
    assert [(p.name, p.read_text()) for p in folder.iterdir()] == [("r.csv", "before")]


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "the photo's disk"), KeyboardInterrupt(), ZeroDivisionError("bug")]
)
def test_what_the_rows_raise_is_passed_on(tmp_path: Path, error: BaseException) -> None:
    with unharmed(tmp_path) as path, pytest.raises(type(error)) as caught:
        write_predictions(path, failing(error))
    assert caught.value is error


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (replace(GOOD, predicted_confidence=float("nan")), "column predicted_confidence: expected a number from 0 to 1, got nan"),
        (replace(GOOD, correct=False), "column correct: is False, but true_index 0 and predicted_index 0 are the same"),
        (replace(GOOD, true_index=-1), "column true_index: expected a whole number, 0 or more, got -1"),
        (replace(GOOD, error="a\0b"), "column error: holds a NUL character"),
        (replace(GOOD, error="a" * 131_073), "column error: 131073 characters are more than 131072"),
        (Prediction("a.png"), "column true_label: must not be empty where status is ok"),
    ],
)  # fmt: skip
def test_a_row_that_could_not_be_read_is_not_written(tmp_path: Path, wrong: Prediction, message: str) -> None:
    with unharmed(tmp_path) as path, pytest.raises(PredictionsError) as caught:
        write_predictions(path, [replace(GOOD, path="first"), wrong])
    assert str(caught.value) == f"{path}: row 2, {message}"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none/r.csv", "No such file or directory"),
        ("file/r.csv", "Not a directory"),
        ("folder", "Is a directory"),
        ("x" * 300, "File name too long"),
    ],
)
def test_places_where_nothing_can_be_written(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(PredictionsError) as caught:
        write_predictions(tmp_path / name, [GOOD])
    assert str(caught.value) == f"{tmp_path / name}: cannot be written: {message}"
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_full_disk() -> None:
    rows = [replace(GOOD, path=f"{number}.png") for number in range(5000)]
    with small_disk() as disk:
        with unharmed(disk) as path, pytest.raises(PredictionsError) as caught:
            write_predictions(path, rows)
        assert str(caught.value) == f"{path}: cannot be written: No space left on device"
        write_predictions(path, rows[:300])
        assert read_predictions(path) == rows[:300]


def test_memory_does_not_grow_with_the_rows_written(tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        write_predictions(tmp_path / "r.csv", (replace(GOOD, path=f"{n}.jpg") for n in range(20_000)))
        assert tracemalloc.get_traced_memory()[1] < 2_000_000  # all at once would take 9
    finally:
        tracemalloc.stop()


def test_memory_hardly_grows_with_the_rows_read(tmp_path: Path) -> None:
    """In a process of its own, by what the system counts: tracemalloc makes it four times slower."""
    path, count = tmp_path / "r.csv", 200_000
    write_predictions(path, [])
    with path.open("a") as file:
        file.writelines(
            f"data/val/n01440764/{n}.jpg,x,y,0.5,0.25,False,ok,,3,4,,vgg19,1f,False\n" for n in range(count)
        )
    code = """if True:
        import resource, sys
        from lrp.study.predictions import read_prediction_rows
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(sum(row.counted for row in read_prediction_rows(sys.argv[1])))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"""
    done = subprocess.run([sys.executable, "-c", code, path], check=True, capture_output=True, text=True)
    rows, kilobytes = map(int, done.stdout.split())
    assert rows == count and kilobytes < 20_000
