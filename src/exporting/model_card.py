"""A finished run -> its model card: what it is, how it is used, data, results with intervals, cost, and limits."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from src.data.prompts import Task
from src.evaluation.intervals import wilson
from src.exporting.finished_run import FinishedRun
from src.exporting.transformers_folder import is_stock
from src.gpt.pinned_weights import PUBLISHED

TEMPLATE = Path(__file__).parent / "model_card.md"
HERE = "path/to/this/folder"
EXAMPLE = "Claim your prize now"
LEAKS = {
    "book": "It is the published split, which leaks: 36 of its 300 test messages also stand in train.",
    "deduplicated": "No message, up to case, digits and spaces, stands in two splits; near-duplicates may.",
    "grouped": "No near-duplicates, of which more than half of all 5-grams of characters agree, stand in two splits.",
    "given files": "The splits are files of their own; whether they share messages was not looked at.",
}
READING = {
    "first": "the head reads the first token",
    "last": "the head reads the last position, padding or not",
    "last_nonpad": "the head reads the last token that is no padding",
    "mean": "the head reads the mean over all positions",
}


def card(run: FinishedRun, repo: str | None, onnx: bool) -> ModelCard:
    """README.md of an exported run; `repo` is its name on the hub, if it has one."""
    result = run.result
    rows = list(_rows(result))
    metadata = ModelCardData(
        language="en",
        library_name="transformers",
        pipeline_tag="text-generation" if run.writes else "text-classification",
        base_model=_base_model(result["gpt"]),
        tags=["gpt2", "two-ways"],
        model_name=result["id"],
        eval_results=list(_eval_results(result)),
    )
    return _render(
        card_data=metadata.to_yaml(),
        title=f"{result['name']}: {'a GPT-2 that answers' if run.writes else 'a GPT-2 classifier'}",
        what=what(run),
        run=result,
        model=repo or HERE,
        example=EXAMPLE,
        writes=run.writes,
        stock=is_stock(run),
        onnx=onnx,
        prompted=bool(run.model.tasks),
        tasks=[_task(run, task) for task in run.model.tasks],
        reading="" if run.writes else _reading(run),
        precision=result["environment"]["precision"],
        sizes=", ".join(f"{n:,} {part}" for part, n in result["data"]["sizes"].items()),
        leaks=" ".join(said for split, said in LEAKS.items() if split in result["data"]["split"]),
        rows=rows,
        intervals="; ".join(interval(*row) for row in tested(result)),
        calibration=", ".join(f"{metrics['ece']:.3f} on {name}" for name, metrics, _ in tested(result)),
        threshold=result.get("threshold"),
        temperature=result.get("calibration", {}).get("temperature"),
        cost=cost(result),
    )


def _render(**values: Any) -> ModelCard:
    """The template, filled by jinja2 itself: ModelCard.from_template knows no filters of ours."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters |= {"cell": _cell, "python": _python}
    return ModelCard(environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(**values))


def _cell(text: object) -> str:
    """Any text as one that neither ends a table's cell nor begins HTML."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


def _python(value: object) -> str:
    """A Python literal that cannot end the block of code which it stands in."""
    return repr(value).replace("`", "\\x60")


def what(run: FinishedRun) -> str:
    """The GPT, what it started from, and what was trained."""
    gpt, task = run.result["gpt"], run.result["task"]
    start = {"random": "random weights", "pretrained": "pretrained weights"}.get(gpt["weights"], "weights from a file")
    how = "to write its answer after an instruction" if run.writes else "as a classifier: a head over fixed labels"
    return (
        f"A GPT-2 ({gpt['name']}, {gpt['parameters']:,} parameters with its head, from {start}), fine-tuned {how}. "
        f"Trained: {task['trainable']}, {task['trainable_parameters']:,} parameters."
    )


def _reading(run: FinishedRun) -> str:
    """What a classifier reads of a message, in a sentence."""
    said = READING[run.pooling]
    if not run.model.gpt.config.causal:
        said += ", and every token sees every other"
    if run.padding == "fixed":
        said += f"; messages are padded to {run.data['width']} tokens, as in training"
    if run.padding == "batch":
        said += ", so that what it says of a message depends on how far those beside it are padded"
    return said + "."


def _task(run: FinishedRun, task: Task) -> dict[str, Any]:
    """What the example and the list of answers say of a question."""
    from src.data.tokenizer import decode

    labels = [run.data["labels"][number] for number in task.classes]
    return {
        "name": task.name,
        "before": decode(list(task.prompt.before)),
        "after": decode(list(task.prompt.after)),
        "room": run.data["max_length"] - task.prompt.overhead,
        "words": list(zip(labels, task.words, strict=True)),
    }


def tested(result: dict[str, Any]) -> list[tuple[str, dict[str, float], int]]:
    """(name, metrics, messages) of the test set, or of each task's part of it."""
    if "tasks" not in result:
        return [("test", result["metrics"]["test"], result["data"]["sizes"]["test"])]
    sizes = result["data"]["test_sizes"]
    return [(f"test, {name}", metrics, sizes[name]) for name, metrics in result["tasks"]["test"].items()]


def _rows(result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    splits = [(part, metrics, result["data"]["sizes"][part]) for part, metrics in result["metrics"].items()]
    for name, metrics, n in [*splits, *(tested(result) if "tasks" in result else [])]:
        shown = {key: "" if value is None else f"{value:.4f}" for key, value in metrics.items()}
        yield {"name": name, "n": n, "metrics": shown}


def interval(name: str, metrics: dict[str, float], n: int) -> str:
    """An accuracy with Wilson's 95% interval."""
    low, high = wilson(round(metrics["accuracy"] * n), n)
    return f"{name} {metrics['accuracy']:.2%} ({low:.1%} to {high:.1%}, n = {n})"


def _eval_results(result: dict[str, Any]) -> Iterator[EvalResult]:
    data = result["data"]
    for name, metrics, n in tested(result):
        for metric in ("accuracy", "f1", "ece", "generated_accuracy"):
            if metrics.get(metric) is None:
                continue
            told = interval(metric, metrics, n) if metric == "accuracy" else metric
            yield EvalResult(
                task_type="text-classification",
                dataset_type=data["name"],
                dataset_name=f"{data['name']} ({data['split']})",
                dataset_split=name,
                metric_type=metric,
                metric_name=f"{told}, seed {result['seed']}",
                metric_value=metrics[metric],
            )


def _base_model(gpt: dict[str, Any]) -> str | None:
    return PUBLISHED[gpt["name"]].repo if gpt["weights"] == "pretrained" and gpt["name"] in PUBLISHED else None


def cost(result: dict[str, Any]) -> str:
    """What the training took, on what."""
    took, where = result["cost"], result["environment"]
    memory = f"; {took['peak_memory_bytes'] / 1e9:.2f} GB at most" if took.get("peak_memory_bytes") else ""
    return (
        f"{took['train_seconds']:.1f} s of training, {took['train_flops'] / 1e12:.2f} TFLOP, "
        f"{took['train_tokens']:,} tokens{memory}, on {where['device']} in {where['precision']} with torch "
        f"{where['torch']}."
    )
