"""Predict as a filter: a pipe answered while it is written, and tables answered as tables."""

import csv
import gzip
import io
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest
from hydra import compose, initialize_config_dir

from src.errors import InputError
from src.predict import predict_texts
from src.serving import inputs
from src.train import train
from tests.shared import Answer

ROOT = Path(__file__).parents[2]
TINY = [
    *("gpt.weights=random", "gpt.n_layer=2", "gpt.n_head=2", "gpt.n_embd=16", "gpt.context_length=64"),
    *("trainer.max_epochs=1", "trainer.accelerator=cpu", "data=table", "data.max_length=32"),
    *("data.split=deduplicated", "logger=none", "cache=off", "task.pooling=last_nonpad"),
]
HAM, SPAM = "see you at lunch in the usual place", "claim your big prize in our shop now"
ADDED = ["predicted", "probability", "p_=ham", "p_spam"]
pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules after import:RuntimeWarning")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run over spam and a class that a spreadsheet would take for a formula."""
    home = tmp_path_factory.mktemp("predict")
    rows = [f"{label},{text} {chr(97 + i)}" for i in range(20) for label, text in (("=ham", HAM), ("spam", SPAM))]
    (home / "messages.csv").write_text("label,text\n" + "\n".join(rows) + "\n")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", [*TINY, f"data.path={home / 'messages.csv'}", f"runs={home / 'runs'}"])
    return train(cfg).folder


