"""A finished run -> what a person is told of it."""

from math import isnan
from pathlib import Path
from typing import Any

from src.runs import run_dir

SHARES = ("accuracy", "generated_accuracy", "valid_rate")


def show_metrics(title: str, metrics: dict[str, dict[str, float]], sizes: dict[str, int]) -> None:
    """Print metrics x splits under a title, for a terminal of 80 characters: there are more metrics than splits."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True)
    for split in metrics:
        table.add_column(split, justify="right", width=max(7, *map(len, split.split())))  # breaks between words
    table.add_row("messages", *(f"{sizes[split]:,}" for split in metrics))
    for name in next(iter(metrics.values())):
        form = "{:.2%}" if name in SHARES else "{:.3f}"
        shown = (values[name] for values in metrics.values())
        table.add_row(name, *("-" if isnan(value) else form.format(value) for value in shown))
    console = Console()
    console.print(title, style="italic", soft_wrap=True, highlight=False, markup=False)
    console.print(table)


def show(result: dict[str, Any], run: Path) -> None:
    """Print a finished run for a person: split x metrics, what was trained, how long it took, where it is."""
    from rich.console import Console

    from src.evaluation import decisions

    console = Console()
    gpt = f"gpt={result['gpt']['name']} ({result['gpt']['weights']})" if "gpt" in result else "no GPT"
    title = f"{result['name']}: {gpt}, data={result['data']['name']}"
    show_metrics(title, result["metrics"], result["data"]["sizes"])
    if tasks := result.get("tasks"):
        show_metrics("test, by task", tasks["test"], result["data"]["test_sizes"])
    if threshold := decisions.in_words(result):
        console.print(threshold, soft_wrap=True, highlight=False, markup=False)
    if language := result.get("language"):
        before, after = (language[when]["perplexity"] for when in ("before", "after"))
        console.print(f"perplexity of the language model on held-out text: {before:.1f} before, {after:.1f} after")
    console.print(spent(result) if "gpt" in result else spent_without_gpt(result))
    use = run_dir.command("predict", "run", run)
    where = f'run folder: {run} (result.json, predictions.csv, checkpoints)\nuse it:     {use} text="..."'
    console.print(where, soft_wrap=True, highlight=False, markup=False)


def spent(result: dict[str, Any]) -> str:
    """What was trained, and what it took."""
    task, cost = result["task"], result["cost"]
    share = task["trainable_parameters"] / result["gpt"]["parameters"]
    return (
        f"trained {task['trainable_parameters']:,} parameters ({task['trainable']}, {share:.1%} of the GPT) in "
        f"{cost['train_seconds']:.1f} s, {cost['train_flops'] / 1e12:.1f} TFLOP; "
        f"set-up {cost['setup_seconds']:.1f} s, frozen blocks {cost['features_seconds']:.1f} s"
        f"{' (read back)' if cost['features_reused'] else ''}, first step after {cost['first_step_seconds']:.1f} s, "
        f"evaluation {cost['evaluate_seconds']:.1f} s"
    )


def spent_without_gpt(result: dict[str, Any]) -> str:
    """What validation chose, and what it took."""
    constants = ", ".join(f"{key}={value}" for key, value in result["task"]["constants"].items())
    chosen = f" with {constants}, chosen on validation," if constants else ""
    seconds = {name: result["cost"][f"{name}_seconds"] for name in ("train", "evaluate")}
    return f"fitted{chosen} in {seconds['train']:.1f} s; evaluation {seconds['evaluate']:.1f} s"
