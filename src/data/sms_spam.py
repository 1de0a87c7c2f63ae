"""The UCI SMS Spam Collection (Almeida and Hidalgo 2011): downloaded once, pinned by sha256, or read from a file."""

import csv
import hashlib
import io
import zipfile
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

from src.data.corpus import Corpus, corpus_of
from src.data.tables import Row, Table
from src.errors import InputError
from src.files import why_no_download

UCI_URLS = (
    "https://archive.ics.uci.edu/static/public/228/sms+spam+collection.zip",
    "https://f001.backblazeb2.com/file/LLMs-from-scratch/sms%2Bspam%2Bcollection.zip",
)
UCI_ZIP = "sms_spam_collection.zip"
UCI_FORMAT: dict[str, Any] = {"sep": "\t", "header": None, "dtype": str, "keep_default_na": False}
UCI_ZIP_SHA256 = "1587ea43e58e82b14ff1f5425c88e17f8496bfcdb67a583dbff9eefaf9963ce3"
UCI_TEXT_SHA256 = "7d039a24a6083ed9ef0f806ebad56bbb976e3aeb8de05669173bfdc4996c239d"


def read_sms_spam(path: str | Path | None, cache: str | Path, quoted: bool) -> Corpus:
    """The UCI SMS Spam Collection from `path`, or downloaded into `cache`.

    quoted=True reads it as the book does, with pandas' default quoting: 5,572 messages, since a few begin with an
    unclosed quotation mark and swallow what follows. quoted=False reads every line: 5,574. Raises InputError for any
    other file: `data=sms_spam` says which bytes a run was trained on, wherever they lay.
    """
    path = Path(path).expanduser() if path else None
    if path and not path.is_file():
        raise InputError(f"data.path: there is no file {path}; leave it out to download the UCI collection")
    content = path.read_bytes() if path else download_sms_spam(Path(cache))
    if hashlib.sha256(content).hexdigest() != UCI_TEXT_SHA256:
        raise InputError(
            f"data.path: {path} is not the UCI collection's SMSSpamCollection (sha256 {UCI_TEXT_SHA256}): unzip it "
            f"from {UCI_URLS[0]}, or use data=table for messages of your own"
        )
    import pandas as pd  # half a second that other data do without

    quoting: Any = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    frame = pd.read_csv(io.BytesIO(content), quoting=quoting, names=["label", "text"], **UCI_FORMAT)
    rows = [Row(text, label, i) for i, (text, label) in enumerate(zip(frame["text"], frame["label"], strict=True), 1)]
    return replace(corpus_of("sms_spam", Table(rows), str(path), content), labels=("ham", "spam"))


def download_sms_spam(cache: Path) -> bytes:
    """The collection's text file, from its zip: cached, or from UCI, or from the book's mirror; pinned by sha256.

    Raises InputError with what kept each address from answering; the same for ten minutes, in which one process does
    not ask again.
    """
    if cache in _FAILED and monotonic() - _FAILED[cache][0] < 600:
        raise InputError(_FAILED[cache][1])
    try:
        content = zipfile.ZipFile(_fetch_zip(cache)).read("SMSSpamCollection")
    except InputError as error:
        _FAILED[cache] = monotonic(), str(error)
        raise
    if hashlib.sha256(content).hexdigest() != UCI_TEXT_SHA256:
        raise InputError(
            f"SMSSpamCollection in {cache / UCI_ZIP} does not have the pinned sha256: delete the zip and try again"
        )
    return content


_FAILED: dict[Path, tuple[float, str]] = {}  # cache folder -> when a download failed, and why


def _fetch_zip(cache: Path) -> str:
    import pooch
    import requests

    failed = []
    for url in UCI_URLS:
        try:
            return str(
                pooch.retrieve(url, known_hash=f"sha256:{UCI_ZIP_SHA256}", fname=UCI_ZIP, path=cache, progressbar=True)
            )
        except requests.RequestException as error:
            failed.append(f"{url}: {why_no_download(error)}")
        except OSError as error:
            raise InputError(f"the cache folder {cache} cannot be written: {error}; set data.cache") from None
        except ValueError:  # pooch has deleted what did not match
            raise InputError(
                f"what {url} sent is not the pinned zip (sha256 {UCI_ZIP_SHA256}): try again, or pass data.path=<file>"
            ) from None
    raise InputError(
        f"the UCI SMS Spam Collection is not cached and cannot be downloaded ({'; '.join(failed)}): get {UCI_URLS[0]} "
        f"and put it at {cache / UCI_ZIP}, or pass data.path=<its SMSSpamCollection file>, or stay offline with "
        "data=bundled"
    )
