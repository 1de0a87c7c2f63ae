"""Pretraining: text on disk, the order of its windows, the loss, resuming to the bit, and a run from end to end."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback, LambdaCallback
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import DataLoader

from src.config import build
from src.config import pretraining as parts
from src.config.command_line import compose, one_sentence
from src.config.instantiate import build_optimizer, build_scheduler
from src.data.tokenizer import END_OF_TEXT, encode
from src.errors import InputError
from src.finetune.checkpointing import StepCheckpoint
from src.finetune.optim import MuonAdamW, lr_multiplier, warmup_schedule
from src.gpt import weights
from src.gpt.model import GPT, GPTConfig
from src.pretrain import log, pretrain
from src.pretraining import ngram_baseline, throughput, token_stream
from src.pretraining.causal_lm import CausalLM, pad_messages
from src.pretraining.documents import Document, documents
from src.pretraining.held_out import by_source
from src.pretraining.losses import IGNORE_INDEX, chunk_loss, chunked_cross_entropy, mean_loss, sampled_cross_entropy
from src.pretraining.ngram_baseline import ALPHAS, bigram
from src.pretraining.throughput import Throughput, flops_of
from src.pretraining.token_stream import Windows, in_order, pack
from src.runs import run_dir
from tests.shared import sentence

ROOT = Path(__file__).parents[2]
V = 13
SMALL = GPTConfig(n_layer=2, n_head=2, n_embd=8, context_length=16, vocab_size=V)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore:.*isinstance.treespec.*")


@pytest.fixture(autouse=True)
def known_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring the machine takes seconds."""
    monkeypatch.setattr(throughput, "measured_peak", lambda *_: 1e9)


