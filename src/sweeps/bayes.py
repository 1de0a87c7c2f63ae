"""A study of method bayes: each trial is chosen by Optuna's TPE from what the trials before it came to.

What was requested is kept in a record below the run folders, what it came to in its run: a study that was killed goes
on with both, and another version of Optuna changes only what is still to be requested.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from src.errors import InputError
from src.runs import run_dir
from src.sweeps import study as studies
from src.sweeps.study import Trial
from src.sweeps.study_file import Parameter, Study


def rounds(study: Study, runs: str | Path) -> Iterator[dict[str, Trial]]:
    """run_cap trials by the hash of their config, one after the other: each is chosen when the one before has ended."""
    for i in range(study.run_cap or 0):
        before = studies.requested(study, runs)
        if i == len(before):
            before.append(choose(study, before, outcomes(study, before, runs)))
            path = studies.record(study, runs)
            path.parent.mkdir(parents=True, exist_ok=True)
            run_dir.write_text(path, "".join(json.dumps(one) + "\n" for one in before))
        trial = studies.trial(study, before[i])
        yield {run_dir.config_hash(studies.config(trial)): trial}


def outcomes(study: Study, requested: list[dict[str, Any]], runs: str | Path) -> list[float | None]:
    """The metric of each trial; None where its run failed."""
    finished, (_, part, name) = studies.finished(runs), study.metric.name.split("/")
    found: list[float | None] = []
    for values in requested:
        run = finished.get(run_dir.config_hash(studies.config(studies.trial(study, values))))
        metrics = run_dir.load_result(run)["metrics"] if run else {part: {name: None}}
        if name not in metrics.get(part, {}):
            raise InputError(f"metric: no run has {study.metric.name}: use final/<train, validation or test>/<metric>")
        found.append(metrics[part][name])
    return found


def choose(study: Study, requested: list[dict[str, Any]], values: list[float | None]) -> dict[str, Any]:
    """The next trial after those `requested` and what they came to. The same history gives the same trial."""
    try:
        import optuna
    except ImportError:
        raise InputError("method: bayes needs Optuna: pip install -e '.[sweeps]', or use method: random") from None

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {key: distribution(given) for key, given in study.parameters.items()}
    sampler = optuna.samplers.TPESampler(seed=len(requested))
    made = optuna.create_study(sampler=sampler, direction=study.metric.goal)
    for params, value in zip(requested, values, strict=True):
        state = optuna.trial.TrialState.FAIL if value is None else optuna.trial.TrialState.COMPLETE
        made.add_trial(optuna.trial.create_trial(state=state, params=params, distributions=space, value=value))
    return dict(made.ask(space).params)


def distribution(given: Parameter) -> Any:
    """A parameter as Optuna has it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if given.choices:
        return CategoricalDistribution(given.choices)
    if given.kind == "int_uniform":
        return IntDistribution(given.min, given.max)
    return FloatDistribution(given.min, given.max, log=given.kind == "log_uniform_values")
