"""What the command lines share: one sentence for wrong input, and a Hydra entry point."""

import atexit
import gc
import io
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any, NoReturn

from src.errors import InputError
from src.files import refusal

CONF = Path(__file__).parents[2] / "conf"
MOVABLE = ("devices", "num_nodes")  # of `trainer`: where a run that is resumed may go on
_BEGAN = [perf_counter()]  # this module comes before everything that takes long to import
gc.set_threshold(100_000)  # Python would look for garbage for a sixth of the time that these imports take,
atexit.register(gc.freeze)  # and for most of a second among all that they made, before the process ends


def began() -> float:
    """When the command was given, by perf_counter, for the first job of a process; now, for a later one."""
    return _BEGAN.pop() if _BEGAN else perf_counter()


@contextmanager
def one_sentence() -> Iterator[None]:
    """Turn an InputError, or what the system refused, into its sentence on stderr and exit status 2; bugs keep their
    traceback. Ctrl-C and SIGTERM end what happens at once, but for what tidies up, with exit status 130 and 143."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal cannot show is written as \\u...
            stream.reconfigure(errors="backslashreplace")
    try:
        with terminable():
            yield
        sys.stdout.flush()
    except BrokenPipeError:
        if sys.stdout.closed or not isinstance(sys.stdout, io.TextIOWrapper):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would try to write the rest at exit
        sys.exit(1)
    except InputError as error:
        fail(str(error))
    except OSError as error:
        if sentence := refusal(error):
            fail(sentence)
        raise
    except KeyboardInterrupt:
        sys.exit(130)
    except SystemExit as exit:
        if isinstance(exit.__context__, KeyboardInterrupt):  # Lightning's sys.exit(1) after Ctrl-C
            sys.exit(130)
        raise


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM raise SystemExit. Lightning, left alone, would wait for the end of a batch, or of all features."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) == signal.SIG_IGN:
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # `timeout` sends it twice: to a process, and to its group
    sys.exit(128 + signal.SIGTERM)


def fail(sentence: str) -> NoReturn:
    """Print `sentence` as an error and exit with status 2."""
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)


@one_sentence()
def hydra_main(config_name: str, run: Callable[[Any], Any]) -> None:
    """Compose conf/<config_name>.yaml with the command line and call `run` with it, once a job."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf.errors import OmegaConfBaseException

    from src.config.schema import register

    register()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises, and the sentence below is ours
    sys.argv[1:] = prepared(sys.argv[1:])
    changeable = (*MOVABLE, "max_epochs") if config_name == "train" else MOVABLE
    check_resume(sys.argv[1:], tuple(f"trainer.{key}=" for key in changeable))
    failed = []

    def job(cfg: Any) -> Any:
        if HydraConfig.get().mode == RunMode.RUN:
            with one_sentence():  # inside the job: Hydra would put a line of its own before an error that leaves it
                return run(cfg)
        try:
            return run(cfg)
        except InputError as error:  # the other jobs go on, and Hydra names this one at the end
            print(f"error: {error}", file=sys.stderr)
            failed.append(error)
            raise

    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(job)()
    except InputError:
        if not failed:
            raise
        fail(f"{len(failed)} of the jobs failed, as was said above")
    except (HydraException, OmegaConfBaseException) as error:
        fail(explain(error))


def compose(config_name: str, overrides: list[str]) -> Any:
    """The config that a command line of `overrides` would have."""
    import hydra

    from src.config.schema import register

    register()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(config_name, overrides)


def prepared(arguments: list[str]) -> list[str]:
    """A command line as Hydra reads it: -m in front, ~/ at the beginning of a value as the home folder."""
    refuse_null_groups(arguments)
    flags = [argument for argument in arguments if argument in ("-m", "--multirun")]
    return flags + with_plus([at_home(argument) for argument in arguments if argument not in flags])


def refuse_null_groups(arguments: list[str]) -> None:
    """Raises InputError for group=null, at which Hydra fails."""
    for argument in arguments:
        key, _, value = argument.partition("=")
        if value == "null" and (CONF / key).is_dir():
            options = ", ".join(sorted(path.stem for path in (CONF / key).glob("*.yaml")))
            raise InputError(f"{argument}: there is a choice of {options}; leave {key}= out for the usual one")