def jsonl(*records: dict[str, str]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def compressed(content: bytes) -> bytes:
    return pyarrow.compress(content, codec="zstd", asbytes=True)


# text -> tokens on disk

TEXTS = [
    "A first text.",
    "A second one,\nof two lines: naïve 日本 <|endoftext|> is text here.",
    "",
    "  And a third\r\n",
]
TOKENS = [[*ids, END_OF_TEXT] for ids in encode(TEXTS)]
RECORDS = [{"source": source, "text": text} for source, text in zip("abba", TEXTS, strict=True)]


def test_every_token_of_every_source_is_on_disk_once(tmp_path):
    (tmp_path / "text.jsonl").write_bytes(jsonl(*RECORDS))
    packed = pack(tmp_path / "text.jsonl", tmp_path)
    a, b = TOKENS[0] + TOKENS[3], TOKENS[1] + TOKENS[2]
    assert packed.ids.tolist() == a + b
    assert packed.sources == {"a": (0, len(a)), "b": (len(a), len(a) + len(b))}
    assert packed.documents == 4
    assert packed.ids.tolist().count(END_OF_TEXT) == 4  # the one that is spelt out in a text is ordinary text


def test_a_compressed_file_holds_the_same_tokens_in_one_frame_or_in_several(tmp_path):
    plain = jsonl(*RECORDS)
    (tmp_path / "plain.jsonl").write_bytes(plain)
    (tmp_path / "one.jsonl.zst").write_bytes(compressed(plain))
    (tmp_path / "two.jsonl.zst").write_bytes(compressed(plain[:50]) + compressed(plain[50:].rstrip(b"\n")))
    expected = list(documents(tmp_path / "plain.jsonl"))
    assert expected == [Document(**record) for record in RECORDS]
    assert list(documents(tmp_path / "one.jsonl.zst")) == expected
    assert list(documents(tmp_path / "two.jsonl.zst")) == expected


def test_a_line_longer_than_what_is_read_at_once_is_whole(tmp_path):
    text = "".join(map(chr, np.random.default_rng(0).integers(33, 126, 3_000_000)))  # of hardly any redundancy
    (tmp_path / "long.jsonl.zst").write_bytes(compressed(jsonl({"text": text}, {"text": "next"})))
    assert (tmp_path / "long.jsonl.zst").stat().st_size > 2 << 20
    assert [document.text for document in documents(tmp_path / "long.jsonl.zst")] == [text, "next"]


def test_a_folder_is_read_file_by_file_in_order(tmp_path):
    (tmp_path / "text" / "sub").mkdir(parents=True)
    (tmp_path / "text" / "b.txt").write_bytes("ä line\r\nanother".encode())
    (tmp_path / "text" / "a.v2.jsonl").write_bytes(jsonl({"text": "x"}, {"text": "y", "source": "s"}))
    (tmp_path / "text" / "sub" / "c.jsonl.zst").write_bytes(compressed(jsonl({"text": "z"})))
    (tmp_path / "text" / "README.md").write_text("no text")
    expected = [("a.v2", "x"), ("s", "y"), ("b", "ä line\nanother"), ("c", "z")]
    assert list(documents(tmp_path / "text")) == [Document(*pair) for pair in expected]
    packed = pack(tmp_path / "text", tmp_path / "cache")
    assert packed.ids.tolist() == [id for _, text in expected for id in (*encode([text])[0], END_OF_TEXT)]


def test_there_may_be_more_sources_than_files_can_be_open(tmp_path):
    (tmp_path / "text.jsonl").write_bytes(jsonl(*({"source": f"{i}", "text": "a"} for i in range(2500))))
    packed = pack(tmp_path / "text.jsonl", tmp_path)
    assert packed.sources == {f"{i}": (2 * i, 2 * i + 2) for i in range(2500)}


def test_a_second_call_reads_the_cache_and_a_changed_text_is_tokenized_again(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(token_stream, "encode", lambda texts: calls.append(texts) or encode(texts))
    text = tmp_path / "text.jsonl"
    text.write_bytes(jsonl(*RECORDS))
    first = pack(text, tmp_path)
    second = pack(text, tmp_path)
    assert calls == [TEXTS]
    assert second.ids.tolist() == first.ids.tolist()
    assert second[1:] == first[1:]
    text.write_bytes(jsonl({"source": "a", "text": "Other text."}))
    assert pack(text, tmp_path).ids.tolist() == [*encode(["Other text."])[0], END_OF_TEXT]
    assert calls == [TEXTS, ["Other text."]]


DAMAGE: dict[str, Callable[[bytes, bytes], tuple[bytes | None, bytes | None]]] = {
    "tokens cut": lambda tokens, manifest: (tokens[:-2], manifest),
    "tokens lost": lambda tokens, manifest: (None, manifest),
    "one bit flipped": lambda tokens, manifest: (bytes([tokens[0] ^ 1]) + tokens[1:], manifest),
    "zeros": lambda tokens, manifest: (bytes(len(tokens)), manifest),
    "sources swapped": lambda tokens, manifest: (
        tokens,
        manifest.replace(b'"a"', b'"c"').replace(b'"b"', b'"a"').replace(b'"c"', b'"b"'),
    ),
    "manifest cut": lambda tokens, manifest: (tokens, manifest[: len(manifest) // 2]),
    "manifest empty": lambda tokens, manifest: (tokens, b""),
    "manifest of an older version": lambda tokens, manifest: (tokens, manifest.rstrip().rpartition(b"\n")[0]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_made_again(tmp_path, damage, capsys):
    (tmp_path / "text.jsonl").write_bytes(jsonl(*RECORDS))
    whole = pack(tmp_path / "text.jsonl", tmp_path)
    expected = whole.ids.tolist(), *whole[1:]
    files = *tmp_path.rglob("*.uint16"), *tmp_path.rglob("tokens/*.json")
    kept = [file.read_bytes() for file in files]
    for file, content in zip(files, DAMAGE[damage](*kept), strict=True):
        file.unlink() if content is None else file.write_bytes(content)
    capsys.readouterr()
    again = pack(tmp_path / "text.jsonl", tmp_path)
    assert (again.ids.tolist(), *again[1:]) == expected
    assert [file.read_bytes() for file in files] == kept
    assert f"{files[0]} or its manifest is damaged: tokenizing again\n" in capsys.readouterr().err


def test_a_log_gets_a_line_of_the_tokenizer_now_and_then(tmp_path, capsys):
    (tmp_path / "text.jsonl").write_bytes(jsonl(*({"text": "a"} for _ in range(30_000))))
    pack(tmp_path / "text.jsonl", tmp_path)
    assert len(capsys.readouterr().err.split("\r")) <= 3  # its first and its last


@pytest.mark.parametrize("where", ["while tokenizing", "before the tokens are in place", "before the manifest is"])
def test_what_was_killed_is_not_taken_for_whole(tmp_path, monkeypatch, where):
    (tmp_path / "text.jsonl").write_bytes(jsonl(*RECORDS))
    replace, encoded, places = os.replace, token_stream.encode, []

    def killed_in_replace(old: Path, new: Path) -> None:
        places.append(new)
        if len(places) == (1 if where == "before the tokens are in place" else 2):
            raise KeyboardInterrupt
        replace(old, new)

    def killed_in_encode(texts: list[str]) -> list[list[int]]:
        if len(places.append(texts) or places) == 2:
            raise KeyboardInterrupt
        return encoded(texts)

    with monkeypatch.context() as patch:
        if where == "while tokenizing":
            patch.setattr(token_stream, "islice", lambda texts, _: [next(texts)])  # one at a time
            patch.setattr(token_stream, "encode", killed_in_encode)
        else:
            patch.setattr(os, "replace", killed_in_replace)
        with pytest.raises(KeyboardInterrupt):
            pack(tmp_path / "text.jsonl", tmp_path)
    assert len(places) >= 1
    assert pack(tmp_path / "text.jsonl", tmp_path).ids.tolist() == TOKENS[0] + TOKENS[3] + TOKENS[1] + TOKENS[2]
    assert len(list((tmp_path / "tokens").iterdir())) == 2  # the tokens and their manifest, nothing unfinished


GOOD = b'{"text": "a"}\n'


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("a.jsonl", GOOD + b"{'text'}\n" + GOOD, "{file}, line 2: not JSON lines in UTF-8"),
        ("a.jsonl", GOOD + GOOD + b'{"txt": "a"}\n', "{file}, line 3: a document is"),
        ("a.jsonl", b'{"text": null}', "{file}, line 1: a document is"),
        ("a.jsonl", b'{"text": "a", "source": 3}', "{file}, line 1: a document is"),
        ("a.jsonl", b'["text"]', "{file}, line 1: a document is"),
        ("a.jsonl", GOOD * 3 + b'{"text": "\xff"}\n', "{file}, line 4: not JSON lines in UTF-8"),
        ("a.jsonl.zst", compressed(GOOD + b"\n" + b"[" * 100_000), "{file}, line 3: not JSON lines in UTF-8"),
        ("a.jsonl", b'{"text": "a", "n": ' + b"1" * 5000 + b"}\n", "{file}, line 1: not JSON lines in UTF-8"),
        ("a.txt", b"abc\xff", "{file} is no text in UTF-8"),
        ("a.jsonl.zst", GOOD, "{file} cannot be read"),
        ("a.jsonl.zst", compressed(GOOD * 99)[:-3], "{file} cannot be read"),
        ("a.jsonl", b"", "{file} holds no text"),
        ("a.jsonl", b'{"text": ""}\n', "{file} holds no text"),
        ("a.txt", b"", "{file} holds no text"),
        ("a.csv", b"text\n", "{file} is none of .jsonl, .jsonl.zst, .txt"),
        (None, b"", "there is no text at {file}"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, content, named):
    file = tmp_path / (name or "a.jsonl")
    if name:
        file.write_bytes(content)
    assert named.replace("{file}", str(file)) in sentence(lambda: pack(file, tmp_path / "cache"))
    assert list((tmp_path / "cache").rglob("*.json")) == []


def test_empty_lines_and_folders_with_a_file_s_name_are_passed_over(tmp_path):
    (tmp_path / "corpus" / "notes.txt").mkdir(parents=True)
    (tmp_path / "corpus" / "a.jsonl").write_bytes(b"\n" + GOOD + b"\n")
    assert pack(tmp_path / "corpus", tmp_path / "cache").documents == 1


def test_a_folder_without_text_is_named(tmp_path):
    (tmp_path / "README.md").write_text("no text")
    assert f"no text at {tmp_path}" in sentence(lambda: pack(tmp_path, tmp_path / "cache"))


# windows


COUNTING = np.arange(4 * 11 + 1, dtype=np.uint16)  # 4 tokens a window: 10 windows an epoch, 5 batches of 2


def some_batches(windows: Windows, n: int) -> list[list[list[int]]]:
    """The next n, fetched as Lightning does, one in advance; what is fetched in vain counts as not done."""
    rest = iter(windows)
    held, taken = next(rest), []
    for _ in range(n):
        taken.append(held.tolist())
        held = next(rest)
    return taken


def test_an_epoch_holds_every_window_once():
    windows = Windows(COUNTING, 4, 2, seed=0)
    assert windows.epoch_batches == 5
    epochs = []
    for epoch in range(40):
        found = [window for batch in some_batches(windows, 5) for window in batch]
        starts = sorted(window[0] for window in found)
        assert all(window == list(range(window[0], window[0] + 5)) for window in found)
        assert starts == list(range(starts[0], starts[0] + 40, 4))  # side by side, from an offset
        assert windows.starts(epoch).flatten().tolist() == [window[0] for window in found]
        epochs.append([window[0] for window in found])
    assert {min(starts) for starts in epochs} == {0, 1, 2, 3}
    assert len({tuple(starts) for starts in epochs}) == 40


def test_fewer_windows_than_a_batch_are_left_over():
    windows = Windows(COUNTING, 4, 3, seed=0)  # 10 windows
    starts = windows.starts(0)
    assert starts.shape == (3, 3)
    assert len(np.unique(starts)) == 9
    assert len(np.unique(starts % 4)) == 1


def test_the_order_is_the_seeds_alone():
    first = some_batches(Windows(COUNTING, 4, 2, seed=0), 12)
    np.random.seed(3)  # not from here
    assert some_batches(Windows(COUNTING, 4, 2, seed=0), 12) == first
    assert some_batches(Windows(COUNTING, 4, 2, seed=1), 12) != first


@pytest.mark.parametrize("done", range(12))
def test_a_resumed_sampler_gives_the_rest(done):
    straight = some_batches(Windows(COUNTING, 4, 2, seed=0), 14)
    killed, resumed = Windows(COUNTING, 4, 2, seed=0), Windows(COUNTING, 4, 2, seed=0)
    some_batches(killed, done)
    resumed.load_state_dict(killed.state_dict())
    assert some_batches(resumed, 14 - done) == straight[done:]


def test_windows_in_order_cover_every_target_once():
    for n in range(2, 40):
        ids = COUNTING[:n]
        batches = in_order(ids, 4, 3)
        assert [t for batch in batches for window in batch.tolist() for t in window[1:]] == list(range(1, n))
        assert [t for batch in batches for window in batch.tolist() for t in window[:-1]] == list(range(n - 1))
        assert max(len(batch) for batch in batches) <= 3
    assert in_order(COUNTING[:1], 4, 3) == []


def test_too_little_text_is_named():
    assert "12 tokens: 2 windows of 4 tokens need 13" in sentence(lambda: Windows(COUNTING[:12], 4, 2, seed=0))
    assert Windows(COUNTING[:13], 4, 2, seed=0).epoch_batches == 1
    for n in range(1, 9):  # less than a window, and than two
        assert f"{n} tokens: 1 windows of 4" in sentence(lambda n=n: Windows(COUNTING[:n], 4, 1, seed=0))


def test_the_first_windows_of_a_batch_begin_where_a_document_does():
    ids = COUNTING.copy()
    ids[[5, 11, 12, 30, 42]] = END_OF_TEXT  # the last one has no whole window behind it
    plain, moved = Windows(ids, 4, 2, seed=0), Windows(ids, 4, 2, seed=0, beginnings=1)
    begin = [0, 6, 12, 13, 31]
    for epoch in range(20):
        before, after = plain.starts(epoch), moved.starts(epoch)
        assert after[:, 1].tolist() == before[:, 1].tolist()
        assert after[:, 0].tolist() == [next((at for at in begin if at >= start), 0) for start in before[:, 0]]
    assert [len(window) for window in some_batches(moved, 1)[0]] == [5, 5]


def padded_once(ids: list[int], seed: int) -> tuple[list[int], list[int]]:
    inputs, targets = pad_messages(
        torch.tensor([ids]), torch.rand(1, len(ids), generator=torch.Generator().manual_seed(seed))
    )
    return inputs[0].tolist(), targets[0].tolist()


@pytest.mark.parametrize("end", [None, 15])
def test_a_padded_window_asks_for_the_rest_of_its_document_behind_its_first_words(end):
    ids = list(range(100, 141))
    if end:
        ids[end] = END_OF_TEXT
    cuts, asked = set(), set[int]()
    for seed in range(300):
        inputs, targets = padded_once(ids, seed)
        cut = inputs.index(END_OF_TEXT)
        assert inputs == ids[:cut] + [END_OF_TEXT] * (40 - cut)
        assert targets[: cut - 1] == ids[1:cut]
        assert targets[cut - 1] == IGNORE_INDEX
        rest = set(ids[cut : end or 40])
        assert set(targets[cut:]) <= (rest if len(rest) >= 5 else {IGNORE_INDEX})
        cuts.add(cut)
        asked |= set(targets[cut:]) - {IGNORE_INDEX}
    assert (min(cuts), max(cuts)) == (4, (end or 30) - 1)
    assert asked == set(ids[4 : end or 40])


def test_a_document_shorter_than_the_shortest_message_asks_for_nothing_behind_it():
    assert padded_once([7, END_OF_TEXT, *range(20, 40)], 0)[1][4:] == [IGNORE_INDEX] * 17


# loss


class Case(NamedTuple):
    """hidden (N, C), weight (V, C), targets (N,)."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor


def case(ignored: bool = False, N: int = 12, C: int = 6) -> Case:  # noqa: N803
    torch.manual_seed(0)
    hidden, weight = torch.randn(N, C, requires_grad=True), torch.randn(V, C, requires_grad=True)
    targets = torch.randint(V, (N,))
    if ignored:
        targets[[0, 3, 4, N - 1]] = IGNORE_INDEX
    return Case(hidden, weight, targets)


def value_and_gradients(loss: Callable[[Case], Tensor], given: Case) -> list[Tensor]:
    value = 3 * loss(given)  # a factor, as accumulation and scaling give it
    return [value.detach(), *torch.autograd.grad(value, (given.hidden, given.weight))]


def plain(given: Case) -> Tensor:
    return F.cross_entropy(given.hidden @ given.weight.T, given.targets, ignore_index=IGNORE_INDEX)


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("chunk", [1, 4, 5, 12, 100])
def test_the_chunked_loss_is_cross_entropy_in_value_and_gradients(chunk, ignored):
    given = case(ignored)
    found = value_and_gradients(lambda c: chunked_cross_entropy(*c, chunk), given)
    for x, y in zip(found, value_and_gradients(plain, given), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(chunked_cross_entropy(*given, chunk), plain(given))


@pytest.mark.parametrize("bf16", [False, True])
def test_the_chunked_loss_survives_compilation(bf16):
    given, compiled = case(ignored=True), torch.compile(chunk_loss, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        found = value_and_gradients(lambda c: chunked_cross_entropy(*c, 5, compiled), given)
        expected = value_and_gradients(lambda c: chunked_cross_entropy(*c, 5), given)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y)


def test_the_chunked_loss_of_frozen_weights_has_the_gradient_of_what_is_read():
    given = case()
    frozen = given._replace(weight=given.weight.detach())
    (found,) = torch.autograd.grad(chunked_cross_entropy(*frozen, 5), frozen.hidden)
    torch.testing.assert_close(found, torch.autograd.grad(plain(given), given.hidden)[0])


def test_no_target_at_all_is_a_loss_and_a_gradient_of_zero():
    given = case()._replace(targets=torch.full((12,), IGNORE_INDEX))
    generator = torch.Generator().manual_seed(0)
    for loss in (lambda c: chunked_cross_entropy(*c, 5), lambda c: sampled_cross_entropy(*c, 3, generator, 5)):
        assert all(not x.any() for x in value_and_gradients(loss, given))


def test_the_chunked_loss_under_bf16_errs_no_more_than_cross_entropy_does():
    given = case(ignored=True, N=200, C=32)
    exact = value_and_gradients(plain, given)
    with torch.autocast("cpu", torch.bfloat16):
        found = value_and_gradients(lambda c: chunked_cross_entropy(*c, 64), given)
        reference = value_and_gradients(plain, given)
    assert [x.dtype for x in found] == [torch.float32] * 3
    for x, y, z in zip(found, reference, exact, strict=True):
        error, usual = (x - z).norm() / z.norm(), (y - z).norm() / z.norm()
        assert 0 < error < 2 * usual + 1e-3  # not 0: it is bf16 that was tried


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("num_sampled", [V, 10 * V])
def test_a_sample_of_the_whole_vocabulary_is_the_exact_loss(num_sampled, ignored):
    given, generator = case(ignored), torch.Generator().manual_seed(0)
    found = value_and_gradients(lambda c: sampled_cross_entropy(*c, num_sampled, generator, 5), given)
    for x, y in zip(found, value_and_gradients(plain, given), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


def test_the_sampled_softmax_has_the_right_sum_on_average():
    given, generator = case(N=1), torch.Generator().manual_seed(0)
    given = given._replace(hidden=given.hidden / 3)
    target = (given.hidden @ given.weight[given.targets].T).item()
    with torch.no_grad():
        sums = torch.stack([sampled_cross_entropy(*given, 4, generator) for _ in range(1000)]).add(target).exp()
        expected = (given.hidden @ given.weight.T).exp().sum()
    error = sums.std() / len(sums) ** 0.5
    assert sums.std() > 0.05 * expected  # the draws do differ
    assert abs(sums.mean() - expected) < 4 * error
    assert error < 0.02 * expected


def test_a_loss_over_batches_of_unequal_size_is_the_mean_over_tokens():
    gpt = GPT(SMALL, seed=0).eval()
    ids = np.random.default_rng(0).integers(V, size=30).astype(np.uint16)
    loss, tokens = mean_loss(gpt, in_order(ids, 4, 3))
    targets = [(ids[max(0, i - (i - 1) % 4 - 1) : i], ids[i]) for i in range(1, 30)]
    with torch.no_grad():
        log_p = [
            gpt.logits(gpt(torch.tensor(context.astype(int))[None]))[0, -1].log_softmax(-1)[target].item()
            for context, target in targets
        ]
    assert tokens == 29
    assert loss == pytest.approx(-np.mean(log_p), rel=1e-5)


# training


class KilledError(Exception):
    pass


class Killer(Callback):
    """Raises when training reaches batch `batch`, or when the validation after `validation` steps begins."""

    def __init__(self, batch: int = -1, validation: int = -1) -> None:
        self.batch, self.validation = batch, validation

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx == self.batch:
            raise KilledError

    def on_validation_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.validation:
            raise KilledError


class Fitted(NamedTuple):
    state: dict[str, Tensor]
    curve: list[dict[str, float]]
    losses: dict[int, float]  # of the batches that this process trained on, by their number
    rates: dict[int, float]
    clock: Throughput


IDS = np.random.default_rng(0).integers(V, size=4 * 11 + 1).astype(np.uint16)  # epochs of 5 batches of 2 windows
HELD_OUT = in_order(np.random.default_rng(1).integers(V, size=40).astype(np.uint16), 4, 2)


@cache
def config(*overrides: str) -> DictConfig:
    return compose("pretrain", list(overrides))


SETTINGS = (
    "max_steps=12",
    "validate_every=4",
    "checkpoint_every=3",
    "optimizer.lr=1e-2",
    "scheduler.warmup_ratio=0.2",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "trainer.log_every_n_steps=1",
)


def fit(
    run: Path,
    *overrides: str,
    callbacks: tuple[Callback, ...] = (),
    batch_size: int = 2,
    dropout: float = 0.0,
    num_sampled: int | None = None,
    ids: np.ndarray[Any, Any] = IDS,
) -> Fitted:
    """Train a small GPT as src.pretrain would, from the checkpoint in `run` if there is one."""
    cfg = config(*SETTINGS, *overrides)
    clock, windows = Throughput(cfg.budget_minutes and 60 * cfg.budget_minutes), Windows(ids, 4, batch_size, seed=5)
    optimizer = build_optimizer(run_dir.plain(cfg.optimizer), None, groups=True)
    gpt = GPT(GPTConfig(**{**vars(SMALL), "dropout": dropout}), seed=0)
    model = CausalLM(gpt, optimizer, build_scheduler(run_dir.plain(cfg.scheduler)), num_sampled, chunk=5, seed=5)
    if cfg.budget_minutes:
        model.progress = clock.share
    losses, rates = {}, {}

    def note(trainer: Any, model: Any, output: Any, *_: Any) -> None:
        losses[trainer.fit_loop.total_batch_idx] = output["loss"].item()
        rates[trainer.fit_loop.total_batch_idx] = trainer.optimizers[0].param_groups[0]["lr"]

    last = run / "checkpoints" / "last.ckpt"
    kept = StepCheckpoint(last, cfg.checkpoint_every)
    ours = [clock, LambdaCallback(on_train_batch_end=note), kept, *callbacks]
    trainer = parts.pretrainer(cfg, windows.epoch_batches, ours, logger=False, default_root_dir=run)
    trainer.fit(
        model,
        windows,
        DataLoader(HELD_OUT, batch_size=None),
        ckpt_path=last if last.is_file() else None,
        weights_only=True,
    )
    curve = [{name: value for name, value in row.items() if name != "seconds"} for row in clock.curve]
    return Fitted(model.gpt.state_dict(), curve, losses, rates, clock)


def assert_same(found: Fitted, expected: Fitted) -> None:
    """To the bit: weights, the losses of the batches that both trained on, the curve."""
    for name, weight in expected.state.items():
        assert torch.equal(found.state[name], weight), name
    assert found.losses == {batch: expected.losses[batch] for batch in found.losses}
    assert found.curve == expected.curve
    assert (found.clock.tokens, found.clock.flops) == (expected.clock.tokens, expected.clock.flops)


STRAIGHT: dict[Any, Fitted] = {}


def uninterrupted(overrides: tuple[str, ...], settings: tuple[tuple[str, Any], ...], folder: Path) -> Fitted:
    """The run that several tests are held against, trained once."""
    if (overrides, settings) not in STRAIGHT:
        run = fit(folder / "straight", *overrides, "checkpoint_every=100", **dict(settings))
        STRAIGHT[overrides, settings] = run
    return STRAIGHT[overrides, settings]


SLOW = pytest.mark.slow
ACCUMULATE = "trainer.accumulate_grad_batches=2"
BF16 = "trainer.precision=bf16-mixed"


@pytest.mark.parametrize(
    ("overrides", "settings", "kills", "first"),
    [
        ([], {}, [{"batch": 7}], 6),  # in the middle of the second epoch
        pytest.param(
            [], {}, [{"batch": 4}], 4, marks=SLOW
        ),  # before the first one ends: the checkpoint is the validation's
        pytest.param(["checkpoint_every=5"], {}, [{"batch": 6}], 5, marks=SLOW),  # at its end
        pytest.param(["checkpoint_every=1"], {}, [{"batch": 5}, {"batch": 10}], 10, marks=SLOW),  # at every border
        (["checkpoint_every=2", "validate_every=2"], {}, [{"validation": 6}], 4),  # as a validation begins
        pytest.param(["checkpoint_every=4", "validate_every=2"], {}, [{"batch": 4}], 4, marks=SLOW),  # as one has ended
        ([], {"dropout": 0.2, "num_sampled": 3}, [{"batch": 7}], 6),
        pytest.param([BF16], {"num_sampled": 3}, [{"batch": 7}], 6, marks=SLOW),
        # the epochs' 5 batches are no multiple of 2; the second kill comes between two steps right after resuming
        ([ACCUMULATE], {"dropout": 0.2}, [{"batch": 7}, {"batch": 6}], 6),
        pytest.param([ACCUMULATE], {}, [{"batch": 20}], 18, marks=SLOW),
        pytest.param(
            [ACCUMULATE, "checkpoint_every=1", "validate_every=5"], {}, [{"batch": 10}, {"batch": 11}], 10, marks=SLOW
        ),
        ([], {}, [{"batch": 1}], 0),  # before the first checkpoint
        pytest.param(["checkpoint_every=6"], {}, [{"batch": 11}], 8, marks=SLOW),
    ],
)
def test_a_killed_and_resumed_run_is_the_straight_one(tmp_path, overrides, settings, kills, first):
    every = config(*SETTINGS, *overrides).validate_every
    kept = [override for override in overrides if not override.startswith("checkpoint_every")]
    straight = uninterrupted(tuple(kept), tuple(settings.items()), tmp_path)
    for kill in kills:
        with pytest.raises(KilledError):
            fit(tmp_path / "killed", *overrides, callbacks=(Killer(**kill),), **settings)
    resumed = fit(tmp_path / "killed", *overrides, **settings)
    assert min(resumed.losses) == first
    assert len(straight.losses) == 12 * (2 if ACCUMULATE in overrides else 1)
    assert [row["step"] for row in straight.curve] == list(range(every, 13, every))
    assert_same(resumed, straight)


def test_gradients_of_two_batches_are_those_of_a_large_one(tmp_path):
    even = np.random.default_rng(0).integers(V, size=4 * 13 + 1).astype(np.uint16)  # epochs of 12 windows
    two = fit(tmp_path / "a", ACCUMULATE, "validate_every=6", ids=even)
    one = fit(tmp_path / "b", "validate_every=6", "trainer.log_every_n_steps=0", ids=even, batch_size=4)
    assert [row["tokens"] for row in two.curve] == [row["tokens"] for row in one.curve] == [96, 192]
    for name, weight in one.state.items():
        torch.testing.assert_close(two.state[name], weight, rtol=1e-3, atol=1e-5, msg=name)
    for name in ("train_loss", "validation_loss", "lr"):
        assert [row[name] for row in two.curve] == pytest.approx([row[name] for row in one.curve], rel=1e-4)


def test_the_curve_holds_the_mean_training_loss_since_the_last_validation(tmp_path):
    for overrides in ([], [ACCUMULATE]):
        found = fit(tmp_path / "".join(overrides), *overrides)
        losses, batches = list(found.losses.values()), 4 * (1 + len(overrides))
        means = [np.mean(losses[i : i + batches]) * (1 + len(overrides)) for i in range(0, len(losses), batches)]
        assert [row["train_loss"] for row in found.curve] == pytest.approx(means, rel=1e-5)
        assert 1 < means[-1] < means[0] < 4  # not halved by accumulation: a guess costs log 13 = 2.6 nats


def test_a_time_budget_ends_training_and_rules_the_learning_rate(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(throughput, "perf_counter", lambda: now[0])

    def work(*_: Any) -> None:
        now[0] += 6.0

    budget = ("max_steps=null", "budget_minutes=1", "checkpoint_every=2", "validate_every=100")
    timed = LambdaCallback(on_train_batch_start=work)
    found = fit(tmp_path / "straight", *budget, callbacks=(timed,))
    factor = partial(lr_multiplier, shape="cosine", warmup_ratio=0.2, min_lr_ratio=0.1)
    shares = [max(0, batch - 2) / 10 for batch in range(1, 12)]  # before the batch; that of the first is not counted
    assert list(found.rates.values()) == pytest.approx([1e-2 * factor(share) for share in shares])
    assert found.clock.seconds == 60
    assert [row["step"] for row in found.curve] == [11]  # validated where it ends

    with pytest.raises(KilledError):
        fit(tmp_path / "killed", *budget, callbacks=(timed, Killer(batch=6)))
    resumed = fit(tmp_path / "killed", *budget, callbacks=(timed,))
    assert_same(resumed, found)  # the time that was spent is kept
    again = fit(tmp_path / "killed", *budget, callbacks=(timed,))
    assert again.losses == {}  # over is over
    assert_same(again, found)


def test_a_log_holds_a_line_of_the_steps_now_and_then(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("src.runs.progress.SECONDS", 0)
    fit(tmp_path / "steps", *SETTINGS)
    lines = capsys.readouterr().out.splitlines()
    assert "training: 11 of 12 steps" in lines
    assert lines[-1].startswith("epoch 1  ")


def test_the_schedule_follows_the_clock_where_there_is_a_budget():
    tiny = ("gpt.n_layer=1", "gpt.n_head=1", "gpt.n_embd=4", "gpt.context_length=8", "corpus.path=a")
    clock = Throughput(120.0)
    module = parts.build_language_model(config(*tiny, "corpus.validation_path=b"), clock)
    for seconds, share in ((0.0, 0.0), (30.0, 0.25), (120.0, 1.0), (500.0, 1.0)):
        clock.seconds = seconds
        assert module.progress() == clock.share() == share


def test_only_matrices_that_are_no_embeddings_decay():
    model = CausalLM(GPT(SMALL, seed=0), partial(torch.optim.AdamW, lr=0.5, weight_decay=0.1))
    model.trainer = SimpleNamespace(global_step=1, max_steps=4)
    before = {name: parameter.detach().clone() for name, parameter in model.gpt.named_parameters()}
    made = model.configure_optimizers()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    made["optimizer"].step()
    layers = ("attention.qkv.weight", "attention.out.weight", "mlp.up.weight", "mlp.down.weight")
    decayed = {f"blocks.{i}.{layer}" for i in range(2) for layer in layers}
    for name, parameter in model.gpt.named_parameters():
        expected = before[name] * (1 - 0.5 * 0.1) if name in decayed else before[name]
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-6, atol=0)
    assert decayed < before.keys()


muon_adamw = partial(MuonAdamW, lr=1e-2, weight_decay=0.1)


def test_muon_and_adamw_together_do_what_each_does_alone():
    together, apart = CausalLM(GPT(SMALL, seed=0), muon_adamw), GPT(SMALL, seed=0)
    names = [name for name, p in apart.named_parameters() if p.ndim == 2 and "embedding" not in name]
    own = dict(apart.named_parameters())
    alone = (
        torch.optim.Muon([own[name] for name in names], lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([p for name, p in own.items() if name not in names], lr=1e-2, weight_decay=0.0),
    )
    together.trainer = SimpleNamespace(global_step=0, max_steps=4)
    optimizer = together.configure_optimizers()["optimizer"]
    assert [group["lr"] for group in optimizer.param_groups] == [1e-2] * 2
    for step in range(4):
        if step == 2:  # as a resumed run: a new optimizer that reads the state of the old one
            state = optimizer.state_dict()
            optimizer = together.configure_optimizers()["optimizer"]
            optimizer.load_state_dict(state)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2
        generator = torch.Generator().manual_seed(step)
        for name, parameter in together.gpt.named_parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            own[name].grad = parameter.grad.clone()
        for each in (optimizer, *alone):
            each.step()
    for name, parameter in together.gpt.named_parameters():
        torch.testing.assert_close(parameter, own[name], rtol=1e-6, atol=1e-8)


def test_muon_is_refused_where_nobody_says_what_is_a_matrix():
    assert "optimizer=muon" in sentence(lambda: muon_adamw(list(GPT(SMALL, seed=0).parameters())))


@pytest.mark.parametrize(
    ("num_sampled", "optimizer"),
    [
        (None, torch.optim.AdamW),
        pytest.param(4, torch.optim.AdamW, marks=SLOW),
        pytest.param(None, MuonAdamW, marks=SLOW),
    ],
)
def test_a_small_gpt_learns_one_sentence_by_heart(num_sampled, optimizer):
    line = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4], np.uint16)
    ids = np.tile(line, 20)
    gpt, cosine = GPT(SMALL, seed=0), partial(warmup_schedule, shape="cosine", warmup_ratio=0.1)
    model = CausalLM(gpt, partial(optimizer, lr=2e-2, weight_decay=0.0), cosine, num_sampled)
    cfg = config(*SETTINGS, "max_steps=150", "validate_every=1000")
    trainer = parts.pretrainer(cfg, 1, logger=False, enable_checkpointing=False)
    trainer.fit(model, Windows(ids, 16, 8, seed=0))
    with torch.no_grad():
        best = gpt.eval().logits(gpt(torch.from_numpy(ids[:16].astype(np.int64))[None]))[0].argmax(-1)
    assert best[6:].tolist() == ids[7:17].tolist()  # some tokens tell where it is


def test_weights_that_are_no_numbers_are_not_saved(tmp_path):
    def spoil(trainer: Any, model: Any, *_: Any) -> None:
        if trainer.global_step == 4:
            model.gpt.final_norm.bias.data[0] = torch.nan

    spoiled = LambdaCallback(on_train_batch_end=spoil)
    assert "step 6" in sentence(lambda: fit(tmp_path, "validate_every=100", callbacks=(spoiled,)))
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3


def test_a_checkpoint_that_is_cut_off_leaves_the_one_before(tmp_path, monkeypatch):
    save, saved = torch.save, []

    def killed(checkpoint: Any, file: Any) -> None:
        saved.append(checkpoint["global_step"])
        if len(saved) == 2:
            file.write(b"half")
            raise KilledError
        save(checkpoint, file)

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KilledError):
        fit(tmp_path, "validate_every=100")
    assert saved == [3, 6]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 3


def test_counting_operations_leaves_a_compiled_gpt_compiled():
    ran = []

    def compiler(graph: Any, _: Any) -> Callable[..., Any]:
        return lambda *inputs: ran.append(1) or graph(*inputs)

    model = CausalLM(GPT(SMALL, seed=0))
    batch = torch.randint(V, (2, 5))
    counted = flops_of(model, batch)
    model.gpt.compile(backend=compiler)
    model(batch[:, :-1])
    assert len(ran) == 1
    assert flops_of(model, batch) == counted
    model(batch[:, :-1])
    assert len(ran) == 2


def test_the_operations_of_a_step_count_every_matrix_product_three_times():
    B, T, C, n_layer = 2, 4, 8, 2
    layers = n_layer * (3 + 1 + 4 + 4) * C * C * B * T
    batch = torch.arange(10).view(2, 5)
    exact = flops_of(CausalLM(GPT(SMALL, seed=0)), batch)
    attention = exact - 3 * 2 * (layers + V * C * B * T)
    assert attention == 3 * 2 * 2 * n_layer * B * (T * (T + 1) // 2) * C  # a token sees itself and those before it
    sampled = flops_of(CausalLM(GPT(SMALL, seed=0), num_sampled=2), batch)
    assert exact - sampled == 3 * 2 * B * T * C * (V - (8 + 2))  # 8 words are in the batch, 2 are drawn


# bigram


def test_the_bigram_model_is_what_counting_by_hand_gives():
    rng = np.random.default_rng(0)
    train = rng.choice(V, 300, p=np.arange(1, V + 1) / 91).astype(np.uint16)
    held_out = rng.integers(V, size=41).astype(np.uint16)
    sources = {"a": (0, 25), "lone": (25, 26), "b": (26, 41)}
    pairs, before, single = Counter(pairwise(train)), Counter(train[:-1]), Counter(train)

    def by_hand(source: str, alpha: float) -> float:
        ids = held_out[slice(*sources[source])]
        p1 = {b: (single[b] + 1) / (300 + V) for b in range(V)}
        p = [(pairs[a, b] + alpha * p1[b]) / (before[a] + alpha) for a, b in pairwise(ids)]
        return -float(np.mean(np.log(p)))

    found = bigram(train, held_out, sources, V)
    assert {name: tokens for name, (_, tokens) in found.losses.items()} == {"a": 24, "b": 14}
    assert {name: loss for name, (loss, _) in found.losses.items()} == {
        name: pytest.approx(by_hand(name, found.alpha)) for name in "ab"
    }
    total = {alpha: 24 * by_hand("a", alpha) + 14 * by_hand("b", alpha) for alpha in ALPHAS}
    assert total[found.alpha] == min(total.values())


def test_the_bigram_model_gives_probabilities(monkeypatch):
    monkeypatch.setattr(ngram_baseline, "ALPHAS", (3.0,))
    train = np.random.default_rng(0).integers(V - 1, size=100).astype(np.uint16)  # the last word is in none of it
    for a in range(V):
        losses = [bigram(train, np.array([a, b], np.uint16), {"": (0, 2)}, V).losses[""][0] for b in range(V)]
        assert sum(np.exp(-loss) for loss in losses) == pytest.approx(1)
        assert len(set(losses)) > 1


# from end to end

WORDS = "the cat sat on a mat and then it ran to our house where we had some tea with them in may"
TINY = ("gpt.n_layer=1", "gpt.n_head=2", "gpt.n_embd=8", "gpt.context_length=32", "trainer.accelerator=cpu")


class Home(NamedTuple):
    folder: Path
    arguments: list[str]  # of a run on its text


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    folder, rng = tmp_path_factory.mktemp("pretrain"), np.random.default_rng(0)
    for name, n in (("train", 60), ("held_out", 12)):
        texts = [" ".join(rng.choice(WORDS.split(), rng.integers(5, 40))) for _ in range(n)]
        (folder / f"{name}.jsonl").write_bytes(
            jsonl(*({"source": "ab"[i % 3 == 0], "text": text} for i, text in enumerate(texts)))
        )
    corpus = ("corpus.path=train.jsonl", "corpus.validation_path=held_out.jsonl", "corpus.cache=cache", "runs=runs")
    places = [f"{key}={folder / value}" for key, value in (pair.split("=") for pair in corpus)]
    run = ("window=8", "batch_size=4", "max_steps=12", "checkpoint_every=5", "validate_every=100", "logger=none")
    small = ("validation_batches=3", "chunk=20", "trainer.precision=32-true", "optimizer.lr=1e-2")
    return Home(folder, [*TINY, *places, *run, *small])


class Run(NamedTuple):
    folder: Path
    result: dict[str, Any]
    said: str


@pytest.fixture(scope="module")
def run(home: Home) -> Run:
    """A finished run without any validation but the last, and what it said."""
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("builtins.print", lambda *args, **_: lines.append(" ".join(map(str, args))))
        patch.setattr(log, "info", lambda message, *args: lines.append(message % args if args else message))
        patch.setattr(throughput, "measured_peak", lambda *_: 1e9)
        folder = pretrain(config(*home.arguments, "checkpoint_every=6"))
    return Run(folder, json.loads((folder / "result.json").read_text(encoding="utf-8")), "\n".join(lines))


def trained(run: Run) -> GPT:
    """The GPT of its last checkpoint, which holds the final step."""
    gpt = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=8, context_length=32)).eval()
    state = torch.load(run.folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 12
    gpt.load_state_dict({name.removeprefix("gpt."): value for name, value in state["state_dict"].items()})
    return gpt


def held_out_ids(home: Home) -> dict[str, list[int]]:
    records = [json.loads(line) for line in (home.folder / "held_out.jsonl").read_text().splitlines()]
    texts = {name: [record["text"] for record in records if record["source"] == name] for name in "ab"}
    return {name: [id for ids in encode(some) for id in (*ids, END_OF_TEXT)] for name, some in texts.items()}


def test_the_losses_of_a_run_are_those_of_its_weights_by_source(run, home):
    gpt, expected = trained(run), {}
    for name, ids in held_out_ids(home).items():
        total = 0.0
        for start in range(0, len(ids) - 1, 8):
            window = torch.tensor([ids[start : start + 9]])
            with torch.no_grad():
                logits = gpt(window[:, :-1])[0] @ gpt.token_embedding.weight.T
            total += F.cross_entropy(logits, window[0, 1:], reduction="sum").item()
        expected[name] = (total / (len(ids) - 1), len(ids) - 1)
    tokens = sum(n for _, n in expected.values())
    expected["all"] = (sum(loss * n for loss, n in expected.values()) / tokens, tokens)
    found = run.result["metrics"]["validation"]
    assert list(found) == list(run.result["metrics"]["bigram"])
    assert found.keys() == expected.keys()
    for name, (loss, n) in expected.items():
        assert found[name] == {
            "loss": pytest.approx(loss, rel=1e-5),
            "perplexity": pytest.approx(math.exp(loss), rel=1e-4),
            "tokens": n,
        }


def test_a_run_without_a_validation_still_has_its_curve_and_is_beside_a_bigram_model(run, home):
    (row,) = run.result["curve"]
    assert (row["step"], row["tokens"]) == (12, 12 * 4 * 8)
    held_out = pack(home.folder / "held_out.jsonl", home.folder / "cache")
    whole = [batch for batch in in_order(held_out.ids, 8, 4) if len(batch) == 4]
    some = whole[:: len(whole) // 3][:3]
    assert len(whole) >= 6
    assert row["validation_loss"] == pytest.approx(mean_loss(trained(run), some)[0], rel=1e-5)
    assert (run.folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    text = pack(home.folder / "train.jsonl", home.folder / "cache")
    baseline = bigram(text.ids, held_out.ids, held_out.sources, 50257)
    assert run.result["bigram"] == {"alpha": baseline.alpha}
    for name, (loss, n) in baseline.losses.items():
        measured = run.result["metrics"]["bigram"][name]
        assert measured == {"loss": loss, "perplexity": math.exp(loss), "tokens": n}
        ours = run.result["metrics"]["validation"][name]
        line = f"held-out {name:<12} loss {ours['loss']:.3f}  perplexity {ours['perplexity']:.1f}  "
        assert line + f"(bigram model: loss {loss:.3f}, perplexity {math.exp(loss):.1f})" in run.said
    assert f"step 12: held-out loss {row['validation_loss']:.3f}" in run.said
    assert "\n    Congratulations! You have won |" in run.said


def test_the_exported_weights_are_the_trained_ones_in_bf16(run):
    gpt = trained(run)
    loaded = weights.build("mini", str(run.folder / "model"), gpt.config, seed=5).eval()
    rounded = GPT(gpt.config).eval()
    rounded.load_state_dict({name: value.bfloat16().float() for name, value in gpt.state_dict().items()})
    ids = torch.tensor(encode(["the cat sat on our house"]))
    assert torch.equal(loaded.logits(loaded(ids)), rounded.logits(rounded(ids)))
    assert not torch.equal(loaded.logits(loaded(ids)), gpt.logits(gpt(ids)))


def test_the_command_that_is_printed_takes_the_trained_gpt_with_its_sizes(run):
    _, _, command = run.said.rpartition("python -m src.train ")
    cfg = compose("train", command.split())
    alone = compose("train", [f"gpt.weights={run.folder / 'model'}"])
    assert build.build_gpt(cfg).config == trained(run).config
    with pytest.raises(InputError, match=r"n_head=2.*gpt\.n_head=6"):
        build.build_gpt(alone)


@pytest.mark.parametrize("overrides", [(), ("padded=0.5", "optimizer=muon", "num_sampled=50")])
def test_a_killed_run_goes_on_by_its_id(run, home, tmp_path, monkeypatch, overrides):
    if overrides:
        folder = pretrain(config(*home.arguments, f"runs={tmp_path / 'straight'}", *overrides))
        run = Run(folder, json.loads((folder / "result.json").read_text(encoding="utf-8")), "")
    given = [*home.arguments, f"runs={tmp_path / 'killed'}", *overrides]
    step = CausalLM.training_step

    def killed(model: CausalLM, batch: Tensor, index: int) -> Tensor:
        if model.trainer.global_step == 8:
            raise KilledError
        return step(model, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(CausalLM, "training_step", killed)
        with pytest.raises(KilledError):
            pretrain(config(*given))
    (folder,) = (tmp_path / "killed").iterdir()
    assert not (folder / "result.json").exists()
    assert pretrain(config(f"resume={folder.name}", f"runs={tmp_path / 'killed'}")) == folder
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert result["metrics"] == run.result["metrics"]
    assert (folder / "model/model.safetensors").read_bytes() == (run.folder / "model/model.safetensors").read_bytes()
    for name in ("train_tokens", "train_flops"):
        assert result["cost"][name] == run.result["cost"][name]
    assert [{**row, "seconds": 0} for row in result["curve"]] == [{**row, "seconds": 0} for row in run.result["curve"]]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_pretraining_at_once_and_says_how_to_go_on(home, tmp_path, monkeypatch, capsys, number, status):
    step = CausalLM.training_step

    def signalled(model: CausalLM, batch: Tensor, index: int) -> Tensor:
        if model.trainer.global_step == 8:
            os.kill(os.getpid(), number)
        return step(model, batch, index)

    monkeypatch.setattr(CausalLM, "training_step", signalled)
    with pytest.raises(SystemExit) as ended, one_sentence():
        pretrain(config(*home.arguments, f"runs={tmp_path}"))
    assert ended.value.code == status
    (folder,) = tmp_path.iterdir()
    said = capsys.readouterr().err
    assert f"{folder} keeps its last checkpoint" in said
    assert f"go on with python -m src.pretrain resume={folder.name} runs={tmp_path}" in said


def test_a_finished_pretraining_is_not_gone_on_with(run):
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=f"run {run.folder.name} has finished"):
        pretrain(config(f"resume={run.folder.name}", f"runs={run.folder.parent}"))
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before


def test_losses_are_told_by_source_by_domain_and_of_all():
    losses = {"reviews/films": (2.0, 30), "mail": (1.0, 10), "reviews/books": (4.0, 10)}
    found = by_source(losses)
    assert {name: (row["loss"], row["tokens"]) for name, row in found.items()} == {
        **losses,
        "reviews/": (2.5, 40),
        "all": (2.2, 50),
    }
    assert all(row["perplexity"] == math.exp(row["loss"]) for row in found.values())


def test_one_pass_over_the_text_is_the_default(home, monkeypatch):
    text = pack(home.folder / "train.jsonl", home.folder / "cache")
    batches = ((len(text.ids) - 1) // 8 - 1) // 4
    cfg = config(*home.arguments, "max_steps=null", "trainer.accumulate_grad_batches=3")
    assert parts.pretrainer(cfg, batches, logger=False, enable_checkpointing=False).max_steps == batches // 3
    assert parts.pretrainer(cfg, 2, logger=False, enable_checkpointing=False).max_steps == 1


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["corpus.path=???"], "corpus.path is missing"),
        (["window=33"], "window=33"),
        (["window=0"], "window=0"),
        (["batch_size=500"], "500 windows of 8 tokens need 4009"),
        (["batch_size=90"], "corpus.validation_path"),
        (["padded=1.5"], "padded=1.5"),
        (["batch_size=0"], "batch_size=0"),
        (["validate_every=0"], "validate_every=0"),
        (["checkpoint_every=0"], "checkpoint_every=0"),
        (["validation_batches=0"], "validation_batches=0"),
        (["chunk=0"], "chunk=0"),
        (["num_sampled=0"], "num_sampled=0"),
        (["max_steps=0"], "max_steps=0"),
        (["budget_minutes=1"], "max_steps=12 and budget_minutes=1"),
        (["gpt.vocab_size=1000"], "gpt.vocab_size=1000"),
        (["gpt.causal=false"], "gpt.causal=false"),
        (["prompts=['a b c d e f g h i j']"], "10 tokens and 24 new ones"),
        (["prompts=['']"], "empty prompt"),
        (["trainer.max_epochs=2"], "trainer.max_epochs=2"),
        (["trainer.gradient_clip_val=-1"], "trainer.gradient_clip_val=-1"),
        (["trainer.accumulate_grad_batches=0"], "trainer.accumulate_grad_batches=0"),
        (["+trainer.max_steps=2"], "trainer.max_steps"),
        (["+held=1"], "held"),
    ],
)
def test_what_cannot_be_pretrained_is_refused_before_there_is_a_folder(home, tmp_path, overrides, named):
    given = [*home.arguments, f"runs={tmp_path / 'runs'}", *overrides]
    assert named in sentence(lambda: pretrain(config(*given)))
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_process_that_is_killed_for_good_goes_on_to_the_same_weights(home, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    common = [*home.arguments, "max_steps=400", "checkpoint_every=20", "validate_every=50", "gpt.dropout=0.1"]

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "src.pretrain", *arguments], cwd=ROOT)

    straight = start(*common, f"runs={tmp_path / 'straight'}")
    resume: list[str] = []
    for _ in range(2):
        process = start(*(resume or common), f"runs={tmp_path / 'killed'}")
        seen = {path.stat().st_mtime_ns for path in tmp_path.glob("killed/*/checkpoints/last.ckpt")}
        while process.poll() is None and seen >= {
            path.stat().st_mtime_ns for path in tmp_path.glob("killed/*/checkpoints/last.ckpt")
        }:
            time.sleep(0.05)
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL  # it had not ended by itself
        (folder,) = (tmp_path / "killed").iterdir()
        resume = [f"resume={folder.name}"]
    assert start(*resume, f"runs={tmp_path / 'killed'}").wait() == 0
    assert straight.wait() == 0
    (expected,) = (tmp_path / "straight").iterdir()
    found, wanted = (json.loads((run / "result.json").read_text()) for run in (folder, expected))
    assert (folder / "model/model.safetensors").read_bytes() == (expected / "model/model.safetensors").read_bytes()
    assert found["metrics"] == wanted["metrics"]
    assert [row["validation_loss"] for row in found["curve"]] == [row["validation_loss"] for row in wanted["curve"]]


@pytest.mark.slow
def test_an_offline_wandb_run_holds_the_numbers_of_the_folder(home, tmp_path, monkeypatch):
    for variable in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))
    folder = pretrain(config(*home.arguments, "logger=wandb", f"runs={tmp_path / 'runs'}", "validate_every=4"))
    reader = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", "--summary", str(folder / "wandb")]
    summary = json.loads(subprocess.run(reader, capture_output=True, text=True, check=True).stdout)["summary"]
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    final = {
        f"final/{part}/{source}/{key}": value
        for part, sources in result["metrics"].items()
        for source, measured in sources.items()
        for key, value in measured.items()
    }
    cost = {f"cost/{name}": value for name, value in result["cost"].items()}
    assert {key: value for key, value in summary.items() if key.startswith(("final/", "cost/"))} == final | cost
    assert {"validation/loss", "tokens_per_second", "share_of_peak", "done"} <= summary.keys()
    (table,) = (folder / "wandb").glob("latest-run/files/media/table/continuations*12*.json")
    rows = json.loads(table.read_text(encoding="utf-8"))["data"]
    assert [row[0] for row in rows] == list(config().prompts)
