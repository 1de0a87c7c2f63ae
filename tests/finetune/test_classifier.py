"""What is read, trained and measured in classification fine-tuning, and what it costs."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import LambdaCallback
from sklearn import metrics as sklearn_metrics
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from src.config import build
from src.config.command_line import compose
from src.config.instantiate import build_optimizer, check, check_type
from src.config.trainer import build_trainer, own_callbacks
from src.data.batching import Messages, ShuffledBatches, chunked
from src.data.datamodule import evaluation_loader, loader
from src.data.prompts import Question
from src.evaluation.metrics import Predictions, confusion, measure, perplexity, predict
from src.finetune.classifier import Classifier
from src.finetune.cost import Cost, Flops, OrdinaryFlops, count_flops, forget_peak_memory, peak_memory_bytes
from src.finetune.freezing import first_trainable_block, trainable_names
from src.finetune.optim import clip, lr_multiplier, warmup_schedule
from src.finetune.pooling import pooling_index
from src.gpt.lora import LoRA
from src.gpt.model import GPT, GPTConfig
from tests.shared import quiet_trainer, sentence

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore:.*isinstance.treespec.*")

CONFIG = GPTConfig(n_layer=4, n_head=2, n_embd=16, context_length=64)
FAST = partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.0)  # no decay: only a gradient moves a parameter

HEAD = {"head.weight", "head.bias"}
FINAL_NORM = {"gpt.final_norm.weight", "gpt.final_norm.bias"}
EMBEDDINGS = {"gpt.token_embedding.weight", "gpt.position_embedding.weight"}
LAYERS = ("attention.qkv", "attention.out", "mlp.up", "mlp.down")
BLOCK = [
    {f"gpt.blocks.{i}.{layer}.{kind}" for layer in ("norm1", "norm2", *LAYERS) for kind in ("weight", "bias")}
    for i in range(4)
]
FACTORS = {f"gpt.blocks.{i}.{layer}.lora_{factor}" for i in range(4) for layer in LAYERS for factor in "AB"}
TRAINED = {  # of a GPT of four blocks
    "last_layer": HEAD,
    "last_block": HEAD | FINAL_NORM | BLOCK[3],
    "last_two_blocks": HEAD | FINAL_NORM | BLOCK[3] | BLOCK[2],
    "3_blocks": HEAD | FINAL_NORM | BLOCK[3] | BLOCK[2] | BLOCK[1],
    "all": HEAD | FINAL_NORM | BLOCK[3] | BLOCK[2] | BLOCK[1] | BLOCK[0] | EMBEDDINGS,
    "lora": HEAD | FACTORS | {"head.lora_A", "head.lora_B"},
    "block_3": HEAD | FINAL_NORM | BLOCK[3],
    "block_1": HEAD | FINAL_NORM | BLOCK[1],
    "norms": HEAD | FINAL_NORM | {name for block in BLOCK for name in block if ".norm" in name},
    "bitfit": HEAD | {"gpt.final_norm.bias"} | {name for block in BLOCK for name in block if name.endswith(".bias")},
}
FIRST_TRAINABLE = {"last_layer": 4, "last_block": 3, "last_two_blocks": 2, "3_blocks": 1, "block_3": 3, "block_1": 1}
FIRST_TRAINABLE |= dict.fromkeys(("all", "lora", "norms", "bitfit"), 0)


def classifier(
    strategy: str = "last_block", n_classes: int = 2, seed: int = 0, config: GPTConfig = CONFIG, **settings: Any
) -> Classifier:
    """A classifier of four small blocks; `seed` is the head's, the GPT is always the same."""
    settings = {"optimizer": FAST, "lora": LoRA(rank=2, alpha=2), **settings}
    gpt = GPT(config, seed=0)
    torch.manual_seed(seed)
    return Classifier(gpt, [Question("", tuple("abcd"[:n_classes]))], trainable=strategy, **settings)


def messages(n: int = 8, width: int | None = 12, n_classes: int = 2) -> Messages:
    """Random messages of 2 to 11 tokens."""
    rng = np.random.default_rng(0)
    ids = [rng.integers(50256, size=rng.integers(2, 12)).tolist() for _ in range(n)]
    return Messages(ids, [i % n_classes for i in range(n)], width)


