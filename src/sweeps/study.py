"""A study -> its trials, their configs, and those that have finished.

    grid     every combination of `value` and `values`
    random   run_cap trials, drawn from `values` or between `min` and `max`
    bayes    run_cap trials, each chosen by Optuna from what the ones before came to (see bayes.py)

`experiment` chooses experiments, as +experiment does: W&B refuses a plus in a parameter's name.
"""

import json
import random
import re
import shlex
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.config.command_line import compose, explain, override, with_plus
from src.errors import InputError
from src.runs import identity, run_dir
from src.sweeps.study_file import Study as Study
from src.sweeps.study_file import read as read


@dataclass(frozen=True)
class Trial:
    """One run of a study: the values that vary, and the Hydra overrides that make its config."""

    values: dict[str, Any]
    overrides: tuple[str, ...]

    @property
    def label(self) -> str:
        """What varies, for people."""
        return " ".join(f"{key.lstrip('+')}={value}" for key, value in self.values.items()) or "the run"


def trials(study: Study, runs: str | Path = "runs") -> list[Trial]:
    """The runs of a study, seeds last; of a bayes study those that it has requested so far below `runs`."""
    match study.method:
        case "grid":
            keys = sorted(study.parameters, key=lambda key: key == "seed")
            choices = [study.parameters[key].choices for key in keys]
            found = [dict(zip(keys, values, strict=True)) for values in product(*choices)]
        case "random":
            found = draws(study)
        case "bayes":
            found = requested(study, runs)
    return [trial(study, values) for values in found[: study.run_cap]]


def trial(study: Study, values: dict[str, Any]) -> Trial:
    """The run with these values of all parameters."""
    varying = {key: value for key, value in values.items() if len(study.parameters[key].choices) != 1}
    return Trial(varying, (*study.shared, *(override(key, value) for key, value in values.items())))


def draws(study: Study) -> list[dict[str, Any]]:
    """run_cap random trials. Each parameter has a generator of its own, seeded with the names of study and parameter:
    every machine draws the same, a larger run_cap adds trials, and a new parameter leaves the others' values."""
    drawn = {}
    for key, given in study.parameters.items():
        rng = random.Random(f"{study.name} {key}")
        drawn[key] = [given.draw(rng) for _ in range(study.run_cap or 0)]
    return [dict(zip(drawn, values, strict=True)) for values in zip(*drawn.values(), strict=True)]


def requested(study: Study, runs: str | Path) -> list[dict[str, Any]]:
    """The trials of a bayes study so far, one a line of its record; a line that a kill cut short does not count.

    Raises InputError for a record of other parameters, or a damaged one.
    """
    path = record(study, runs)
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
        found: list[dict[str, Any]] = [json.loads(line) for line in lines if line.endswith("\n")]
        outside = {key for one in found for key in one.keys() ^ study.parameters.keys()} or {
            key for one in found for key, value in one.items() if not study.parameters[key].includes(value)
        }
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}): bring it back, or move it away to begin anew") from None
    if outside:
        raise InputError(
            f"{min(outside)}: {path} has trials of the study {study.name} with another choice of it; give the study "
            "another name, or move that file away to begin anew"
        )
    return found


def record(study: Study, runs: str | Path) -> Path:
    """Where a bayes study keeps what it has requested."""
    return Path(runs) / ".sweep" / f"{study.name}.jsonl"


def config(trial: Trial) -> DictConfig:
    """The composed config of a run, as src.train would see it. Groups are composed once for all the runs that share
    them, which takes a tenth of a second; values are laid over that, as Hydra does too."""
    return identity.as_read(_config(trial))


def _config(trial: Trial) -> DictConfig:
    values = [part for part in trial.overrides if re.match(r"(?!hydra\.)(seed|[\w.]+\.\w+)=", part)]
    cfg = _composed(tuple(part for part in trial.overrides if part not in values)).copy()
    try:
        for part in values:
            OmegaConf.update(cfg, *_parsed(part))
    except (HydraException, OmegaConfBaseException):
        return _composed(trial.overrides)  # for Hydra to say what is wrong
    return cfg


@cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    return compose("train", with_plus(list(overrides)))


@cache  # the parser takes milliseconds
def _parsed(override: str) -> tuple[str, Any]:
    """Key and value of an override."""
    parsed = OverridesParser.create().parse_override(override)
    return parsed.key_or_group, parsed.value()


