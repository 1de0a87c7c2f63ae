"""Somebody else's parts, from a folder of their own, without an edit in src: they train, resume, predict and report."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from src.config import build
from src.config.command_line import compose
from src.config.trainer import partial_flag
from src.errors import InputError
from src.predict import predict_texts
from src.report import Options, report
from src.runs import run_dir
from src.train import main, train

ROOT = Path(__file__).parents[1]
THEIRS = '''
import lightning as L
import torch
from dataclasses import dataclass
from src.data.corpus import Corpus, Example
from src.data.datamodule import TextData
from src.finetune.classifier import Classifier


@dataclass(kw_only=True, eq=False)
class Lines(TextData):
    """One text a line; those that end in ! are loud."""

    path: str

    def read(self):
        texts = open(self.path, encoding="utf-8").read().splitlines()
        examples = [Example(text, "loud" if text.endswith("!") else "calm") for text in texts]
        return Corpus("lines", examples, ("calm", "loud"), sha256="0" * 64)


class MaxPooling(Classifier):
    """The head reads the largest value of each channel."""

    def pooling_index(self, length, width):
        return None

    def pool(self, hidden, length):
        inside = torch.arange(hidden.shape[1], device=hidden.device) < length[:, None]
        return hidden.masked_fill(~inside[..., None], -torch.inf).amax(1, keepdim=True)

    @property
    def reads_padding(self):
        return False

    @property
    def feature_key(self):
        return "max"


class Batches(L.Callback):
    """Counts batches over the whole of a training, resumed or not, and may end it in the middle."""

    kill_in_epoch = None

    def __init__(self, start=0):
        self.seen = start

    def on_train_batch_end(self, trainer, *_):
        self.seen += 1
        if trainer.current_epoch == Batches.kill_in_epoch:
            raise RuntimeError("killed")

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]
'''
MINE = {
    "data/lines": "defaults: [base, _self_]\n_target_: their_parts.Lines\npath: ???\n",
    "optimizer/rmsprop": "_target_: torch.optim.RMSprop\n_partial_: true\nlr: 1e-2\n",
    "scheduler/step": "_target_: torch.optim.lr_scheduler.StepLR\n_partial_: true\nstep_size: 7\ngamma: 0.5\n",
}


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A folder with their module, their options of config groups, and texts; the overrides that use them."""
    (tmp_path / "their_parts.py").write_text(THEIRS, encoding="utf-8")
    for name, content in MINE.items():
        path = tmp_path / "conf" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    rng = random.Random(0)
    words = ["lunch", "home", "later", "tea", "see", "you", "soon", "ok", "win", "cash", "now", "call"]
    lines = [" ".join(rng.choices(words, k=6)) + str(n) + "!" * (n % 2) for n in range(60)]
    (tmp_path / "lines.txt").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    tiny = "gpt.weights=random gpt.n_layer=2 gpt.n_head=2 gpt.n_embd=16 gpt.context_length=64 cache=memory logger=csv"
    yield [
        *(f"hydra.searchpath=[file://{tmp_path / 'conf'}]", "data=lines", f"data.path={tmp_path / 'lines.txt'}"),
        *("task._target_=their_parts.MaxPooling", "optimizer=rmsprop", "optimizer.lr=1e-3", "scheduler=step"),
        *("callbacks=[default,lr_monitor]", "+callbacks.batches._target_=their_parts.Batches", *tiny.split()),
        *("trainer.max_epochs=3", "trainer.accelerator=cpu", f"runs={tmp_path / 'runs'}"),
    ]
    sys.modules.pop("their_parts", None)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def test_their_parts_train_resume_predict_and_report(theirs, tmp_path):
    straight = train(compose("train", theirs))
    assert type(straight.model).__name__ == "MaxPooling"
    assert type(straight.trainer.optimizers[0]) is torch.optim.RMSprop
    assert straight.trainer.optimizers[0].param_groups[0]["lr"] < 1e-3

    sys.modules["their_parts"].Batches.kill_in_epoch = 1
    with pytest.raises(RuntimeError, match="killed"):
        train(compose("train", [*theirs, f"runs={tmp_path / 'killed'}"]))
    sys.modules["their_parts"].Batches.kill_in_epoch = None
    (killed,) = (tmp_path / "killed").iterdir()
    resumed = train(compose("train", [f"runs={tmp_path / 'killed'}", f"resume={killed.name}"]))
    assert resumed.result["metrics"] == straight.result["metrics"]
    ours, others = weights_of(straight.folder), weights_of(resumed.folder)
    assert all(torch.equal(ours[name], others[name]) for name in ours)
    seen = [run.trainer.callbacks for run in (straight, resumed)]
    assert len({next(c.seen for c in callbacks if type(c).__name__ == "Batches") for callbacks in seen}) == 1

    metrics = "".join(path.read_text() for path in straight.folder.glob("csv/**/metrics.csv"))
    assert "lr-RMSprop" in metrics
    assert "final/test/accuracy" in metrics

    (answer,) = predict_texts(str(straight.folder), ["see you soon!"])
    assert set(answer["probabilities"]) == {"calm", "loud"}

    study = tmp_path / "mine.yaml"
    overrides = json.dumps([one for one in theirs if not one.startswith(("runs=", "+callbacks"))])[1:-1]
    study.write_text(
        "name: mine\ndescription: d\nprogram: src/train.py\nmethod: grid\n"
        "metric: {name: final/validation/accuracy, goal: maximize}\n"
        f'command: ["${{env}}", "${{interpreter}}", "-m", "src.train", {overrides}, '
        '"+callbacks.batches._target_=their_parts.Batches", "${args_no_hyphens}"]\n'
        "parameters: {seed: {values: [123]}}\n",
        encoding="utf-8",
    )
    report(study, ["csv"], Options(runs=str(tmp_path / "runs")))
    assert (tmp_path / "tables" / "mine.csv").read_text().count("\n") == 2


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("optimizer.foo=1", "optimizer.foo"),
        ("+optimizer.momentum=-1", "optimizer"),
        ("optimizer._target_=torch.optim.Nothing", "optimizer._target_"),
        ("scheduler.step_size=x", "scheduler"),
        ("callbacks.batches.foo=1", "callbacks.batches.foo"),
        ("task.pooling=middle", "task.pooling"),
        ("logger.csv.foo=1", "logger.csv.foo"),
        ("data._target_=collections.Counter", "data"),
    ],
)
def test_what_does_not_fit_is_found_before_a_run_folder_exists(theirs, tmp_path, override, key):
    with pytest.raises(Exception, match=key.replace(".", r"\.")) as raised:
        train(compose("train", [*theirs, override if override.startswith(("+", "data", "task")) else f"++{override}"]))
    assert isinstance(raised.value, InputError), raised.value
    assert not (tmp_path / "runs").exists()


