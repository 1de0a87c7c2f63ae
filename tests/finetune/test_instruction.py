"""Instruction fine-tuning: prompts, the loss, scored and written answers, several tasks, what is forgotten."""

import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from src.config import build
from src.data.batching import Batch, Messages, ShuffledBatches
from src.data.datamodule import evaluation_loader
from src.data.prompts import Prompt, Question, Task, make_task, parse
from src.data.tokenizer import END_OF_TEXT, decode, encode
from src.eval import evaluate
from src.evaluation.metrics import Predictions, mean, measure, measure_tasks
from src.finetune.classifier import Classifier
from src.finetune.instruction import IGNORE_INDEX, InstructionTuner
from src.gpt.model import GPT, GPTConfig
from src.predict import predict_texts, write
from src.runs import run_dir
from src.sweeps import study
from src.train import train
from tests.shared import outspoken_gpt, sentence

pytestmark = pytest.mark.usefixtures("uncounted")
TEMPLATE = "{instruction}\n\nText: {text}\n\nAnswer:"
TINY = GPTConfig(n_layer=2, n_head=2, n_embd=16, context_length=64)
QUESTIONS = [
    Question("spam", ("ham", "spam"), "Is it spam?", {"ham": "no", "spam": "yes"}),
    # answers of one, two and three tokens; the last two share their first one
    Question("wordy", ("a", "b", "c"), None, {"a": "fine", "b": "very good", "c": "very bad indeed"}),
]
SPAM, WORDY = (make_task(question, TEMPLATE) for question in QUESTIONS)
NAMED = {question.name: question for question in QUESTIONS}


def gpt(seed: int = 0, **changes: Any) -> GPT:
    """A tiny GPT whose logits differ: GPT-2's small initial weights would make all answers equally probable."""
    return outspoken_gpt(replace(TINY, **changes), seed).eval()


def batch(task: Task, texts: list[str], labels: list[int], limit: int = 60) -> Batch:
    rows = [task.prompt.around(ids, limit) for ids in encode(texts)]
    return Messages(rows, labels, None)[list(range(len(rows)))]


def instruct(task: Task, model: GPT | None = None, **given: Any) -> InstructionTuner:
    torch.manual_seed(0)
    return InstructionTuner(model or gpt(), [NAMED[task.name]], TEMPLATE, **given).eval()


# prompts and answers


def test_a_prompt_is_the_template_around_the_text():
    ids = SPAM.prompt.around(encode(["win a prize"])[0], 60)
    assert decode(ids) == "Is it spam?\n\nText: win a prize\n\nAnswer:"
    assert [decode(answer) for answer in SPAM.answers] == [" no<|endoftext|>", " yes<|endoftext|>"]
    assert all(answer[-1] == END_OF_TEXT for answer in SPAM.answers)


def test_a_long_text_is_cut_from_the_right_and_prompt_and_answer_are_not():
    text = encode(["word " * 100])[0]
    for limit in (WORDY.prompt.overhead + 1, 40, 60):
        ids = WORDY.prompt.around(text, limit)
        room = limit - WORDY.prompt.overhead
        assert tuple(ids) == (*WORDY.prompt.before, *text[:room], *WORDY.prompt.after)
        assert len(ids) + max(map(len, WORDY.answers)) - 1 == limit


def test_without_an_instruction_the_answers_are_named():
    task = make_task(Question("t", ("x", "y", "z")), "{instruction} {text}")
    assert decode(list(task.prompt.before)) == "Which of these is the following text: x, y or z? "
    assert task.words == ["x", "y", "z"]


def test_a_template_that_ends_in_white_space_gets_answers_without_it():
    task = make_task(Question("t", ("x", "y")), "{text}\n")
    assert [decode(answer[:-1]) for answer in task.answers] == ["x", "y"]


