"""python -m src.eval run=<id> [format=json] [runs=runs] [calibrated=true] [key=value ...]

Measures a finished run again, on every split it knows. Further key=value pairs change the run's settings first:
  data=table data.path=mine.csv        measures it on all of another file's messages, of the same classes; with
                                       data.text_column= and data.label_column= (data.encoding=, data.separator=,
                                       data.empty=) as in training; they may hold one class alone
  trainer.precision=bf16-mixed         in another precision
calibrated=true measures probabilities that were scaled on validation. A run's own threshold stays in force.
"""

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from src.config.command_line import compose, explain, one_sentence
from src.config.options import Place, options
from src.errors import InputError
from src.runs import devices, identity, printed_table, run_dir

if TYPE_CHECKING:
    from pathlib import Path

    from omegaconf import DictConfig

    from src.data.datamodule import TextData
    from src.evaluation.metrics import Predictions

OTHER_DATA = ("path", "text_column", "label_column", "encoding", "separator", "empty")
SAME_DATA = ("batch_size", "num_workers")


@dataclass
class Options:
    """What the command line takes besides the run's own settings."""

    run: str
    runs: Place = "runs"
    format: Literal["table", "json"] = "table"
    calibrated: bool = False


def evaluate(
    run: str, runs: str = "runs", changes: list[str] | None = None, calibrated: bool = False
) -> tuple[dict[str, dict[str, float]], dict[str, int]]:
    """Metrics and sizes by split of a finished run; where `changes` name other data, of all of that as one split."""
    from src.config import build
    from src.evaluation import calibration
    from src.evaluation.decisions import as_recorded
    from src.evaluation.metrics import measure_splits

    folder = run_dir.find(runs, run)
    trained_on, cfg = run_dir.trained_on(folder), devices.for_use(run_dir.load_config(folder))
    foreign = change(cfg, changes or [])
    data = build.build_data(cfg, whole=foreign)
    if not foreign and data.sha256 != trained_on["sha256"]:
        raise InputError(
            f"the data of run {folder.name} have changed since it was trained, so that what was training may be test "
            "now: bring them back, or give data.path=<the file> to measure it on all messages"
        )
    answer = answers_of_gpt if identity.has_gpt(cfg) else answers_without_gpt
    answers, questions = answer(folder, cfg, data, trained_on)
    result = run_dir.load_result(folder)
    predictions = {part: as_recorded(one, result) for part, one in answers.items()}
    if calibrated:
        temperature = calibration.recorded(result)
        predictions = {part: calibration.scaled(one, temperature) for part, one in predictions.items()}
    sizes = {part: len(p.labels) for part, p in predictions.items()}
    metrics, by_task = measure_splits(predictions, questions)
    if by_task:
        metrics |= {f"test, {name}": measured for name, measured in by_task["test"].items()}
        sizes |= {f"test, {name}": trained_on["test_sizes"][name] for name in by_task["test"]}
    return metrics, sizes


Answers = tuple[dict[str, "Predictions"], dict[str, list[int]]]  # of each split; the class numbers of each question


def answers_of_gpt(folder: "Path", cfg: "DictConfig", data: "TextData", trained_on: dict[str, Any]) -> Answers:
    """What a fine-tuned GPT says of all splits."""
    from src.config import build
    from src.config.trainer import check_trainer, whole
    from src.evaluation.metrics import predict

    trainer = check_trainer(whole(cfg))
    if trainer.world_size > 1:
        raise InputError("trainer.devices: src.eval measures on one device; leave it out")
    model = build.restore(folder)
    data.encode_for(model.prompts, model.reads_padding, model.gpt.config.context_length)
    data.read_as(trained_on["labels"], trained_on["max_length"], trained_on["width"])
    predictions = {part: predict(trainer, model, data.evaluation_loader(part)) for part in data.splits}
    return predictions, model.classes_by_question


def answers_without_gpt(folder: "Path", cfg: "DictConfig", data: "TextData", trained_on: dict[str, Any]) -> Answers:
    """What another model says of all splits."""
    from src.config import baseline

    data.numbers(trained_on["labels"])
    return baseline.predict_splits(baseline.restore(folder), data), {}


def change(cfg: "DictConfig", changes: list[str]) -> bool:
    """Put key=value `changes` into the config of a run; whether it then names other data than it was trained on.

    Raises InputError for what would change a trained model.
    """
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    given = {one.partition("=")[0]: one for one in changes}
    if bare := [one for one in changes if "=" not in one]:
        raise InputError(f"{bare[0]!r} is not understood: give {bare[0]}=<value>")
    gpt = identity.has_gpt(cfg)
    known = ["data", *(f"data.{key}" for key in (*OTHER_DATA, *(SAME_DATA if gpt else ())))]
    if other := [one for key, one in given.items() if key not in known and not (gpt and key.startswith("trainer."))]:
        raise InputError(
            f"{other[0]} cannot change a trained run: eval takes {', '.join(known)}{gpt * ' and trainer.* settings'}"
        )
    if "data" in given:
        kept = {key: cfg.data[key] for key in ("padding", *SAME_DATA) if gpt}
        try:
            cfg.data = compose("train", [one for key, one in given.items() if key.startswith("data")]).data
        except (HydraException, OmegaConfBaseException) as error:
            raise InputError(explain(error)) from None
        cfg.data.update(kept)
    places = identity.without_places(run_dir.plain(cfg.data))  # without that of a pinned collection
    OmegaConf.set_struct(cfg, False)  # `build` checks the keys
    cfg.merge_with_dotlist([one for key, one in given.items() if key != "data"])
    return "data" in given or any(f"data.{key}" in given for key in OTHER_DATA if key in places)


def main() -> None:
    """Measure and print."""
    own = {"run", "runs", "format", "calibrated", "-h", "--help"}
    mine = [argument for argument in sys.argv[1:] if argument.partition("=")[0] in own]
    given = options(Options, mine, __doc__ or "")
    changes = [argument for argument in sys.argv[1:] if argument not in mine]
    metrics, sizes = evaluate(given.run, given.runs, changes, given.calibrated)
    if given.format == "json":
        print(json.dumps(run_dir.without_nan(metrics), indent=2))
        return
    printed_table.show_metrics(given.run, metrics, sizes)


if __name__ == "__main__":
    with one_sentence():
        main()