FLAGS = "fast_dev_run=true limit_train_batches=2 limit_val_batches=1 overfit_batches=1 max_time='00:00:10:00'"


@pytest.mark.parametrize(
    "flag", [pytest.param(flag, marks=[pytest.mark.slow] * (i > 0)) for i, flag in enumerate(FLAGS.split())]
)
def test_a_run_with_a_debugging_flag_is_partial_and_no_result(theirs, tmp_path, flag):
    from src.sweeps.study import finished

    cfg = compose("train", [*theirs, f"+trainer.{flag}"])
    assert partial_flag(cfg) == flag.partition("=")[0]
    run = train(cfg)
    assert run.result["partial"] is True
    assert run.result["data"]["sizes"]["test"] == len((run.folder / "predictions.csv").read_text().splitlines()) - 1
    assert finished(tmp_path / "runs") == {}
    assert run_dir.load_result(run.folder)["partial"]


def test_the_job_returns_what_a_sweeper_is_to_improve(theirs):
    found = main(compose("train", [*theirs, "trainer.max_epochs=1", "optimized_metric=validation/loss"]))
    assert isinstance(found, float)
    with pytest.raises(InputError, match="optimized_metric"):
        main(compose("train", [*theirs, "trainer.max_epochs=1", "optimized_metric=loss"]))


def test_a_checkpoint_alone_says_what_to_call_instead(theirs):
    run = train(compose("train", [*theirs, "trainer.max_epochs=1"]))
    with pytest.raises(InputError, match=r"build\.restore"):
        type(run.model).load_from_checkpoint(run.folder / "checkpoints/best.ckpt")
    assert build.restore(run.folder).trained == run.model.trained


SWEEPER = """
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper


class Best(Sweeper):
    def setup(self, *, hydra_context, task_function, config):
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments):
        found = {}
        for i, lr in enumerate(("1e-9", "1e-2")):
            (job,) = self.launcher.launch([[*arguments, f"optimizer.lr={lr}"]], initial_job_idx=i)
            found[lr] = job.return_value
        print("best:", min(found, key=found.get))
"""


@pytest.mark.slow
def test_a_sweeper_of_hydra_s_chooses_by_what_the_job_returns(theirs, tmp_path):
    (tmp_path / "hydra_plugins" / "best").mkdir(parents=True)
    (tmp_path / "hydra_plugins" / "best" / "__init__.py").write_text(SWEEPER, encoding="utf-8")
    (tmp_path / "conf" / "hydra" / "sweeper").mkdir(parents=True)
    (tmp_path / "conf" / "hydra" / "sweeper" / "best.yaml").write_text("_target_: hydra_plugins.best.Best\n")
    given = [*theirs, "hydra/sweeper=best", "optimized_metric=train/loss", "-m"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    line = [sys.executable, "-m", "src.train", *given]
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "best: 1e-2" in done.stdout