@pytest.mark.parametrize(
    ("template", "answers", "said"),
    [
        ("Is it spam?", None, "task.template"),
        ("{text} {text}", None, "task.template"),
        (TEMPLATE, {"ham": "yes", "spam": "Yes "}, "'yes' and 'Yes' are one answer"),
        (TEMPLATE, {"ham": "no", "spam": "no."}, "'no' and 'no.' are one answer"),
        (TEMPLATE, {"ham": "U.S.", "spam": "u.s . "}, "'U.S.' and 'u.s .' are one answer"),
        (TEMPLATE, {"ham": "no", "spam": " "}, "the answer of class spam is empty"),
        (TEMPLATE, {"ham": "no", "spam": "..."}, "the answer of class spam is empty"),
        (TEMPLATE, {"ham": False, "spam": True}, "the answer of class ham is false"),
        (TEMPLATE, {"ham": "no", "spam": None}, "the answer of class spam is none"),
        (TEMPLATE, {"ham": "no", "spam": 1.5}, "the answer of class spam is 1.5"),
        (TEMPLATE, {"ham": "no", True: "yes"}, "a class is true"),
        (TEMPLATE, {"ham": "no"}, "data.answers has no answer for class spam"),
    ],
)
def test_a_question_that_cannot_be_asked(template, answers, said):
    assert said in sentence(lambda: make_task(Question("t", ("ham", "spam"), "Is it?", answers), template))


@pytest.mark.parametrize(
    ("written", "place"), [("yes", 1), (" Yes.", 1), ("\nno ", 0), ("yes no", -1), ("", -1), ("maybe", -1)]
)
@pytest.mark.parametrize("words", [["no", "yes"], ["No.", "YES..."]])
def test_a_written_answer_is_read_up_to_case_space_and_full_stop(written, place, words):
    assert parse(written, words) == place


@pytest.mark.parametrize("written", ["U.S.", " u.s", "U.S. ."])
def test_full_stops_within_an_answer_count(written):
    assert parse(written, ["US", "U.S.", "3.5"]) == 1
    assert make_task(Question("t", ("a", "b"), None, {"a": "US", "b": "U.S."}), TEMPLATE).words == ["US", "U.S."]


# loss


def by_hand(model: InstructionTuner, prompt: list[int], answer: list[int]) -> list[float]:
    """Log-probability of each answer token, by one plain pass over prompt and answer."""
    ids = torch.tensor([prompt + answer])
    log_p = model.logits(model.gpt(ids)).log_softmax(-1)[0]
    return [log_p[len(prompt) + i - 1, token].item() for i, token in enumerate(answer)]


TEXTS = ["ok", "win a free prize now, call us", "lunch at noon?", "a b c d e f g h i j k l m n o"]


@pytest.mark.parametrize("task", [SPAM, WORDY], ids=lambda task: task.name)
def test_the_loss_is_that_of_the_answer_tokens_alone(task):
    model, labels = instruct(task), [0, 1, 1, len(task.words) - 1]
    given = batch(task, TEXTS, labels)
    prompts = [task.prompt.around(ids, 60) for ids in encode(TEXTS)]
    terms = [x for prompt, y in zip(prompts, labels, strict=True) for x in by_hand(model, prompt, task.answers[y])]
    loss, _ = model.loss(given)
    assert loss.item() == pytest.approx(-sum(terms) / len(terms), abs=1e-5)


def test_padding_does_not_count():
    model, narrow = instruct(WORDY), batch(WORDY, TEXTS, [0, 1, 2, 0])
    wide = narrow._replace(ids=F.pad(narrow.ids, (0, 7), value=11))
    assert torch.allclose(model.loss(wide)[0], model.loss(narrow)[0], atol=1e-6)


