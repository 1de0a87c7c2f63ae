"""The datasets that this project knows: each says how its texts and labels are read; all else is TextData's.

Bundled    messages written for this project, in assets/messages
SmsSpam    the UCI SMS Spam Collection
Table      any CSV, TSV, JSONL or Parquet file with a text and a label column
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from src.data.corpus import Corpus, Empty, read_corpus
from src.data.datamodule import TextData
from src.data.sms_spam import read_sms_spam
from src.data.splits import Splits, book, given_files
from src.data.tables import Column
from src.errors import InputError

BUNDLED = Path(__file__).parents[2] / "assets" / "messages" / "messages.tsv"


@dataclass(kw_only=True, eq=False)
class Bundled(TextData):
    """The messages that this project ships: half ham, half spam."""

    def read(self) -> Corpus:
        return read_corpus(BUNDLED, name="bundled")


@dataclass(kw_only=True, eq=False)
class SmsSpam(TextData):
    """The UCI collection from the file `path`, or downloaded into the folder `cache`; split=book is that of the
    published table, row for row."""

    SPLITS = (*TextData.SPLITS, "book")
    split: str = "book"
    balance: bool = True
    path: str | None = None
    cache: str = "~/.cache/two-ways"

    def read(self) -> Corpus:
        return read_sms_spam(self.path, Path(self.cache).expanduser(), quoted=self.split == "book")

    def divide(self) -> Splits:
        if self.split != "book":
            return super().divide()
        if not self.balance:
            raise InputError("data.balance=false: data.split=book holds as many ham as spam; use another data.split")
        return book(self.corpus.examples)


@dataclass(kw_only=True, eq=False)
class Table(TextData):
    """A file of labelled texts: all of them, or the training texts where the other two are given.

    text_column, label_column      by name, or by number in a file without a header line
    encoding, separator, empty     see read_corpus
    """

    path: str
    validation_path: str | None = None
    test_path: str | None = None
    text_column: Column = "text"
    label_column: Column = "label"
    encoding: str | None = None
    separator: str | None = None
    empty: Empty = "refuse"

    def read(self) -> Corpus:
        return self._read(self.path, 1 if self.whole else 2)

    def _read(self, path: str, least: int) -> Corpus:
        return read_corpus(
            path,
            text_column=self.text_column,
            label_column=self.label_column,
            encoding=self.encoding,
            separator=self.separator,
            empty=self.empty,
            least=least,
        )

    def divide(self) -> Splits:
        if self.validation_path is None and self.test_path is None:
            return super().divide()
        if self.validation_path is None or self.test_path is None:
            raise InputError(
                "data.validation_path and data.test_path go together: give both, or neither for a stratified split"
            )
        for key, usual in {"split": "grouped", "fold": None, "balance": False}.items():
            if (value := getattr(self, key)) != usual:
                raise InputError(
                    f"data.{key}={value} is how one file is divided: leave data.validation_path and data.test_path "
                    f"out, or data.{key}"
                )
        given = [self.corpus, self._read(self.validation_path, 1), self._read(self.test_path, 1)]
        splits, self.notes = given_files(*(corpus.examples for corpus in given))
        self.split_name, self.dropped["empty"] = "given files", sum(corpus.empty for corpus in given)
        together = hashlib.sha256("".join(corpus.sha256 for corpus in given).encode()).hexdigest()
        self.corpus = replace(self.corpus, sha256=together)
        return splits