def fit(model: Classifier, data: Messages, batch_size: int = 4, validation: bool = False, **settings: Any) -> L.Trainer:
    """Train on `data` in its own order, and validate on it if asked to."""
    trainer = quiet_trainer(**settings)
    batches = chunked(list(range(len(data))), batch_size)
    trainer.fit(model, loader(data, batches, 0), loader(data, batches, 0) if validation else None)
    return trainer


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def losses_into(found: list[float]) -> LambdaCallback:
    return LambdaCallback(on_train_batch_end=lambda trainer, model, output, *_: found.append(output["loss"].item()))


# pooling


@pytest.mark.parametrize(
    ("pooling", "expected"), [("first", [[0], [0]]), ("last", [[2], [2]]), ("last_nonpad", [[0], [1]]), ("mean", None)]
)
def test_the_place_of_each_pooling(pooling, expected):
    found = pooling_index(torch.tensor([1, 2]), 3, pooling)
    assert (found if found is None else found.tolist()) == expected


def test_an_unknown_pooling_is_refused() -> None:
    given = {"gpt": None, "questions": None}
    assert "task.pooling=middle" in sentence(lambda: check("task", Classifier, {"pooling": "middle"}, given))


# trainable


@pytest.mark.parametrize("strategy", ["last_layer", "last_block", "all"])
def test_dropout_is_off_below_the_first_trained_block_and_on_above(strategy):
    model = classifier(strategy, config=replace(CONFIG, dropout=0.5)).train()
    ids, live = torch.arange(8).reshape(1, 8), model.first_trainable
    same = torch.equal(model.gpt.lower_blocks(ids, live), model.gpt.lower_blocks(ids, live))
    assert same == (live > 0)
    assert [block.mlp.training for block in model.gpt.blocks] == [i >= live for i in range(CONFIG.n_layer)]
    assert torch.equal(model.eval()(ids, torch.tensor([8])), model(ids, torch.tensor([8])))


def test_where_an_embedding_is_trained_so_is_every_block():
    assert first_trainable_block({"gpt.token_embedding.weight", "gpt.blocks.3.norm1.bias"}, n_layer=4) == 0


@pytest.mark.parametrize(
    ("strategy", "n_layer"),
    [("last_blok", 4), ("last_block", 0), ("5_blocks", 4), ("0_blocks", 4), ("block_4", 4), ("block_-1", 4)],
)
def test_a_strategy_that_cannot_be_is_refused(strategy, n_layer):
    assert f"task.trainable={strategy}" in sentence(lambda: trainable_names(HEAD, strategy, n_layer))


# classify


@pytest.mark.parametrize("strategy", TRAINED)
def test_frozen_parameters_do_not_move_by_a_bit_and_every_trained_one_does(strategy):
    model = classifier(strategy)
    assert (model.trained, model.first_trainable) == (TRAINED[strategy], FIRST_TRAINABLE[strategy])
    before = weights(model)
    fit(model, messages(), max_steps=3)
    after = weights(model)
    assert {name for name in before if not torch.equal(before[name], after[name])} == TRAINED[strategy]


@pytest.mark.parametrize("pooling", ["first", "last", "last_nonpad", "mean"])
def test_the_first_loss_equals_a_forward_of_each_message_alone(pooling):
    model, data, found = classifier(pooling=pooling), messages(4), []
    expected = 0.0
    for ids, label in zip(data.ids, data.labels, strict=True):
        hidden = model.gpt(torch.tensor([ids + [50256] * (12 - len(ids))]))[0]
        vector = {"first": hidden[0], "last": hidden[11], "last_nonpad": hidden[len(ids) - 1], "mean": hidden.mean(0)}
        expected -= ((model.head.weight @ vector[pooling] + model.head.bias).softmax(-1)[label].log() / 4).item()
    fit(model, data, max_steps=1, callbacks=[losses_into(found)])
    assert found == pytest.approx([expected], abs=1e-5)


def test_it_learns_16_random_messages_by_heart():
    model, data = classifier("all", n_classes=4, pooling="last_nonpad"), messages(16, n_classes=4)
    trainer = fit(model, data, batch_size=16, max_steps=30)
    predictions = predict(trainer, model, evaluation_loader(data, 16))
    assert predictions.predicted.tolist() == data.labels


@pytest.mark.parametrize(
    ("pooling", "causal", "same"), [("last_nonpad", True, True), ("last", True, False), ("last_nonpad", False, False)]
)
def test_only_the_last_token_that_is_no_padding_is_blind_to_it(pooling, causal, same):
    model = classifier(pooling=pooling, config=replace(CONFIG, causal=causal)).eval()
    assert model.reads_padding is not same
    rows = list(range(8))
    narrow, wide = messages(width=12)[rows], messages(width=50)[rows]
    with torch.no_grad():
        difference = (model(narrow.ids, narrow.length) - model(wide.ids, wide.length)).abs().max()
    assert (difference < 1e-5) if same else (difference > 1e-2)