def test_loss_equals_transformers_with_labels_outside_the_answer_ignored(tmp_path):
    from safetensors.torch import load_file
    from transformers import GPT2Config, GPT2LMHeadModel

    from src.gpt.weights import export

    model, labels = instruct(WORDY), [0, 1, 2, 1]
    reference = GPT2LMHeadModel(
        GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=64, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0)
    ).eval()
    export(model.gpt, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    reference.load_state_dict(state, strict=False)
    reference.tie_weights()
    sequences = [
        (prompt, WORDY.answers[y])
        for prompt, y in zip([WORDY.prompt.around(ids, 60) for ids in encode(TEXTS)], labels, strict=True)
    ]
    width = max(len(p) + len(a) for p, a in sequences)
    ids = torch.tensor([p + a + [0] * (width - len(p) - len(a)) for p, a in sequences])
    targets = torch.tensor([[-100] * len(p) + a + [-100] * (width - len(p) - len(a)) for p, a in sequences])
    expected = reference(ids, labels=targets).loss
    assert model.loss(batch(WORDY, TEXTS, labels))[0].item() == pytest.approx(expected.item(), abs=1e-4)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_the_loss_of_an_epoch_depends_on_no_batch_size(size, stored):
    """Answers of one to three tokens: a mean over batches, or over messages, of means over tokens is another one."""
    model, labels = instruct(WORDY), [0, 1, 2, 0]
    model.means.to(stored)  # as trainer.precision=bf16-true does
    for phase, step in (
        ("validation", model.validation_step),
        ("train", lambda batch, _: model._shared_step(batch, "train")),
    ):
        for start in range(0, 4, size):
            part = slice(start, start + size)
            step(batch(WORDY, TEXTS[part], labels[part]), 0)
        expected, right = model.loss(batch(WORDY, TEXTS, labels))
        assert model.means[f"{phase}_loss"].compute().item() == pytest.approx(expected.item(), abs=1e-5)
        assert model.means[f"{phase}_accuracy"].compute().item() == right.float().mean().item()


def test_the_accuracy_of_a_step_says_whose_whole_answer_comes_first():
    model, labels = instruct(WORDY), [0, 1, 2, 0]
    given = batch(WORDY, TEXTS, labels)
    logits, targets = model(*model.inputs(given)), model.answers[given.label]
    expected = [
        all(t == IGNORE_INDEX or int(row.argmax()) == t for row, t in zip(rows, ts, strict=True))
        for rows, ts in zip(logits, targets.tolist(), strict=True)
    ]
    assert model.loss(given)[1].tolist() == expected


# scored and written answers


@pytest.mark.parametrize("task", [SPAM, WORDY], ids=lambda task: task.name)
def test_scores_are_the_sums_over_whole_answers(task):
    model = instruct(task)
    given = batch(task, TEXTS, [0, 1, 0, 1])
    row, scores, label, _ = model.predict_step(given, 0)
    prompts = [task.prompt.around(ids, 60) for ids in encode(TEXTS)]
    expected = [[sum(by_hand(model, prompt, answer)) for answer in task.answers] for prompt in prompts]
    assert torch.allclose(scores, torch.tensor(expected), atol=1e-4)
    assert (row.tolist(), label.tolist()) == ([0, 1, 2, 3], [0, 1, 0, 1])


def test_said_is_the_class_whose_words_were_written():
    model = instruct(SPAM)
    yes, no, other = SPAM.answers[1], SPAM.answers[0], encode([" maybe"])[0]

    class Writes:
        def generate(self, n: int, stop: int) -> list[list[int]]:
            assert stop == END_OF_TEXT
            return [yes[:-1], other, no[:-1], yes[:-1]]

    assert model.generated_label(Writes(), torch.tensor([0, 0, 0, 1])).tolist() == [1, -1, 0, 1]  # type: ignore[arg-type]


def test_written_answers_are_measured():
    p = Predictions(torch.tensor([[0.0, -9.0]] * 4), torch.tensor([0, 0, 1, 1]), torch.tensor([0, -1, 1, 0]))
    metrics = measure(p)
    assert (metrics["generated_accuracy"], metrics["valid_rate"], metrics["accuracy"]) == (0.5, 0.75, 0.5)


# what is trained


BLOCK_1 = re.compile(r"gpt\.(blocks\.1|final_norm)\.")


def moved(trainable: str) -> set[str]:
    """Parameters that one step of training changes."""
    model = instruct(SPAM, trainable=trainable).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    loss, _ = model.loss(batch(SPAM, TEXTS, [0, 1, 1, 0]))
    loss.backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0).step()
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


def test_each_strategy_trains_what_it_says():
    assert moved("last_layer") == {"head.weight"}
    assert all(BLOCK_1.match(name) for name in moved("last_block"))
    assert len(moved("last_block")) == 14
    assert "gpt.token_embedding.weight" in moved("all")
    assert "head.weight" not in moved("all")
    # B starts at zero, so that the first step cannot move A
    assert {name.rpartition(".")[2] for name in moved("lora")} == {"lora_B"}


def test_the_output_layer_of_last_layer_starts_as_the_embedding():
    model = instruct(SPAM, trainable="last_layer")
    assert model.head is not None
    assert torch.equal(model.head.weight, model.gpt.token_embedding.weight)
    assert model.head.weight is not model.gpt.token_embedding.weight