def at_home(argument: str) -> str:
    """key=~/path with the home folder written out."""
    key, equals, value = argument.partition("=")
    return override(key, str(Path(value).expanduser())) if equals and value.startswith("~/") else argument


def was_given(key: str) -> bool:
    """Whether the command line of this job has a value for `key`."""
    from hydra.core.hydra_config import HydraConfig

    return any(override.lstrip("+").startswith(f"{key}=") for override in HydraConfig.get().overrides.task)


def check_resume(arguments: list[str], changeable: tuple[str, ...] = ()) -> None:
    """Raises InputError for settings beside resume= that are not `changeable`: they would be ignored."""
    allowed = ("runs=", "hydra", "-", *changeable)
    settings = [one for one in arguments if ("=" in one or one.startswith("~")) and not one.startswith(allowed)]
    others = [one for one in settings if not one.startswith("resume=")]
    if others and set(settings) - {*others, "resume=", "resume=null"}:
        raise InputError(f"{others[0]}: resume= takes all settings from the run; leave it out")


def with_plus(arguments: list[str]) -> list[str]:
    """`experiment=` as +experiment=: W&B's agents say it so, whose schema refuses a plus in the name of a parameter.
    They also quote no value, so that this is done here."""
    if os.environ.get("WANDB_SWEEP_ID"):
        pairs = (argument.partition("=") for argument in arguments)
        arguments = [override(key, value) if equals else key for key, equals, value in pairs]
    return [f"+{argument}" if argument.startswith("experiment=") else argument for argument in arguments]


def override(key: str, value: Any) -> str:
    """`key=value` as Hydra reads it: in quotes where its grammar would take a text apart, as one with a comma."""
    if not isinstance(value, str) or is_one_value(f"{key}={value}"):
        return f"{key}={value}"
    return f"{key}={quote(value)}"


def quote(value: str) -> str:
    """A text in Hydra's quotes."""
    escaped = re.sub(r"(\\*)('|$)", lambda end: end[1] * 2 + ("\\'" if end[2] else ""), value)
    return f"'{escaped}'"


@cache  # the parser takes milliseconds, and the runs of a study share most of their settings
def is_one_value(argument: str) -> bool:
    """Whether Hydra reads an override, and as one value: `a=1,2` would be two."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return not OverridesParser.create().parse_override(argument).is_sweep_override()
    except HydraException:
        return False


def explain(error: Exception) -> str:
    """One sentence for a configuration error: for a key that does not exist with those that do; for what Hydra's
    grammar takes apart, quoted as it would not."""
    from hydra.errors import OverrideParseException
    from omegaconf import DictConfig
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

    if isinstance(error, OverrideParseException):
        return f"{error.override} cannot be read{how_to_quote(error.override)}"
    if ambiguous := re.match(r"Ambiguous value for argument '(.*)'$", str(error).splitlines()[0]):
        return f"{ambiguous[1]} would be several values{how_to_quote(ambiguous[1])}"
    if isinstance(error, (ConfigAttributeError, ConfigKeyError)) and error.full_key:  # read by a run: ~key took it away
        return f"{error.full_key} is missing: give {error.full_key}=<value>"
    cause = error.__cause__
    if isinstance(cause, (ConfigAttributeError, ConfigKeyError)) and cause.full_key:
        parent, node = cause.full_key.rpartition(".")[0], cause.parent_node
        keys = ", ".join(map(str, node)) if isinstance(node, DictConfig) else "none"
        return f"there is no setting {cause.full_key}: {parent or 'the top level'} has {keys}"
    said = " ".join(str(error).split()).partition(" Config search path")[0]
    if isinstance(cause, OmegaConfBaseException) and (merged := re.match(r"Error merging override (.*)$", said)):
        return f"{merged[1]}: {str(cause).splitlines()[0]}"
    return said


def how_to_quote(argument: str) -> str:
    """What to write in a shell instead, if quotes are what is missing."""
    key, equals, value = argument.partition("=")
    text = f'"{value}"' if not set(value) & set('"\\') else quote(value)
    if not equals or not is_one_value(quoted := f"{key}={text}"):
        return ": give key=value"
    return f", as Hydra's grammar has its own meaning for some of its characters: write {shlex.quote(quoted)}"