def test_ignoring_the_padding_id_as_a_class_changes_nothing():
    plain, ignoring = classifier(), classifier(ignore_index=50256)
    for model in (plain, ignoring):
        fit(model, messages(), max_steps=3)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), ignoring.parameters(), strict=True))


@pytest.mark.parametrize("size", [3, 8])
def test_the_loss_of_a_step_and_of_an_epoch_is_the_mean_over_what_is_not_ignored(size):
    model, data, found = classifier(n_classes=3, ignore_index=1).eval(), messages(8, n_classes=3), []
    for rows in chunked(list(range(8)), size):
        model.validation_step(data[rows], 0)
    whole = data[list(range(8))]
    expected = F.cross_entropy(model(whole.ids, whole.length), whole.label, ignore_index=1).item()
    assert model.means["validation_loss"].compute().item() == pytest.approx(expected, abs=1e-6)
    fit(model, data, 8, max_steps=1, callbacks=[losses_into(found)])
    assert found == pytest.approx([expected], abs=1e-6)


def test_two_accumulated_batches_of_4_equal_one_of_8():
    twice, once = classifier("all"), classifier("all")
    fit(twice, messages(8), batch_size=4, max_steps=1, accumulate_grad_batches=2)
    fit(once, messages(8), batch_size=8, max_steps=1)
    for a, b in zip(twice.parameters(), once.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
        torch.testing.assert_close(a.grad, b.grad, atol=1e-7, rtol=1e-4)  # AdamW's first step hides a wrong scale


# precision


@pytest.mark.parametrize(
    ("precision", "stored"), [("32-true", torch.float32), ("bf16-mixed", torch.float32), ("bf16-true", torch.bfloat16)]
)
def test_every_precision_trains_to_about_the_same_loss(precision, stored):
    model, exact, found, expected = classifier(), classifier(), [], []
    before = weights(model)
    fit(exact, messages(), max_steps=3, callbacks=[losses_into(expected)])
    trainer = fit(model, messages(), max_steps=3, precision=precision, callbacks=[losses_into(found)])
    assert trainer.precision == precision
    assert found == pytest.approx(expected, abs=0.05)
    assert {parameter.dtype for parameter in model.parameters()} == {stored}
    assert not torch.equal(model.head.weight.float(), before["head.weight"].to(stored).float())


def test_full_precision_is_the_default():
    cfg = compose("train", ["trainer.accelerator=cpu"])
    assert build_trainer(cfg, logger=False, enable_checkpointing=False).precision == "32-true"


# a loss that is no number


def fit_as_a_run(model: Classifier, folder: Path, n: int = 8, **settings: Any) -> None:
    """Train with validation and the checkpoints of a run, which land in folder/checkpoints."""
    callbacks = [*settings.pop("callbacks", []), *own_callbacks(compose("train", []), folder)]
    fit(model, messages(n), validation=True, enable_checkpointing=True, callbacks=callbacks, **settings)


@pytest.mark.parametrize(("log_every_n_steps", "steps"), [(1, 2), (50, 4)])
def test_a_nan_stops_training_and_keeps_the_checkpoints_before(tmp_path, log_every_n_steps, steps):
    """Epochs of two steps, broken at the start of the second: noticed at the next look at the loss, or at its end."""
    model, good, found = classifier(), {}, []

    def break_weights(trainer: L.Trainer, model: L.LightningModule) -> None:
        if trainer.current_epoch == 1:
            good.update(weights(model))
            model.head.weight.data[0, 0] = torch.inf

    callbacks = [LambdaCallback(on_train_epoch_start=break_weights), losses_into(found)]
    settings = {"max_epochs": 4, "log_every_n_steps": log_every_n_steps}
    assert "epoch 2" in sentence(lambda: fit_as_a_run(model, tmp_path, callbacks=callbacks, **settings))
    assert len(found) == steps
    kept = {path.name: torch.load(path, weights_only=True) for path in (tmp_path / "checkpoints").iterdir()}
    assert {name: checkpoint["epoch"] for name, checkpoint in kept.items()} == {"best.ckpt": 0, "last.ckpt": 0}
    for checkpoint in kept.values():
        assert all(torch.equal(value, good[name]) for name, value in checkpoint["state_dict"].items())


@pytest.mark.parametrize("n", [4, 8])
def test_a_learning_rate_that_explodes_stops_before_a_checkpoint(tmp_path, n):
    """With 4 messages an epoch is one step: the loss before it is fine, only validation sees the broken weights."""
    model = classifier(optimizer=partial(torch.optim.AdamW, lr=1e20))
    assert "optimizer.lr" in sentence(lambda: fit_as_a_run(model, tmp_path, n, max_epochs=1))
    assert not list(tmp_path.rglob("*.ckpt"))


# checkpoints


@pytest.mark.parametrize("strategy", TRAINED)
def test_a_checkpoint_holds_the_trained_parameters_alone_and_gives_the_logits_back(tmp_path, strategy):
    model, fresh, batch = classifier(strategy), classifier(strategy, seed=1), messages()[[0, 1, 2]]
    path = tmp_path / "checkpoints" / "best.ckpt"
    fit(model, messages(), max_steps=2).save_checkpoint(path)
    assert set(torch.load(path, weights_only=True)["state_dict"]) == TRAINED[strategy]
    assert not torch.equal(fresh(batch.ids, batch.length), model(batch.ids, batch.length))
    build.load_best(fresh, tmp_path)
    assert torch.equal(fresh(batch.ids, batch.length), model(batch.ids, batch.length))


@pytest.mark.parametrize(
    ("saved", "loaded", "wrong"),
    [
        ("last_layer", "last_block", "gpt.blocks.3.attention.out.bias"),
        ("last_block", "last_layer", "gpt.blocks.3.attention.out.bias"),
        ("all", "last_block", "gpt.blocks.0.attention.out.bias"),
        ("last_layer", "lora", "gpt.blocks.0.attention.out.lora_A"),
    ],
)
def test_a_checkpoint_of_another_strategy_is_refused(tmp_path, saved, loaded, wrong):
    path, model = tmp_path / "checkpoints" / "best.ckpt", classifier(loaded)
    fit(classifier(saved), messages(), max_steps=1).save_checkpoint(path)
    before = weights(model)
    assert wrong in sentence(lambda: build.load_best(model, tmp_path))
    assert wrong in sentence(lambda: quiet_trainer().fit(model, loader(messages(), [[0]], 0), ckpt_path=path))
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())


