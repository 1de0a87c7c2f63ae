"""python -m src.reporting.wandb_dashboard entity=<you or your team> [project=two-ways]

Saves a workspace and a report of the project's runs on W&B: accuracy by strategy and against cost, parallel coordinates
of what was varied, and the table of runs. Needs an account (wandb login) and: pip install '.[dashboards]'
"""

import sys
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from src.config.command_line import one_sentence
from src.config.options import options
from src.errors import InputError

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import interface as wr
    from wandb_workspaces.workspaces.interface import Workspace

TITLE = "Two ways to fine-tune a GPT"
# as src/runs/loggers.py names them: final metrics and cost in a run's summary, all settings in its config
ACCURACY, FLOPS, SECONDS = "final/test/accuracy", "cost/train_flops", "cost/train_seconds"
VARIED = (
    "gpt.name",
    "data._target_",
    "data.fraction",
    "data.padding",
    "task._target_",
    "task.trainable",
    "task.pooling",
)
SETTINGS = ("name", *VARIED, "gpt.weights", "trainer.precision", "seed")
MEASURED = (ACCURACY, "final/validation/accuracy", "final/test/ece", FLOPS, SECONDS, "cost/peak_memory_bytes")
FINISHED = "State = 'finished'"


@dataclass
class Options:
    """What the command line takes."""

    entity: str
    project: str = "two-ways"


def panels() -> "list[wr.PanelTypes]":
    """The charts: parallel coordinates, accuracy by strategy, accuracy against cost, learning curves."""
    from wandb_workspaces.reports.v2 import interface as wr

    def column(setting: str) -> wr.ParallelCoordinatesPlotColumn:
        return wr.ParallelCoordinatesPlotColumn(wr.Config(setting))

    accuracy = wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric(ACCURACY), display_name="test accuracy")
    cost = wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric(FLOPS), display_name="training FLOP", log=True)
    wide, half, other = wr.Layout(0, 0, 24, 10), wr.Layout(0, 10, 12, 9), wr.Layout(12, 10, 12, 9)
    return [
        wr.ParallelCoordinatesPlot(
            title="What was varied", columns=[*map(column, VARIED), cost, accuracy], layout=wide
        ),
        wr.BarPlot(
            title="Test accuracy by what is trained",
            metrics=[wr.SummaryMetric(ACCURACY)],
            groupby=wr.Config("task.trainable"),
            groupby_aggfunc="mean",
            groupby_rangefunc="stddev",
            layout=half,
        ),
        wr.ScatterPlot(
            title="Test accuracy against the cost of training",
            x=wr.SummaryMetric(FLOPS),
            y=wr.SummaryMetric(ACCURACY),
            log_x=True,
            layout=other,
        ),
        wr.LinePlot(title="Validation loss", x="epoch", y=["validation/loss"], layout=wr.Layout(0, 19, 12, 9)),
        wr.LinePlot(title="Validation accuracy", x="epoch", y=["validation/accuracy"], layout=wr.Layout(12, 19, 12, 9)),
    ]


def columns() -> list[str]:
    """The columns of the table of runs, as W&B addresses them: config:<first key>.value.<the rest>, summary:<name>."""
    heads = [setting.partition(".") for setting in SETTINGS]
    return [f"config:{head}.value{dot}{rest}" for head, dot, rest in heads] + [f"summary:{name}" for name in MEASURED]


def workspace(entity: str, project: str) -> "Workspace":
    """The panels over all finished runs of a project, best first."""
    from wandb_workspaces import expr
    from wandb_workspaces.workspaces import interface as ws

    return ws.Workspace(
        entity=entity,
        project=project,
        name=TITLE,
        sections=[ws.Section(name="Studies", panels=panels(), is_open=True)],
        settings=ws.WorkspaceSettings(max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=FINISHED,
            order=[expr.Ordering(expr.Summary(ACCURACY), ascending=False)],
            pinned_columns=columns(),
        ),
    )


def report(entity: str, project: str) -> "wr.Report":
    """The same panels with words, and the table of runs."""
    from wandb_workspaces.reports.v2 import interface as wr

    table = wr.Runset(  # without entity and project a run set is of the report's own
        name="finished",
        filters=FINISHED,
        order=[wr.OrderBy(wr.SummaryMetric(ACCURACY))],
        pinned_columns=columns(),
        column_order=columns(),
        lock_columns=True,
    )
    return wr.Report(
        entity=entity,
        project=project,
        title=TITLE,
        description="What is unfrozen, which token is read, how inputs are padded: what does it buy, at which cost?",
        width="fluid",
        blocks=[
            wr.P("One run is one seed. Intervals and tests are in the project's own tables (python -m src.report)."),
            wr.H2("Accuracy and cost"),
            wr.PanelGrid(runsets=[wr.Runset(name="finished", filters=FINISHED)], panels=panels()),
            wr.H2("Runs"),
            wr.PanelGrid(runsets=[table], panels=[wr.RunComparer(diff_only="split", layout=wr.Layout(0, 0, 24, 12))]),
        ],
    )


def save(entity: str, project: str) -> list[str]:
    """Save both and give their addresses. Raises InputError without an account or a network."""
    import requests
    import wandb

    try:
        wandb.Api(timeout=20).viewer  # noqa: B018, asks the server who we are, before anything is made
        saved = [workspace(entity, project).save(), report(entity, project)]
        saved[1].save()
    except (wandb.errors.Error, requests.RequestException) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise InputError(f"W&B: {reason}; it takes an account (wandb login) and a network") from None
    return [one.url for one in saved]


def main() -> None:
    """Build, save, and say where."""
    given = options(Options, sys.argv[1:], __doc__ or "")
    if find_spec("wandb_workspaces") is None:
        raise InputError("wandb-workspaces is not installed: pip install '.[dashboards]'")
    print(*save(given.entity, given.project), sep="\n")


if __name__ == "__main__":
    with one_sentence():
        main()
