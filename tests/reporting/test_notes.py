"""Notes that look beyond a table's rows one by one: rows taken together, and models without a GPT beside them."""

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from src.evaluation import differences
from src.reporting import comparisons, counting, finished, rows, together
from src.sweeps import study
from tests.reporting.test_report import answers, finished_rows, write_run, write_study


@pytest.fixture
def specialists(tmp_path: Path) -> list[rows.Row]:
    """A generalist of 100 test messages, of which one model of its own has the first 40, and another the last 60."""
    right = {seed: answers(100, 70, seed) for seed in (1, 2)}

    def outcome(experiment: str, seed: int) -> dict[str, Any]:
        alone = {"specialist_spam": slice(0, 40), "specialist_news": slice(40, 100)}.get(experiment)
        if alone is None:
            return {"right": right[seed]}
        gained = [True] * 5 + right[seed][alone][5:]
        return {"right": gained, "first": alone.start}

    return finished_rows(
        tmp_path, {"experiment": ["generalist", "specialist_spam", "specialist_news"], "seed": [1, 2]}, outcome
    )


def test_rows_that_share_out_the_messages_of_their_reference_are_compared_as_one(specialists):
    general, spam, news = specialists
    against = comparisons.references(specialists)
    ((joined, one),) = together.shared_out(specialists, against)
    assert one is general
    assert joined.places.keys() == general.places.keys()
    np.testing.assert_array_equal(joined.right, np.hstack([spam.right, news.right]))
    (shown,) = comparisons.compared([joined], [general])
    assert shown.difference == pytest.approx(joined.accuracy - general.accuracy)
    assert shown.p == differences.paired_p(joined.right, general.right)
    (note,) = together.together_note(specialists, against)
    assert f"on the 100 test messages of generalist: {spam.label}, {news.label}" in note
    low, high = shown.crossed.interval
    assert (
        f"{100 * shown.difference:+.2f} ± {100 * shown.deviation:.2f} points ({100 * low:+.1f} to {100 * high:+.1f})"
        in note
    )
    assert f"p (messages) {shown.corrected:.3f}" in note
    assert note.endswith(f": {shown.verdict} (after Holm for 1).")


def test_rows_that_leave_a_message_out_or_test_one_twice_are_not_taken_together(specialists):
    general, spam, news = specialists

    def taken(*some: rows.Row) -> list[str]:
        return [row.label for row, _ in together.shared_out(some, [general, *[general] * (len(some) - 1)])]

    both = f"{spam.label}, {news.label}"
    assert taken(general, spam) == taken(general, spam, spam) == []
    assert taken(general, spam, spam, news) == [both]  # not three rows
    assert taken(general, spam, news, spam, news) == [both, both]


def test_rows_of_other_kinds_or_references_are_not_taken_together_nor_before_all_have_finished(specialists):
    general, spam, news = specialists
    other = rows.Row("other", {}, runs=general.runs)
    three, four = [general, spam, news], [general, spam, other, news]
    assert together.shared_out(three, [general, general, other]) == []
    assert len(together.shared_out(four, [general, general, other, general])) == 1  # those between do not part them
    assert together.shared_out([*three, rows.Row("missing", {})], [general] * 3 + [None]) == []
    for run in news.runs:
        run.result["task"] = run.result["task"] | {"name": "another"}
    assert together.shared_out(three, [general] * 3) == []


def test_rows_are_taken_together_over_the_seeds_that_all_have(specialists):
    general, spam, news = specialists
    first = rows.Row("first", {}, runs=spam.runs[:1])
    ((joined, _),) = together.shared_out([general, first, news], [general] * 3)
    assert joined.seeds == [1]
    last = rows.Row("last", {}, runs=news.runs[1:])
    assert together.shared_out([general, first, last], [general] * 3) == []


def test_the_best_model_without_a_gpt_on_the_same_messages_stands_under_a_study_of_gpts(tmp_path):
    def gpt(pooling: str, seed: int) -> dict[str, Any]:
        return {"right": answers(100, 80, seed)}

    asked = finished_rows(tmp_path, {"task.pooling": ["last", "mean"], "seed": [1, 2]}, gpt)
    count = write_study(tmp_path, "count", {"experiment": ["nb_svm", "tfidf_words"], "seed": [1, 2]})
    for point in study.trials(study.read(count)):
        words = point.values["experiment"] == "tfidf_words"  # better on validation, worse on test
        validation = {"accuracy": 0.9 if words else 0.8}
        more = {"metrics": {"validation": validation, "test": {"accuracy": 0.7 if words else 0.75}}}
        write_run(tmp_path, point, answers(100, 70 if words else 75), trained=False, **more)

    def every() -> list[finished.Finished]:
        return [run for runs in finished.finished(tmp_path / "runs", tmp_path / "runs.tar").values() for run in runs]

    (note,) = counting.counting_note(asked, every())
    assert "1,000 messages: tfidf_words 70.00 ± 0.00% (2 runs)" in note
    assert "nb_svm" not in note
    with tarfile.open(tmp_path / "runs.tar", "w") as tar:
        tar.add(tmp_path / "runs", "runs")
    assert len(every()) == 2 * 8
    assert counting.counting_note(asked, every()) == [note]  # none is counted twice
    counted = rows.read(study.read(count), tmp_path / "runs")
    assert counting.counting_note(counted, every()) == []
    assert counting.counting_note([*asked, *counted], every()) == []  # it has such a row of its own


def test_models_without_a_gpt_on_other_messages_do_not_stand_there(tmp_path):
    asked = finished_rows(tmp_path, {"task.pooling": ["last"]}, lambda _: {"right": answers(100, 80)})
    count = write_study(tmp_path, "count", {"experiment": ["nb_svm"], "data.fraction": [1.0, 0.5]})
    whole, half = study.trials(study.read(count))
    write_run(tmp_path, whole, answers(100, 70), messages="b", trained=False)
    write_run(tmp_path, half, answers(100, 70), trained=False)
    every = [run for runs in finished.finished(tmp_path / "runs", None).values() for run in runs]
    assert len(every) == 3
    assert counting.counting_note(asked, every) == []