# optimize

SHAPES = ("constant", "cosine", "linear")


@pytest.mark.parametrize(
    ("shape", "progress", "expected"),
    [
        *((shape, 0.0, 1e-3) for shape in SHAPES),
        *((shape, 0.05, 0.25) for shape in SHAPES),
        *((shape, 0.2, 1.0) for shape in SHAPES),
        *(("constant", progress, 1.0) for progress in (0.4, 0.6, 1.0)),
        ("cosine", 0.4, 0.1 + 0.9 * (2 + math.sqrt(2)) / 4),
        ("cosine", 0.6, 0.55),
        ("linear", 0.4, 0.775),
        ("linear", 0.6, 0.55),
        *((shape, progress, 0.1) for shape in ("cosine", "linear") for progress in (1.0, 1.5)),
    ],
)
def test_the_learning_rate_of_each_shape(shape, progress, expected):
    assert lr_multiplier(progress, shape, warmup_ratio=0.2, min_lr_ratio=0.1) == pytest.approx(expected)
    assert lr_multiplier(0.0, shape) == 1.0  # without a warm-up


@pytest.mark.parametrize(
    ("key", "values"), [("shape", ["step"]), ("warmup_ratio", [1.0, -0.1, math.nan]), ("min_lr_ratio", [1.1, -0.1])]
)
def test_a_schedule_that_cannot_be_is_refused(key, values):
    for value in values:
        settings = {"_partial_": True, key: value}
        assert f"scheduler.{key}={value}" in sentence(partial(check, "scheduler", warmup_schedule, settings))


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        *(("lr", None, "optimizer.lr"), ("lr", True, "optimizer.lr"), ("lr", -1.0, "learning rate")),
        *(("weight_decay", -1.0, "weight_decay"), ("rate", 1, "optimizer.rate")),
    ],
)
def test_an_optimizer_that_cannot_be_is_refused(key, value, named):
    said = sentence(lambda: build_optimizer({"_target_": "torch.optim.AdamW", key: value}, "32-true"))
    assert named in said
    assert "isinstance" not in said
    check_type("optimizer.lr", 1, Tensor)  # a type that plain values never have is left alone


