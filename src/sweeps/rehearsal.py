"""A study before its first run: every config is composed, and all is built from it but the GPT in its real width.

So an unknown key, an impossible value, a missing file or a wrong table is found in seconds, and not after hours by the
run that has it. What only the run itself can tell stays open: memory, downloads of weights, losses that become NaN.
"""

import json
import re
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from src.config.command_line import explain
from src.errors import InputError
from src.runs import loggers, run_dir
from src.sweeps import study
from src.sweeps.spec import refuse
from src.sweeps.study import Point, Study


@dataclass
class Rehearsal:
    """What is built for one config is kept for those that need the same: labels by data, GPTs by section. A config
    that a run has finished with is not built again."""

    finished: Container[str] = ()
    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    weights: set[str] = field(default_factory=set)

    def config(self, overrides: Sequence[str]) -> DictConfig:
        """The config of a run that nothing is wrong with. Raises InputError else."""
        try:
            cfg = study.config(Point({}, tuple(overrides)))
            if run_dir.config_hash(cfg) not in self.finished:
                self.build(cfg)
        except (HydraException, OmegaConfBaseException) as error:
            raise InputError(explain(error, "train")) from None
        except (TypeError, ValueError, RuntimeError) as error:  # values of a wrong kind, which end a run too
            if isinstance(error, InputError):
                raise
            raise InputError(f"{type(error).__name__}: {' '.join(str(error).split())}") from None
        return cfg

    def wrong(self, overrides: Sequence[str]) -> str:
        """What is wrong with a run in a sentence; nothing if it can be done."""
        try:
            self.config(overrides)
        except InputError as error:
            return str(error)
        return ""

    def examine(self, overrides: Sequence[str], faults: dict[str, str]) -> None:
        """Add what is wrong with a run to `faults`: override -> sentence, "" for what no override can help. What is
        wrong is left out in turn, so that one fault does not hide another; what then follows from its absence is none.
        """
        left = [override for override in overrides if override not in faults]
        while sentence := self.wrong(left):
            if any(mention(override.partition("=")[0], sentence) for override in set(overrides) - set(left)):
                return
            culprit = self._cause(left, sentence)
            faults[culprit] = sentence
            if culprit not in left:
                return
            left = [override for override in left if override != culprit]

    def _cause(self, overrides: list[str], sentence: str) -> str:
        """The override whose key the sentence names first, or else the last of those without which it is not said."""
        keys = {one.partition("=")[0]: one for one in overrides}
        places = [(match.start(), -len(key), key) for key in keys if (match := mention(key, sentence))]
        if places:
            return keys[min(places)[2]]
        needed, fewer = overrides, list[str]()
        while len(fewer) < len(needed):  # one may be needed only as long as another stands
            fewer = needed
            for override in fewer:
                rest = [other for other in needed if other != override]
                needed = rest if self.wrong(rest) == sentence else needed
        return needed[-1] if needed else ""

    def build(self, cfg: DictConfig) -> None:
        """Build what the run would, as far as it is cheap."""
        from src.config import build
        from src.gpt.model import GPTConfig
        from src.gpt.pinned import PUBLISHED

        build.check_root(cfg)
        build.check_trainer(cfg)
        loggers.check(cfg)
        gpt = {
            key: value for key, value in run_dir.plain(cfg.gpt).items() if key not in ("name", "weights", "finetune")
        }
        build.construct(GPTConfig, "gpt", gpt)
        download = cfg.gpt.weights == "pretrained" and cfg.gpt.name in PUBLISHED
        if cfg.gpt.weights != "random" and not download and _text(cfg.gpt) not in self.weights:
            build.gpt(cfg)
            self.weights.add(_text(cfg.gpt))
        needs = [cfg.data, cfg.task.kind, cfg.task.get("prompt"), cfg.task.template, cfg.gpt.context_length]
        if (key := _text(*needs)) not in self.labels:
            self.labels[key] = tuple(build.data(cfg).labels)
        build.model(narrow(cfg), self.labels[key])


def narrow(cfg: DictConfig) -> DictConfig:
    """The same config with the narrowest GPT of as many blocks and heads, and random weights."""
    small = cfg.copy()
    small.gpt.n_embd, small.gpt.weights = cfg.gpt.n_head, "random"
    return small


def rehearse(asked: Study, points: Sequence[Point], finished: Container[str] = ()) -> list[DictConfig]:
    """The configs of `points`. Raises InputError that names every setting which is wrong, once, with its line."""
    rehearsal, configs, faults = Rehearsal(finished), list[DictConfig](), dict[str, str]()
    seen = set[tuple[str, ...]]()  # points that are alike but for what is known to be wrong
    for point in points:
        given = tuple(override for override in point.overrides if override not in faults)
        if faults and given in seen:
            continue
        seen.add(given)
        try:
            configs.append(rehearsal.config(given))
        except InputError:
            rehearsal.examine(point.overrides, faults)
    refuse(asked.path, asked.lines, [(place(asked, one), named(one, why)) for one, why in faults.items()])
    return configs


def mention(key: str, sentence: str) -> "re.Match[str] | None":
    """Where a sentence names a key, or for a group what it has."""
    return re.search(rf"(?<![\w.]){re.escape(key.lstrip('+'))}(?![\w])", sentence)


def named(override: str, sentence: str) -> str:
    """The sentence with what it is about, if it does not say so."""
    return sentence if override in sentence else f"{override}: {sentence}"


def place(asked: Study, override: str) -> tuple[Any, ...]:
    """Where an override stands in its file."""
    key, _, value = override.partition("=")
    if key not in asked.parameters:
        return ("command", override)
    given = asked.parameters[key]
    texts = [str(one) for one in given] if isinstance(given, list) else []
    return ("parameters", key, "values", texts.index(value)) if value in texts else ("parameters", key)


def _text(*sections: Any) -> str:
    return json.dumps([run_dir.plain(one) if isinstance(one, DictConfig) else one for one in sections], sort_keys=True)
