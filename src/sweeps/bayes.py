"""A study of method bayes: each point is chosen by Optuna's TPE from what the points before it came to.

What was asked for is kept in a record below the run folders, what it came to in its run: a study that was killed goes
on with both, and another version of Optuna changes only what is still to be asked.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from src.errors import InputError
from src.runs import run_dir
from src.sweeps import study
from src.sweeps.study import Range, Study


def rounds(asked: Study, runs: str | Path) -> Iterator[dict[str, Any]]:
    """The values of run_cap points. Each is asked for when the one before has been settled."""
    yield from study.asked(asked, runs)
    while len(before := study.asked(asked, runs)) < (asked.run_cap or 0):
        values = choose(asked, before, outcomes(asked, before, runs))
        path = study.record(asked, runs)
        path.parent.mkdir(parents=True, exist_ok=True)
        run_dir.write_text(path, "".join(json.dumps(one) + "\n" for one in [*before, values]))
        yield values


def outcomes(asked: Study, points: list[dict[str, Any]], runs: str | Path) -> list[float | None]:
    """The metric of each point; None where its run failed."""
    finished, (_, part, name) = study.finished(runs), asked.metric.split("/")
    found: list[float | None] = []
    for values in points:
        run = finished.get(run_dir.config_hash(study.config(study.point(asked, values))))
        metrics = run_dir.load_result(run)["metrics"] if run else {part: {name: None}}
        if name not in metrics.get(part, {}):
            raise InputError(f"metric: no run has {asked.metric}: use final/<train, validation or test>/<metric>")
        found.append(metrics[part][name])
    return found


def choose(asked: Study, points: list[dict[str, Any]], values: list[float | None]) -> dict[str, Any]:
    """The next point after `points` and what they came to. The same history gives the same point."""
    try:
        import optuna
    except ImportError:
        raise InputError("method: bayes needs Optuna: pip install -e '.[sweeps]', or use method: random") from None

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {key: distribution(given) for key, given in asked.parameters.items()}
    sampler = optuna.samplers.TPESampler(seed=len(points))
    made = optuna.create_study(sampler=sampler, direction="maximize" if asked.goal == "maximize" else "minimize")
    for params, value in zip(points, values, strict=True):
        state = optuna.trial.TrialState.FAIL if value is None else optuna.trial.TrialState.COMPLETE
        made.add_trial(optuna.trial.create_trial(state=state, params=params, distributions=space, value=value))
    return dict(made.ask(space).params)


def distribution(given: "list[Any] | Range") -> Any:
    """A parameter as Optuna has it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(given, list):
        return CategoricalDistribution(given)
    match given.distribution:
        case "int_uniform":
            return IntDistribution(int(given.low), int(given.high))
        case "q_uniform":
            return FloatDistribution(given.low, given.high, step=given.q)
    return FloatDistribution(given.low, given.high, log=given.distribution == "log_uniform_values")