def rates_into(found: list[float], hook: str) -> LambdaCallback:
    return LambdaCallback(**{hook: lambda trainer, *_: found.append(trainer.optimizers[0].param_groups[0]["lr"])})


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("accumulate", "steps"), [(1, 10), (2, 6)])
def test_every_step_is_taken_at_the_learning_rate_of_its_progress(shape, accumulate, steps):
    """2 epochs of 5 batches; two batches a step leave a shorter last step in each epoch."""
    schedule, found = {"shape": shape, "warmup_ratio": 0.25, "min_lr_ratio": 0.1}, []
    model, record = classifier(scheduler=partial(warmup_schedule, **schedule)), "on_before_optimizer_step"
    callbacks = [rates_into(found, record)]
    fit(model, messages(10), 2, callbacks=callbacks, max_epochs=2, accumulate_grad_batches=accumulate)
    assert found == pytest.approx([1e-2 * lr_multiplier(step / steps, **schedule) for step in range(steps)])


@pytest.mark.parametrize(
    "scheduler", [partial(ReduceLROnPlateau, patience=0, threshold=1e9), partial(StepLR, step_size=2)]
)
def test_torchs_schedulers_step_with_each_optimizer_step_or_on_the_validation_loss(scheduler):
    """Epochs of two steps: a tenth of the rate after every two of them, or after each loss that is no lower."""
    model, record = classifier(scheduler=scheduler), rates_into(found := [], "on_train_epoch_start")
    fit(model, messages(), validation=True, max_epochs=3, callbacks=[record])
    assert found == pytest.approx([1e-2, 1e-3, 1e-4])


def test_the_defaults_are_adamw_with_the_books_values_over_the_trained_parameters():
    gpt, questions = GPT(CONFIG, seed=0), [Question("", ("a", "b"))]
    tiny = ["gpt=small", "gpt.weights=random", "gpt.n_layer=4", "gpt.n_embd=48", "gpt.context_length=64"]
    for model in (Classifier(gpt, questions), build.build_task(compose("train", tiny), ["a", "b"])):
        (adamw,) = fit(model, messages(), max_steps=1).optimizers
        (group,) = adamw.param_groups
        assert type(adamw) is torch.optim.AdamW
        assert (group["lr"], group["weight_decay"], tuple(group["betas"])) == (5e-5, 0.1, (0.9, 0.999))
        assert {id(p) for p in group["params"]} == {id(p) for n, p in model.named_parameters() if n in model.trained}


@pytest.mark.parametrize(
    ("limit", "how", "expected"),
    [
        *((1.0, "norm", [0.6, 0.8]), (5.5, "norm", [3.0, 4.0]), (None, "norm", [3.0, 4.0]), (0, "norm", [3.0, 4.0])),
        *((3.5, "value", [3.0, 3.5]), (None, "value", [3.0, 4.0])),
    ],
)
def test_clip_bounds_the_global_norm_or_each_value(limit, how, expected):
    module = nn.ParameterList([torch.zeros(1), torch.zeros(1), torch.zeros(1)])
    module[0].grad, module[1].grad = torch.tensor([3.0]), torch.tensor([-4.0])  # the third is frozen
    clip(module, limit, how)
    assert [module[0].grad.item(), -module[1].grad.item()] == pytest.approx(expected, abs=1e-5)
    assert module[2].grad is None


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_training_clips_by_value_where_the_trainer_is_told_so(precision):
    model = classifier("all")
    fit(model, messages(), max_steps=1, precision=precision, gradient_clip_val=1e-3, gradient_clip_algorithm="value")
    assert max(p.grad.abs().max().item() for p in model.parameters()) == pytest.approx(1e-3, rel=0.01)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_training_clips_the_gradient_as_the_trainer_is_told(precision):
    free, clipped = classifier("all"), classifier("all")
    fit(free, messages(), max_steps=1, precision=precision)
    fit(clipped, messages(), max_steps=1, precision=precision, gradient_clip_val=0.01)
    norm = lambda model: torch.stack([p.grad.float().norm() for p in model.parameters()]).norm().item()  # noqa: E731
    assert norm(free) > 0.1
    assert norm(clipped) == pytest.approx(0.01, rel=0.02)


# measure


def random_predictions(n_classes: int, n: int = 200) -> Predictions:
    rng = np.random.default_rng(n_classes)
    logits = torch.from_numpy(rng.normal(size=(n, n_classes))).float()
    labels = torch.from_numpy(np.where(rng.random(n) < 0.4, logits.argmax(-1), rng.integers(n_classes, size=n)))
    return Predictions(logits.log_softmax(-1), labels)