@pytest.fixture
def predict(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> Callable[..., Answer]:
    """python -m src.predict run=<the run>, in this process; what it writes as Latin-1, whatever bytes these are."""

    def call(*arguments: str, stdin: bytes = b"") -> Answer:
        capfdbinary.readouterr()
        with (
            monkeypatch.context() as patch,
            open(os.dup(1), "w", encoding="utf-8", newline="") as out,
            open(os.dup(2), "w", encoding="utf-8") as error,
        ):
            patch.setattr(sys, "argv", ["predict", f"run={run}", *arguments])
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", error)
            with pytest.raises(SystemExit) as exit:
                runpy.run_module("src.predict", run_name="__main__", alter_sys=True)
        written, told = capfdbinary.readouterr()
        return Answer(int(exit.value.code or 0), written.decode("latin-1"), told.decode())

    return call


@pytest.fixture(scope="module")
def expected(run: Path) -> Callable[[str], list[Any]]:
    """The cells that are added to a row of this message."""

    def cells(text: str) -> list[Any]:
        (answer,) = predict_texts(str(run), [text])
        return [answer["label"], answer["probability"], *answer["probabilities"].values()]

    return cells


@pytest.mark.slow
def test_a_pipe_is_answered_while_it_is_written(run):
    command = [sys.executable, "-m", "src.predict", f"run={run}", "labels_only=true"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        for line in (b"claim your prize\n", b"lunch\nprize\n"):
            child.stdin.write(line)
            child.stdin.flush()
            for _ in range(line.count(b"\n")):
                assert child.stdout.readline() in (b"=ham\n", b"spam\n")
        child.stdin.close()
        assert child.wait(60) == 0


@pytest.mark.parametrize("reads", [[b"a\nbc", b"d\n", b"e"], [b"a\nbcd\ne\n"], [b"a", b"\n", b"bcd", b"\ne"]])
def test_lines_that_come_in_parts_are_whole(reads):
    class Pipe(io.BytesIO):
        def read1(self, size: int | None = -1) -> bytes:
            return reads.pop(0) if reads else b""

    assert [line for block in inputs.blocks(Pipe()) for line in block] == [b"a", b"bcd", b"e"]


def test_a_csv_is_answered_as_the_same_table(predict, expected, tmp_path):
    rows = [["1", "win, now", "=1+1"], ["2", 'a "b"\nc', ""], ["3", "", "x"], ["4", "né", "y"]]
    with (file := tmp_path / "m.csv").open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([["id", "text", "note"], *rows])
    answer = predict(f"file={file}", "text_column=text")
    assert (answer.status, answer.error) == (1, f"error: {file}, line 5: the message is empty\n")
    header, *found = csv.reader(io.StringIO(answer.out.encode("latin-1").decode(), newline=""))
    assert header == ["id", "text", "note", *ADDED]
    assert [row[:3] for row in found] == rows
    assert found[2][3:] == [""] * 4
    for row in (found[0], found[1], found[3]):
        label, *numbers = expected(row[1])
        assert row[3] == ("'=ham" if label == "=ham" else label)  # which no spreadsheet runs
        assert list(map(float, row[4:])) == pytest.approx(numbers, abs=1e-5)
    assert predict(f"file={file}", "text_column=text", f"to={tmp_path / 'out.csv'}").out == ""
    assert (tmp_path / "out.csv").read_bytes().decode("latin-1") == answer.out


def test_a_row_with_too_many_fields_is_left_out(predict, tmp_path):
    (file := tmp_path / "m.csv").write_text("text,id\nlunch,1\nwin, now,2\nprize\n")
    answer = predict(f"file={file}", "text_column=text", "labels_only=true")
    assert (answer.status, "line 3: 3 fields" in answer.error) == (1, True)
    assert [line.split(",")[:2] for line in answer.out.splitlines()] == [["text", "id"], ["lunch", "1"], ["prize", ""]]


@pytest.mark.parametrize(
    ("content", "column", "start"),
    [
        ('a "b"\tx\nc\ty\n', "0", ['a "b"\tx\t', "c\ty\t"]),
        ('text\tn\n"a\tb"\t1\n', "text", ["text\tn\tpredicted", '"a\tb"\t1\t']),
    ],
    ids=["plain, without a header", "quoted"],
)
def test_a_tsv_is_written_as_it_was(predict, tmp_path, content, column, start):
    (file := tmp_path / "m.tsv").write_text(content)
    answer = predict(f"file={file}", f"text_column={column}", "labels_only=true")
    assert answer.status == 0
    assert [line.startswith(given) for line, given in zip(answer.out.splitlines(), start, strict=True)] == [True, True]


@pytest.mark.parametrize("how", ["file", "gz", "stdin"])
def test_json_lines_keep_their_keys(predict, expected, tmp_path, how):
    content = (
        b'\xef\xbb\xbf{"n": 1, "body": "win"}\n{"body"\n\n{"n": [2], "body": null}\n{"n": 3}\n[1]\n{"body": "\xc3\xa9"}'
    )
    (file := tmp_path / ("m.jsonl.gz" if how == "gz" else "m.jsonl")).write_bytes(
        gzip.compress(content) if how == "gz" else content
    )
    given = [] if how == "stdin" else [f"file={file}"]
    answer = predict(*given, "text_column=body", stdin=content if how == "stdin" else b"")
    assert answer.status == 1
    faults = answer.error.splitlines()
    assert [fault.partition(", line ")[2].split(":")[0] for fault in faults] == ["2", "3", "4", "5", "6"]
    rows = [json.loads(line) for line in answer.out.encode("latin-1").decode().splitlines()]
    assert [{key: row[key] for key in row if key not in ADDED} for row in rows] == [
        {"n": 1, "body": "win"},
        {"n": [2], "body": None},
        {"body": "é"},
    ]
    assert [row["predicted"] for row in rows] == [expected("win")[0], None, expected("é")[0]]


def test_a_parquet_file_is_answered_as_one(predict, expected, tmp_path):
    table = pandas.DataFrame({"when": pandas.to_datetime(["2020-01-01"] * 3), "text": ["win", None, "lunch"]})
    table.to_parquet(file := tmp_path / "m.parquet")
    answer = predict(f"file={file}", "text_column=text", f"to={tmp_path / 'out.parquet'}")
    assert (answer.status, answer.error) == (1, f"error: {file}, row 2: the message is empty\n")
    found = pandas.read_parquet(tmp_path / "out.parquet")
    pandas.testing.assert_frame_equal(found[["when", "text"]], table)
    assert found["predicted"][0] == expected("win")[0]
    assert list(found.loc[2, ADDED[1:]]) == pytest.approx(expected("lunch")[1:], abs=1e-5)
    assert found.loc[1, ADDED].isna().all()
    by_stdout = predict(f"file={file}", "text_column=text").out.encode("latin-1")
    assert by_stdout == (tmp_path / "out.parquet").read_bytes()


def test_lines_that_fail_leave_the_rest_answered(predict, tmp_path):
    content = b"win\n\xe9\n" + b"lunch\n" * 600 + b" \nprize"
    answer = predict("format=jsonl", "labels_only=true", stdin=content)
    assert (answer.status, len(answer.out.splitlines())) == (1, 602)
    assert json.loads(answer.out.splitlines()[0]).keys() == {"label"}
    assert [line.split(":")[1] for line in answer.error.splitlines()] == [" stdin, line 2", " stdin, line 603"]


def test_nothing_is_written_to_a_file_where_nothing_could_be_read(predict, tmp_path):
    (file := tmp_path / "m.csv").write_text("text,id\n,1\n")
    assert predict(f"file={file}", "text_column=text", f"to={tmp_path / 'out.csv'}").status == 2
    assert [path.name for path in tmp_path.iterdir()] == ["m.csv"]


@pytest.mark.parametrize(
    ("name", "content", "given", "said"),
    [
        ("m.csv", "text\nwin\n", ("text_column=body",), "set text_column"),
        ("m.csv", "text,predicted\nwin,1\n", ("text_column=text",), "a column predicted"),
        ("m.csv", "text\n", ("text_column=text",), "holds no message"),
        ("m.csv", "", ("text_column=text",), "is empty"),
        ("m.csv", 'text\n"win\n', ("text_column=text",), "line 2"),
        ("m.txt", "win\n", ("text_column=text",), "not .txt"),
        ("m.csv", "text\nwin\n", ("text_column=text", "to={folder}/m.csv"), "must be a new file"),
        ("m.csv", "text\nwin\n", ("text_column=text", "to={folder}/no/m.csv"), "a folder that exists"),
        ("m.csv", "text\nwin\n", ("text_column=text", "to={folder}/m.tsv"), "must end in .csv"),
        ("m.csv", "text\nwin\n", ("text_column=text", "encoding=latin-77"), ": encoding=latin-77"),
        ("m.txt", "win\n", ("labels_only=maybe",), "labels_only=maybe"),
        ("m.txt", "win\n", ("text=win",), "exclude each other"),
    ],
)
def test_wrong_tables_and_options_are_named(predict, tmp_path, name, content, given, said):
    (tmp_path / name).write_text(content)
    answer = predict(f"file={tmp_path / name}", *(option.format(folder=tmp_path) for option in given))
    assert answer.status == 2
    assert answer.error.startswith("error: ")
    assert said in answer.error


def test_a_table_in_another_encoding_is_read_by_it(predict, tmp_path):
    (file := tmp_path / "m.csv").write_bytes("text;n\ncafé;1\n".encode("cp1252"))
    assert "encoding=" in predict(f"file={file}", "text_column=text").error
    answer = predict(f"file={file}", "text_column=text", "encoding=cp1252", "labels_only=true")
    assert answer.out.encode("latin-1").decode().splitlines()[1].startswith("café;1;")
    assert "semicolons" in answer.error


def test_no_text_has_no_answer_and_an_empty_one_is_refused(run):
    assert list(predict_texts(str(run), [])) == []
    with pytest.raises(InputError, match="message 2 is empty"):
        list(predict_texts(str(run), ["a", ""]))