def check(trials: Sequence[Trial], done: Collection[str] = ()) -> dict[str, Trial]:
    """The trials by the hash of their config, each config once. All that they need is built first, but for the GPT in
    its real width, unless their run is `done`. Raises InputError with what is wrong, and the overrides that made it.
    """
    from src.config import build
    from src.config.trainer import partial_flag

    found, faults, built = dict[str, Trial](), dict[str, list[Trial]](), dict[str, Any]()
    for trial in trials:
        try:
            key = run_dir.config_hash(cfg := config(trial))
            build.check_config(cfg)
            if identity.has_gpt(cfg) and (flag := partial_flag(cfg)):
                raise InputError(
                    f"trainer.{flag}={cfg.trainer[flag]} makes a partial run, which is no result: leave it out"
                )
            if key not in found and key not in done:
                alike = [part for part in trial.overrides if not part.startswith("seed=")]
                once(built, alike, partial(build_parts, cfg, built))
            found.setdefault(key, trial)
        except (HydraException, OmegaConfBaseException) as error:
            faults.setdefault(explain(error), []).append(trial)
        except (TypeError, ValueError, RuntimeError) as error:  # InputError, and values of a wrong kind
            kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
            faults.setdefault(kind + " ".join(str(error).split()), []).append(trial)
    if faults:
        n, train = len(trials), ["python", "-m", "src.train"]
        such = [f"({len(of)} of {n} runs, such as: {shlex.join([*train, *of[0].overrides])})" for of in faults.values()]
        raise InputError("\n".join(f"{why} {those}" for why, those in zip(faults, such, strict=True)))
    return found


def build_parts(cfg: DictConfig, built: dict[str, Any]) -> None:
    """Build what the run would, as far as it is cheap; what others had built, or failed to, is taken from `built`."""
    from src.config import baseline, build
    from src.config.trainer import build_callbacks, check_loggers, check_trainer
    from src.gpt import weights
    from src.gpt.pinned_weights import PUBLISHED

    check_loggers(cfg)
    if not identity.has_gpt(cfg):
        baseline.check_baseline(cfg)
        data = once(built, ["data", cfg.data], lambda: build.build_data(cfg))
        data.labelled_texts()
        build.check_decisions(cfg, data)
        return
    check_trainer(cfg)
    build_callbacks(cfg)
    build.build_cache(cfg)
    build.gpt_config(cfg)
    if cfg.gpt.weights == "pretrained" and cfg.gpt.name in PUBLISHED:
        once(built, ["file", cfg.gpt.name], lambda: weights.published_file(cfg.gpt.name))
    elif cfg.gpt.weights != "random":
        once(built, ["gpt", cfg.gpt], lambda: build.build_gpt(cfg) and None)
    once(built, ["held_out", cfg.held_out], lambda: build.held_out_windows(cfg) and None)
    data = once(built, ["data", cfg.data], lambda: build.build_data(cfg))
    narrow = cfg.copy()
    narrow.gpt.n_embd, narrow.gpt.weights = cfg.gpt.n_head, "random"
    model = build.build_task(narrow, data.labels)
    build.check_decisions(cfg, data, len(model.questions))
    around = [cfg.data, [[*prompt.before, -1, *prompt.after, -1, prompt.reserve] for prompt in model.prompts]]
    encode = partial(data.encode_for, model.prompts, model.reads_padding, cfg.gpt.context_length)
    once(built, ["tokens", *around, model.reads_padding, cfg.gpt.context_length], encode)


def once(built: dict[str, Any], of: list[Any], make: Callable[[], Any]) -> Any:
    """What `make` makes of these sections of a config, or the InputError that it raises; made once."""
    key = json.dumps([run_dir.plain(part) if isinstance(part, DictConfig) else part for part in of])
    if key not in built:
        try:
            built[key] = make()
        except InputError as error:
            built[key] = error
    if isinstance(built[key], InputError):
        raise built[key]
    return built[key]


def finished(runs: str | Path) -> dict[str, Path]:
    """config_hash -> folder of every finished run below `runs`; of several with one hash, the newest."""
    found: dict[str, Path] = {}
    for result in sorted(Path(runs).glob("*/result.json")):  # folders are named by time
        if key := _hash(result.parent, result.stat().st_mtime_ns):
            found[key] = result.parent
    return found


@cache  # thousands of runs are looked at again and again while a sweep goes on
def _hash(run: Path, written: int) -> str | None:
    try:
        result = run_dir.load_result(run)
        return None if result.get("partial") else str(result["config_hash"])
    except InputError as error:
        print(f"left out: {error}", file=sys.stderr, flush=True)
        return None


def begun(key: str, runs: str | Path) -> Path | None:
    """The run folder that a try which failed or was killed has left of a trial: the newest."""
    for config in sorted(Path(runs).glob(f"*-{key[:8]}*/config.yaml"), reverse=True):
        run = config.parent
        try:
            unfinished = not run_dir.has_finished(run) and run_dir.read_config(run)
            if unfinished and run_dir.recorded(run)["config_hash"] == key:
                return run
        except InputError as error:
            print(f"left out: {error}", file=sys.stderr, flush=True)
    return None