def measured_by_sklearn(predictions: Predictions) -> dict[str, float]:
    """All but the calibration error."""
    p = predictions
    probabilities, predicted, labels = p.probabilities.numpy(), p.predicted.numpy(), p.labels.numpy()
    k = probabilities.shape[1]
    scores = probabilities[:, 1] if k == 2 else probabilities
    complete = len(set(labels)) == k

    def each_class(score: Callable[..., float]) -> float:
        return float(np.mean([score(labels == c, probabilities[:, c]) for c in ([1] if k == 2 else range(k))]))

    def recall_at_p99(is_class: Any, score: Any) -> float:
        precision, recall, _ = sklearn_metrics.precision_recall_curve(is_class, score)
        return float(recall[precision >= 0.99].max())

    return {
        "accuracy": sklearn_metrics.accuracy_score(labels, predicted),
        "f1": sklearn_metrics.f1_score(labels, predicted, labels=range(k), average="macro", zero_division=0),
        "mcc": sklearn_metrics.matthews_corrcoef(labels, predicted),
        "auroc": sklearn_metrics.roc_auc_score(labels, scores, multi_class="ovr") if complete else math.nan,
        "average_precision": each_class(sklearn_metrics.average_precision_score) if complete else math.nan,
        "recall_at_p99": each_class(recall_at_p99) if complete else math.nan,
        "loss": sklearn_metrics.log_loss(labels, probabilities.astype(float), labels=range(k)),
    }


def assert_measured_as_by_sklearn(predictions: Predictions) -> None:
    metrics, ranked = measure(predictions), ["auroc", "average_precision", "recall_at_p99"]
    assert list(metrics) == ["accuracy", "f1", "mcc", *ranked, "ece", "loss"]
    del metrics["ece"]
    assert metrics == pytest.approx(measured_by_sklearn(predictions), abs=1e-5, nan_ok=True)


@pytest.mark.parametrize("n_classes", [2, 3, 4])
def test_metrics_equal_those_of_scikit_learn_also_where_a_class_is_absent(n_classes):
    predictions = random_predictions(n_classes)
    assert_measured_as_by_sklearn(predictions)
    assert not math.isnan(measure(predictions)["auroc"])
    rows = predictions.labels < n_classes - 1
    few = Predictions(predictions.log_probabilities[rows], predictions.labels[rows])
    assert n_classes - 1 in few.predicted
    assert math.isnan(measure(few)["auroc"])
    assert_measured_as_by_sklearn(few)
    expected = sklearn_metrics.confusion_matrix(predictions.labels, predictions.predicted, labels=range(n_classes))
    assert confusion(predictions).tolist() == expected.tolist()


def test_auroc_tells_apart_what_fp32_calls_certain():
    logits = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    labels = (logits[:, 1] + torch.randn(400, generator=torch.Generator().manual_seed(1)) > 0).long()
    logits = logits.double() + torch.tensor([0.0, 25.0])  # softmax in fp32 gives 1 for all of them
    predictions = Predictions(logits.float().log_softmax(-1), labels)
    expected = sklearn_metrics.roc_auc_score(labels, logits[:, 1] - logits[:, 0])
    assert measure(predictions)["auroc"] == pytest.approx(expected, abs=1e-3)


def test_answers_that_became_nan_are_measured_all_the_same():
    metrics = measure(Predictions(torch.full((4, 2), torch.nan), torch.tensor([0, 1, 0, 1])))
    assert (metrics["accuracy"], math.isnan(metrics["auroc"]), math.isnan(metrics["loss"])) == (0.5, True, True)
    assert perplexity(1e4) == math.inf


@pytest.mark.filterwarnings("ignore:A single label")
@pytest.mark.parametrize("labels", [[0, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 1, 2]])
def test_a_constant_answer_is_measured_as_scikit_learn_does(labels):
    """A model that always says class 0 knows nothing: its Matthews correlation is 0 however common that class is."""
    probabilities = torch.tensor([[0.9, 0.06, 0.04], [0.8, 0.11, 0.09], [0.7, 0.16, 0.14], [0.6, 0.25, 0.15]])
    k = max(2, max(labels) + 1)
    assert_measured_as_by_sklearn(Predictions(probabilities[:, :k].log().log_softmax(-1), torch.tensor(labels)))


