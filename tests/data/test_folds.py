"""Cross-validation: folds hold each message once, near-duplicates stand together, and a row of a table is over all."""

import random
from typing import Any

import pytest

from src.config import build
from src.config.command_line import compose
from src.data.corpus import Example
from src.data.datasets import Bundled
from src.data.mixture import Mixture
from src.data.near_duplicates import near_duplicates
from src.data.splits import grouped, normalise
from src.errors import InputError
from src.reporting.comparisons import references
from src.reporting.table import table
from src.runs import identity
from tests.reporting.test_report import answers, finished_rows

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def messages(n: int, seed: int = 0) -> list[Example]:
    """Texts of two classes, every sixth of which has two near-duplicates."""
    rng, found = random.Random(seed), list[Example]()
    for i in range(n):
        text = " ".join("".join(rng.choices(LETTERS, k=6)) for _ in range(6))
        twins = [text, f"{text} x", f"{text} yz"] if i % 6 == 0 else [text]
        found += [Example(twin, "spam" if i % 3 == 0 else "ham") for twin in twins]
    return found


@pytest.mark.parametrize("k", [2, 5])
def test_folds_hold_each_message_once_with_its_near_duplicates(k):
    examples = messages(150)
    numbers = near_duplicates([normalise(example.text) for example in examples])
    group = dict(zip(examples, numbers.tolist(), strict=True))
    tested = list[Example]()
    for i in range(k):
        splits, similarity = grouped(examples, balance=False, fold=f"{i + 1}/{k}")
        assert similarity == 0.5
        assert sorted(example for part in splits for example in part) == sorted(examples)
        groups = [{group[example] for example in part} for part in splits]
        assert sum(map(len, groups)) == len(set(numbers.tolist()))
        assert abs(len(splits.test) - len(examples) / k) <= 3
        assert abs(len(splits.validation) - len(examples) / 10) <= 3
        tested += splits.test
    assert sorted(tested) == sorted(examples)


def data_of(*overrides: str) -> Any:
    data = build.build_data(compose("train", [*overrides]))
    data.take_fraction()
    return data


def test_a_fold_is_the_same_for_every_seed_and_is_named():
    one, other = (data_of("data.fold=2/5", f"seed={seed}") for seed in (1, 2))
    assert one.examples == other.examples
    assert one.facts_of_texts()["split"] == "grouped, fold 2/5"
    assert one.examples["test"] != data_of("data.fold=3/5").examples["test"]


@pytest.mark.parametrize(
    ("given", "key"),
    [
        *(({"fold": fold}, "data.fold") for fold in ("0/5", "6/5", "1/1", "first")),
        *(({"fold": "1/5", "split": "deduplicated"}, "data.split=grouped"), ({"fold": "1/999"}, "data.fold: class")),
    ],
)
def test_what_is_no_fold_is_refused(given, key):
    with pytest.raises(InputError, match=key):
        Bundled(**given)


def test_a_mixture_has_the_folds_of_its_sources():
    with pytest.raises(InputError, match=r"data\.sources\.<name>\.fold"):
        Mixture(sources={"one": Bundled()}, fold="1/5")


def test_a_run_without_folds_is_what_it_was_before_there_were_any():
    def settings(*overrides: str) -> dict[str, Any]:
        return identity.settings(identity.plain(compose("train", [*overrides])))

    assert "fold" not in settings()["data"]
    assert settings("data.fold=1/5") != settings("data.fold=2/5") != settings()
    mixed = settings("data=mix", "data.sources.spam.fold=1/5")["data"]["sources"]
    assert [source.get("fold") for source in mixed.values()] == ["1/5", None, None]


def test_a_row_is_over_the_folds_of_each_seed(tmp_path):
    parameters = {"task.trainable": ["all", "lora"], "data.fold": ["1/3", "2/3", "3/3"], "seed": [1, 2]}
    right = {("1/3", 1): 18, ("2/3", 1): 14, ("3/3", 1): 10, ("1/3", 2): 12, ("2/3", 2): 12, ("3/3", 2): 12}

    def outcome(trainable: str, *place: Any) -> dict[str, Any] | None:
        if trainable == "all":
            return {"right": answers(20, right[place]), "messages": place[0]}
        return None if place == ("2/3", 2) else {"right": answers(20, 15), "messages": place[0]}  # a fold is missing

    found = finished_rows(tmp_path, parameters, outcome)
    both, lora = found
    assert [row.label for row in found] == ["all", "lora"]
    assert both.right.shape == (2, 60)
    assert both.right.sum(1).tolist() == [42, 36]
    assert (both.seeds, both.groups) == ([1, 2], None)
    assert both.deviation("metrics", "test", "accuracy") == pytest.approx(2**0.5 * 0.05)
    assert both.deviation("metrics", "test", "ece") == 0  # of two seeds with 0.125 each, in every fold
    assert lora.deviation("metrics", "test", "ece") is None  # one seed is whole
    assert (len(lora.runs), lora.wanted, lora.right.shape) == (3, 6, (1, 60))
    made = table("folds", "", found, references(found))
    assert any("3 folds" in note for note in made.notes)
    assert made.columns[0].values == ["all", "lora"]


def test_seeds_of_one_fold_on_different_messages_are_no_row(tmp_path):
    parameters = {"data.fold": ["1/2", "2/2"], "seed": [1, 2]}
    with pytest.raises(InputError, match="different messages"):
        finished_rows(tmp_path, parameters, lambda *place: {"right": answers(20, 15), "messages": f"{place}"})