def test_without_a_causal_mask_there_is_nothing_to_learn():
    assert "gpt.causal=true" in sentence(lambda: instruct(SPAM, gpt(causal=False)))


# the way between


def test_a_head_of_answers_says_what_the_language_model_says():
    model = gpt()
    classifier = Classifier(model, QUESTIONS[:1], pooling="last_nonpad", head="answers", template=TEMPLATE).eval()
    given = batch(SPAM, TEXTS, [0] * 4)
    hidden = model(given.ids)[torch.arange(4), given.length - 1]
    expected = model.logits(hidden)[:, [answer[0] for answer in SPAM.answers]]
    assert torch.allclose(classifier(given.ids, given.length), expected, atol=1e-5)


def test_a_head_of_answers_needs_answers_that_begin_differently():
    said = sentence(lambda: Classifier(gpt(), QUESTIONS[1:], head="answers", template=TEMPLATE))
    assert said.startswith("task.head=answers")


# end to end


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with two small tables."""
    ham = [f"see you at {place} for {meal}" for place in ("home", "work", "noon", "six") for meal in ("tea", "lunch")]
    spam = [f"{verb} your free {prize} now" for verb in ("win", "claim", "take", "get") for prize in ("prize", "cash")]
    lines = [f"ham\t{text}" for text in ham] + [f"spam\t{text}" for text in spam]
    (tmp_path / "messages.tsv").write_text("label\ttext\n" + "\n".join(lines) + "\n")
    topics = {"x": "rain snow wind sun", "y": "goal match team run", "z": "bank share loan tax"}
    rows = [f"{x}\tthe {word} {n}" for x, words in topics.items() for word in words.split() for n in ("here", "there")]
    (tmp_path / "topics.tsv").write_text("label\ttext\n" + "\n".join(rows) + "\n")
    return tmp_path


TINY_RUN = [
    *("gpt.n_layer=2", "gpt.n_head=2", "gpt.n_embd=32", "gpt.context_length=64", "gpt.weights=random"),
    *("trainer.accelerator=cpu", "trainer.max_epochs=1", "logger=none"),
]


def config(home: Path, *overrides: str) -> DictConfig:
    data = ["data=table", f"data.path={home}/messages.tsv", "data.padding=batch", "data.split=deduplicated"]
    asked = ["data.instruction=Is it spam?", "data.answers={ham: 'no', spam: 'yes'}"]
    return study.config(study.Trial({}, ("task=instruct", *data, *asked, *TINY_RUN, f"runs={home}/runs", *overrides)))


@pytest.mark.slow
def test_an_instruct_model_learns_sixteen_messages_by_heart(home):
    rows = (home / "messages.tsv").read_text()
    (home / "again.tsv").write_text(rows + rows.splitlines()[1] + "\n")
    same = [f"data.{part}_path={home}/again.tsv" for part in ("validation", "test")]
    run = train(
        config(
            home,
            *same,
            "task.trainable=all",
            "optimizer.lr=1e-2",
            "trainer.max_epochs=60",
            "trainer.gradient_clip_val=1",
        )
    )
    test = run.result["metrics"]["test"]
    assert run.result["data"]["sizes"]["test"] == 17
    assert (test["accuracy"], test["generated_accuracy"], test["valid_rate"]) == (1.0, 1.0, 1.0)

    (answer,) = predict_texts(run.folder.name, ["claim your free cash now"], f"{home}/runs")
    assert (answer["label"], answer["said"]) == ("spam", "spam")
    prompt = "Is it spam?\n\nText:\nclaim your free cash now\n\nAnswer:"
    assert write(run.folder.name, prompt, 5, f"{home}/runs") == " yes"
    rows = (run.folder / "predictions.csv").read_text().splitlines()
    assert rows[0] == "row,text_sha256,group,label,predicted,p_ham,p_spam"
    probabilities = [list(map(float, row.split(",")[5:])) for row in rows[1:]]
    assert all(sum(p) == pytest.approx(1, abs=1e-5) for p in probabilities)


def test_answers_with_full_stops_are_recognised_with_and_without_features(home):
    answers = 'data.answers={ham: "No.", spam: "Yes."}'
    run = train(config(home, answers, "optimizer.lr=1e-2", "trainer.max_epochs=8"))
    assert run.result["cost"]["features_seconds"] > 0
    for metrics in (run.result["metrics"], evaluate(run.folder.name, f"{home}/runs")[0]):
        assert metrics["train"]["valid_rate"] == 1.0
        assert metrics["train"]["generated_accuracy"] == metrics["train"]["accuracy"]
    (said,) = predict_texts(run.folder.name, ["win your free cash now"], f"{home}/runs")
    assert said["said"] == said["label"]


def test_answers_that_yaml_reads_as_booleans_are_refused_and_numbers_are_answers(home):
    cfg = config(home)
    cfg.data.answers = OmegaConf.create("{ham: no, spam: yes}")
    assert "in quotes" in sentence(lambda: build.data_and_task(cfg))
    cfg.data.answers = OmegaConf.create("{ham: 0, spam: 1}")
    assert build.data_and_task(cfg)[1].tasks[0].words == ["0", "1"]


def test_a_head_cannot_write_and_records_the_precision_that_was_computed_in(home):
    with pytest.warns(UserWarning, match="bf16-mixed"):  # Lightning's, for a CPU
        run = train(config(home, "task=classify", "trainer.precision=16-mixed"))
    assert run.result["environment"]["precision"] == run.trainer.precision == "bf16-mixed"
    assert "fixed labels" in sentence(lambda: write(run.folder.name, "hello", 5, f"{home}/runs"))


@pytest.mark.parametrize("padding", ["longest", "batch", "context"])
@pytest.mark.slow
def test_a_prompted_classifier_reads_what_an_instruct_model_reads(home, padding):
    asked, _ = build.data_and_task(config(home, f"data.padding={padding}"))
    classify = ("task=classify", "task.prompt=instruction")
    prompted, _ = build.data_and_task(config(home, *classify, f"data.padding={padding}"))
    assert prompted.splits["train"].ids == asked.splits["train"].ids
    assert all(len(ids) <= (asked.splits["test"].width or 64) for ids in asked.splits["test"].ids)
    assert [decode(ids).count("Is it spam?") for ids in asked.splits["test"].ids] == [1] * len(asked.splits["test"])


def test_a_prompt_that_leaves_no_room_for_the_text(home):
    overhead = build.build_task(config(home), ["ham", "spam"]).prompts[0].overhead
    build.data_and_task(config(home, f"data.max_length={overhead + 1}"))
    said = sentence(lambda: build.data_and_task(config(home, f"data.max_length={overhead}")))
    assert re.search(rf"{overhead} tokens long.* no room for the text in {overhead}.*data\.max_length", said)
    long = "data.answers={ham: 'no', spam: '" + "very " * 70 + "much'}"
    assert "no room for the text in 64" in sentence(lambda: build.data_and_task(config(home, long)))


# several tasks


def mix(home: Path, *overrides: str) -> DictConfig:
    sources = ["data=mix", *(f"~data.sources.{name}" for name in ("spam", "sentiment", "news"))]
    for name, file in (("mail", "messages"), ("topic", "topics")):
        sources += [f"+data@data.sources.{name}=table", f"data.sources.{name}.path={home}/{file}.tsv"]
        sources += [f"data.sources.{name}.split=deduplicated"]
    sources += ["data.sources.mail.instruction=Is it spam?", "data.sources.mail.answers={ham: 'no', spam: 'yes'}"]
    tiny = [*TINY_RUN, "gpt.n_layer=1", "gpt.n_embd=16", f"runs={home}/runs"]
    return study.config(study.Trial({}, ("task=instruct", *sources, *tiny, *overrides)))


LABELS = ["mail/ham", "mail/spam", "topic/x", "topic/y", "topic/z"]


def test_a_mix_asks_each_message_its_own_question(home):
    data, model = build.data_and_task(mix(home))
    tasks = model.tasks
    assert list(data.labels) == LABELS
    assert [(task.name, task.classes) for task in tasks] == [("mail", [0, 1]), ("topic", [2, 3, 4])]
    for ids, label in zip(data.splits["test"].ids, data.splits["test"].labels, strict=True):
        assert decode(ids).startswith("Is it spam?") == (label < 2)
    for example, label in zip(data.examples["train"], data.splits["train"].labels, strict=True):
        assert LABELS[label].endswith(f"/{example.label}")
    batches = list(data.evaluation_loader("test"))
    assert sorted(row for batch in batches for row in batch.row.tolist()) == list(range(len(data.splits["test"])))
    assert all(len({int(label) < 2 for label in batch.label}) == 1 for batch in batches)


@pytest.mark.parametrize("padding", ["longest", "batch"])
@pytest.mark.slow
def test_a_message_of_a_mix_is_cut_at_prediction_as_in_training(home, padding, monkeypatch):
    long = {"topics": ["x", "y", "z"], "messages": ["ham", "spam"]}
    for name, labels in long.items():
        rows = [f"{label}\t{'the rain here ' * 30}" for label in labels]
        (home / f"long_{name}.tsv").write_text("label\ttext\n" + "\n".join(rows) + "\n")
    sources = [
        f"data.sources.{task}.{part}_path={home}/long_{file}.tsv"
        for task, file in (("mail", "messages"), ("topic", "topics"))
        for part in ("validation", "test")
    ]
    run = train(mix(home, f"data.padding={padding}", *sources))
    read: list[Messages] = []

    def captured(messages: Messages, *_: Any) -> Any:
        read.append(messages)
        return evaluation_loader(messages, 8)

    monkeypatch.setattr("src.exporting.finished_run.evaluation_loader", captured)
    for task, part in run.data.sources.items():  # type: ignore[attr-defined]
        list(predict_texts(run.folder.name, part.texts("test"), f"{home}/runs", task=task))
        assert read[-1].ids == part.splits["test"].ids
    assert max(map(len, run.data.splits["test"].ids)) <= run.result["data"]["max_length"]


@pytest.mark.slow
def test_a_mix_of_one_task_chooses_a_threshold_and_an_epoch_as_the_task_alone_does(home):
    given = ("~data.sources.topic", "threshold=f1", "monitor=validation/average_precision", "trainer.max_epochs=1")
    result = train(mix(home, *given)).result
    assert result["threshold"]["aim"] == "f1"
    assert result["positive"] in result["data"]["labels"]


def test_metrics_of_a_mix_are_those_of_each_task_and_their_mean(home):
    run = train(mix(home))
    by_task, metrics = run.result["tasks"]["test"], run.result["metrics"]["test"]
    assert list(by_task) == ["mail", "topic"]
    for name in metrics:
        assert metrics[name] == pytest.approx((by_task["mail"][name] + by_task["topic"][name]) / 2, nan_ok=True)
    rows = [row.split(",") for row in (run.folder / "predictions.csv").read_text().splitlines()[1:]]
    for name, values in by_task.items():
        own = [row for row in rows if row[3].startswith(f"{name}/")]
        assert all(row[4].startswith(f"{name}/") for row in own)
        assert values["accuracy"] == pytest.approx(sum(row[3] == row[4] for row in own) / len(own))

    measured, sizes = evaluate(run.folder.name, f"{home}/runs")
    assert {part: measured[part] for part in run.result["metrics"]} == run.result["metrics"]
    assert measured["test, topic"] == pytest.approx(by_task["topic"], nan_ok=True)
    assert sizes["test, topic"] == len(run.data.sources["topic"].splits["test"])  # type: ignore[attr-defined]

    (answer,) = predict_texts(run.folder.name, ["the bank here"], f"{home}/runs", task="topic")
    assert set(answer["probabilities"]) == {"topic/x", "topic/y", "topic/z"}
    said = sentence(lambda: list(predict_texts(run.folder.name, ["the bank here"], f"{home}/runs")))
    assert "task=<one of mail, topic>" in said


def test_a_task_that_is_left_out_is_tested_only(home):
    run = train(mix(home, "data.leave_out=topic"))
    assert {e.label for e in run.data.examples["train"]} == {"ham", "spam"}
    assert set(run.result["tasks"]["train"]) == set(run.result["tasks"]["validation"]) == {"mail"}
    assert set(run.result["tasks"]["test"]) == {"mail", "topic"}
    assert run.result["metrics"]["test"] == run.result["tasks"]["test"]["mail"]


def test_even_sampling_draws_as_many_of_each():
    groups = torch.tensor([0] * 20 + [1] * 5 + [2] * 8).numpy()
    batches = ShuffledBatches(33, 4, seed=1, groups=groups)
    epochs = []
    for epoch in range(2):
        batches.set_epoch(epoch)
        rows = [row for batch in batches for row in batch]
        assert Counter(groups[rows].tolist()) == {0: 5, 1: 5, 2: 5}
        assert len(set(rows)) == 15
        assert len(batches) == len(list(batches)) == 4
        epochs.append(rows)
    assert set(epochs[0]) != set(epochs[1])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.sampling=odd", "data.sampling=odd"),
        ("data.leave_out=chess", "data.leave_out=chess is none of data.sources: mail, topic"),
        ("data.sources.mail.batch_size=2", "data.sources.mail.batch_size"),
        ("task=classify", "task=instruct"),
    ],
)
def test_a_mix_that_cannot_be(home, override, said):
    assert said in sentence(lambda: build.data_and_task(mix(home, override)))


def test_predictions_of_some_classes():
    log_p = torch.tensor([[0.1, 0.9, 0, 0], [0, 0, 0.3, 0.7], [0.8, 0.2, 0, 0]]).log()
    p = Predictions(log_p, torch.tensor([1, 3, 1]), torch.tensor([1, -1, 0]))
    mail, topic = p.of([0, 1]), p.of([2, 3])
    assert (mail.labels.tolist(), mail.said) == ([1, 1], pytest.approx(torch.tensor([1, 0])))
    assert mail.predicted.tolist() == [1, 0]
    assert (topic.labels.tolist(), topic.predicted.tolist()) == ([1], [1])
    assert topic.said is not None
    assert topic.said.tolist() == [-1]
    measured = measure_tasks(p, {"mail": [0, 1], "topic": [2, 3], "none": []})
    assert {name: m["accuracy"] for name, m in measured.items()} == {"mail": 0.5, "topic": 1.0}
    assert mean(list(measured.values()))["accuracy"] == 0.75


# what is forgotten


def loss_by_hand(model: GPT, output: Tensor, windows: list[Tensor]) -> float:
    losses = [
        F.cross_entropy((model(w[:, :-1]) @ output.T).flatten(0, 1), w[:, 1:].flatten(), reduction="sum")
        for w in windows
    ]
    return sum(x.item() for x in losses) / sum(w[:, 1:].numel() for w in windows)


@torch.no_grad()
@pytest.mark.parametrize(("task", "trainable"), [("classify", "all"), ("instruct", "all"), ("instruct", "last_layer")])
@pytest.mark.slow
def test_forgetting_is_measured_with_blocks_and_output_layer_as_they_are(task, trainable, home):
    (home / "held_out.txt").write_text("the rain falls on the team at the bank. " * 30)
    overrides = [f"held_out.path={home}/held_out.txt", f"task={task}", f"task.trainable={trainable}"]
    overrides += ["optimizer.lr=1e-2"]
    with torch.enable_grad():
        run = train(config(home, *overrides))
    windows = build.held_out_windows(config(home, *overrides))
    base = build.build_gpt(config(home, *overrides))
    before, after = (run.result["language"][when] for when in ("before", "after"))
    assert before["loss"] == pytest.approx(loss_by_hand(base, base.token_embedding.weight, windows), abs=1e-4)
    head = run.model.head if task == "instruct" else None
    output = run.model.gpt.token_embedding if head is None else head
    assert not torch.equal(output.weight, base.token_embedding.weight)
    assert after["loss"] == pytest.approx(loss_by_hand(run.model.gpt, output.weight, windows), abs=1e-4)
    assert after["loss"] != before["loss"]
    assert before["perplexity"] == pytest.approx(math.exp(before["loss"]))
    restored, trained = build.restore(run.folder).state_dict(), run.model.state_dict()
    assert all(torch.equal(restored[name], trained[name]) for name in run.model.trained)
    assert before["tokens"] == sum(w[:, 1:].numel() for w in windows)


def test_a_new_head_forgets_nothing(home):
    (home / "held_out.txt").write_text("the rain falls on the team at the bank. " * 30)
    run = train(config(home, "task.trainable=last_layer", f"held_out.path={home}/held_out.txt"))
    assert run.result["language"]["after"] == pytest.approx(run.result["language"]["before"], rel=1e-5)
    assert run_dir.load_result(run.folder)["language"] == run.result["language"]


def test_a_bare_text_has_no_prompt():
    assert Prompt().around([1, 2, 3], 2) == [1, 2]
    assert Prompt().overhead == 0