@pytest.mark.parametrize(
    ("probabilities", "labels", "expected"),
    [
        # bins of 1/15: two at 0.96 on average, one of them right; one at 0.61, right; one at 0.68, wrong
        ([[0.95, 0.05], [0.03, 0.97], [0.61, 0.39], [0.32, 0.68]], [0, 0, 0, 0], (2 * 0.46 + 0.39 + 0.68) / 4),
        # two at 0.43, one of them right; one at 0.7, right; one at 0.95, wrong
        (
            [[0.41, 0.2, 0.2, 0.19], [0.2, 0.45, 0.2, 0.15], [0.1, 0.1, 0.7, 0.1], [0.01, 0.02, 0.02, 0.95]],
            [3, 1, 2, 0],
            (2 * 0.07 + 0.3 + 0.95) / 4,
        ),
        # certainty belongs to the last bin, with 0.97: together 0.985, half of them right
        ([[0.97, 0.03], [0.0, 1.0]], [0, 0], 0.485),
    ],
)
def test_calibration_error_by_hand(probabilities, labels, expected):
    predictions = Predictions(torch.tensor(probabilities).log(), torch.tensor(labels))
    assert measure(predictions)["ece"] == pytest.approx(expected, abs=1e-6)


def test_predictions_come_in_the_order_of_the_rows():
    model, data = classifier("all", n_classes=3, pooling="last_nonpad").eval(), messages(10, None, n_classes=3)
    batches = evaluation_loader(data, 4)
    assert torch.cat([batch.row for batch in batches]).tolist() != list(range(10))
    with torch.no_grad():
        alone = [model(torch.tensor([ids]), torch.tensor([len(ids)])).log_softmax(-1) for ids in data.ids]
    predictions = predict(quiet_trainer(), model, batches)
    torch.testing.assert_close(predictions.log_probabilities, torch.cat(alone), atol=1e-5, rtol=0)
    assert predictions.labels.tolist() == data.labels


# cost


def test_flops_of_linear_layers():
    """A product (B, I) x (I, O) takes 2 B I O, its weight's gradient as much, and its input's, but for the first."""
    x, first, second = torch.zeros(5, 7), nn.Linear(7, 3), nn.Linear(3, 11)
    assert count_flops(first, x) == 2 * (2 * 5 * 7 * 3)
    assert count_flops(nn.Sequential(first, second), x) == 2 * (2 * 5 * 7 * 3) + 3 * (2 * 5 * 3 * 11)
    second.weight.requires_grad_(False)
    assert count_flops(nn.Sequential(first, second), x) == 2 * (2 * 5 * 7 * 3) + 2 * (2 * 5 * 3 * 11)
    first.requires_grad_(False)
    assert count_flops(nn.Sequential(first, second), x) == 2 * 5 * 7 * 3 + 2 * 5 * 3 * 11


def test_counting_leaves_the_model_alone():
    model, batch = classifier(), messages()[[0, 1]]
    before = weights(model)
    count_flops(model, batch.ids, batch.length)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == TRAINED["last_block"]


def flops_by_hand(strategy: str, B: int, T: int, K: int = 2) -> int:  # noqa: N803
    """A block takes 2 BT (3 + 1 + 4 + 4) CC in its layers and 4 BTTC in its attention, written out as two products; its
    backward pass takes twice that, into inputs and weights. The head reads one position, and so does the last block:
    2 B 12 CC, with keys and values unprojected, and 4 BHTC."""
    C, H = CONFIG.n_embd, CONFIG.n_head
    block = 2 * B * T * 12 * C * C + 4 * B * T * T * C
    last = 2 * B * 12 * C * C + 4 * B * H * T * C
    head = 2 * B * C * K
    live = CONFIG.n_layer - FIRST_TRAINABLE[strategy]
    if not live:
        return (CONFIG.n_layer - 1) * block + last + 2 * head
    return (CONFIG.n_layer - 1) * block + last + head + 2 * ((live - 1) * block + last + head)


@pytest.mark.parametrize("strategy", ["last_layer", "last_block", "last_two_blocks", "3_blocks", "all"])
def test_flops_equal_a_hand_count_of_the_matrix_products(strategy):
    batch = messages(3)[[0, 1, 2]]
    assert count_flops(classifier(strategy), batch.ids, batch.length) == flops_by_hand(strategy, B=3, T=12)


def ordinary_by_hand(strategy: str, B: int, T: int, positions: int, K: int = 2) -> int:  # noqa: N803
    """Every block at every token, and the head at so many positions of a text."""
    C, live = CONFIG.n_embd, CONFIG.n_layer - FIRST_TRAINABLE[strategy]
    block, head = 2 * B * T * 12 * C * C + 4 * B * T * T * C, 2 * B * positions * C * K
    return CONFIG.n_layer * block + head + (2 * (live * block + head) if live else head)


@pytest.mark.parametrize("strategy", ["last_layer", "last_block", "all"])
def test_flops_of_ordinary_training_equal_a_hand_count(strategy):
    """With logits where the answer is read, and at every position."""
    batch = messages(3)[[0, 1, 2]]
    by_hand = tuple(ordinary_by_hand(strategy, 3, 12, positions) for positions in (1, 12))
    assert OrdinaryFlops(classifier(strategy)).of(batch.ids, batch.length) == by_hand


def test_cost_adds_up_tokens_and_flops_of_every_batch():
    """2 epochs of 10 messages at width 12, in batches of 4, 4 and 2; validation costs none of them."""
    cost = Cost()
    fit(classifier(), messages(10), validation=True, max_epochs=2, callbacks=[cost])
    found = cost.summary(torch.device("cpu"))
    assert found["train_tokens"] == 2 * 10 * 12
    for name, of in {
        "train_flops": flops_by_hand,
        "ordinary_flops": partial(ordinary_by_hand, positions=1),
        "every_position_flops": partial(ordinary_by_hand, positions=12),
    }.items():
        assert found[name] == 2 * (2 * of("last_block", B=4, T=12) + of("last_block", B=2, T=12)), name


@pytest.mark.parametrize(
    ("strategy", "pooling", "known"),
    [
        ("last_layer", "mean", True),
        ("last_block", "last_nonpad", True),
        ("all", "mean", False),
        ("lora", "mean", False),
    ],
)
@pytest.mark.slow
def test_operations_of_any_shape_follow_from_three(strategy, pooling, known):
    model = classifier(strategy, pooling=pooling)
    flops = Flops(model)
    for shape in ((1, 1), (3, 9), (8, 64), (2, 2)):
        ids, length = torch.zeros(shape, dtype=torch.long), torch.ones(shape[0], dtype=torch.long)
        features = [model.encode_frozen(ids, length).detach()] if known else []
        assert flops.of(ids, length, *features) == count_flops(model, ids, length, *features)


def test_cost_parts_training_from_validation(monkeypatch):
    """By a clock on which a training batch lasts 1 second and a validation batch 100."""
    now, cost = [1000.0], Cost()
    monkeypatch.setattr("src.finetune.cost.perf_counter", lambda: now[0])
    clock = LambdaCallback(
        on_train_batch_end=lambda *_: now.append(now.pop() + 1),
        on_validation_batch_end=lambda *_: now.append(now.pop() + 100),
    )
    data, settings = messages(8), {"max_epochs": 3, "num_sanity_val_steps": 1, "callbacks": [clock, cost]}
    trainer = fit(classifier(), data, batch_size=2, validation=True, val_check_interval=0.5, **settings)
    assert (cost.train_seconds, cost.validation_seconds) == (3 * 4, 3 * 2 * 400)
    now[0] += 1000
    trainer.validate(trainer.model, loader(data, [[0]], 0), verbose=False)
    assert (cost.train_seconds, cost.validation_seconds) == (3 * 4, 3 * 2 * 400)


def test_a_resumed_run_goes_on_counting(tmp_path):
    straight, first, resumed, path = Cost(), Cost(), Cost(), tmp_path / "last.ckpt"
    batches = loader(messages(), ShuffledBatches(8, 4, seed=0), 0)
    quiet_trainer(max_epochs=3, callbacks=[straight]).fit(classifier(), batches)
    trainer = quiet_trainer(max_epochs=1, callbacks=[first])
    trainer.fit(classifier(), batches)
    trainer.save_checkpoint(path)
    quiet_trainer(max_epochs=3, callbacks=[resumed]).fit(classifier(), batches, ckpt_path=path, weights_only=True)
    assert resumed.spent == straight.spent
    assert resumed.train_seconds > first.train_seconds > 0


def test_a_training_is_not_charged_with_the_memory_of_one_before_it_in_the_process():
    cpu, room = torch.device("cpu"), 100 * 2**20
    forget_peak_memory()
    before = peak_memory_bytes(cpu)
    blocks = [torch.ones(20_000) for _ in range(5_000)]  # 400 MB in pieces that the allocator keeps
    assert peak_memory_bytes(cpu) > before + 3 * room
    del blocks
    forget_peak_memory()
    assert peak_memory_bytes(cpu) < before + room
