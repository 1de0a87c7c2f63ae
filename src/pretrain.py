"""python -m src.pretrain corpus.path=<text> corpus.validation_path=<held-out text> [gpt=<size>] [key=value ...]

Trains a GPT from random weights to predict the next token. A killed run goes on with `resume=<run id>`, and with
`trainer.devices=<n>` on other devices.
"""

import json
import logging
import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from src.config.command_line import MOVABLE, hydra_main, override, was_given

if TYPE_CHECKING:
    from src.gpt.model import GPT
    from src.pretraining.causal_lm import CausalLM
    from src.pretraining.held_out import Losses
    from src.pretraining.throughput import Throughput
    from src.pretraining.token_stream import Packed

log = logging.getLogger("src.pretrain")
SHAPE = ("n_layer", "n_head", "n_embd", "context_length", "vocab_size")


def pretrain(cfg: DictConfig, on: dict[str, Any] | None = None) -> Path:
    """Train as `cfg` says, measure on all of the held-out text, write the run's folder with the weights in model/.

    on: where cfg.resume names a run, the devices and num_nodes that it goes on with, if others.
    """
    with ExitStack() as held:
        return train_on_text(cfg, on, held)


def train_on_text(cfg: DictConfig, on: dict[str, Any] | None, held: ExitStack) -> Path:
    """What `pretrain` does, with the lock of the run folder and the processes of this run in `held`."""
    from torch.utils.data import DataLoader

    from src import ranks
    from src.config import build
    from src.config import pretraining as parts
    from src.config.trainer import build_callbacks, build_loggers, build_trainer, check_loggers
    from src.finetune.checkpointing import StepCheckpoint
    from src.finetune.cost import peak_memory_bytes
    from src.pretraining.continuations import Continuations
    from src.pretraining.held_out import losses_by_source, validation_batches
    from src.pretraining.throughput import Throughput
    from src.pretraining.token_stream import Windows, pack
    from src.runs import devices, loggers, provenance, run_dir
    from src.runs.begin_run import begin_folder, begin_processes

    source = run_dir.find(cfg.runs, cfg.resume) if cfg.resume else None
    if source:
        cfg = run_dir.load_config(source)
        devices.move(cfg, on or {})
    build.check_config(cfg)
    check_loggers(cfg)
    parts.check_pretraining(cfg)
    probe = build_trainer(cfg, logger=False, enable_checkpointing=False)
    processes = begin_processes(cfg, probe, source, True, held)

    clock = Throughput(cfg.budget_minutes * 60 if cfg.budget_minutes else None)
    model = parts.build_language_model(cfg, clock)
    tell = Continuations(model.gpt, cfg.prompts, cfg.seed)
    text, held_out = (pack(path, cfg.corpus.cache) for path in (cfg.corpus.path, cfg.corpus.validation_path))
    size = devices.global_batch_of(cfg)
    windows = Windows(text.ids, cfg.window, size, cfg.seed, parts.padded_windows(cfg))
    whole = validation_batches(held_out, cfg.window, size, cfg.validation_batches)
    parts.pretrainer(cfg, windows.epoch_batches, logger=False, enable_checkpointing=False)  # refuses before a folder
    given_callbacks = build_callbacks(cfg)
    log.info(describe(cfg, text, held_out, model))

    folder = begin_folder(processes, probe, source, lambda: run_dir.create(cfg), "pretrain", held)
    logger = build_loggers(cfg, folder, remove_on_failure=source is None) if processes.first else []
    batches: Any = DataLoader([ranks.share(batch) for batch in whole], batch_size=None)  # type: ignore[arg-type]
    checkpoint = StepCheckpoint(folder / "checkpoints" / "last.ckpt", cfg.checkpoint_every)
    callbacks = [clock, tell, checkpoint, *given_callbacks]
    trainer = parts.pretrainer(cfg, windows.epoch_batches, callbacks, logger=logger, default_root_dir=folder)
    try:
        trainer.fit(model, windows, batches, ckpt_path=run_dir.last_checkpoint(folder), weights_only=True)
        if not clock.curve or clock.curve[-1]["step"] < trainer.global_step:
            trainer.validate(model, batches, verbose=False)  # the curve ends where training does
        model.to(trainer.strategy.root_device)  # which Lightning leaves
        bf16 = "bf16" in str(cfg.trainer.precision)
        losses = losses_by_source(model.gpt, held_out, cfg.window, cfg.batch_size, bf16)
        peak = max(ranks.gathered(peak_memory_bytes(model.device)))
        if not processes.first:
            return folder
        result = summarize(cfg, folder, text, held_out, model, clock, losses, peak)
        result["environment"] = provenance.environment(trainer.strategy.root_device, trainer.precision)
        write(folder, model.gpt, result)
        loggers.finish(logger, flat(result["metrics"]), result["cost"])
    finally:
        loggers.close(logger)
    show(cfg, result, folder)
    loggers.show(logger)
    return folder


def describe(cfg: DictConfig, text: "Packed", held_out: "Packed", model: "CausalLM") -> str:
    """What is trained on what, before it begins."""
    from src.runs.devices import global_batch_of

    parts = ", ".join(f"{name} {end - start:,}" for name, (start, end) in text.sources.items())
    parameters = sum(p.numel() for p in model.parameters())
    return (
        f"{len(text.ids):,} tokens of {text.documents:,} documents ({parts}); held out {len(held_out.ids):,}\n"
        f"gpt {cfg.gpt.name}: {parameters:,} parameters; "
        f"a step is {global_batch_of(cfg)} windows of {cfg.window} tokens"
    )


def summarize(
    cfg: DictConfig,
    folder: Path,
    text: "Packed",
    held_out: "Packed",
    model: "CausalLM",
    clock: "Throughput",
    losses: "Losses",
    peak: int,
) -> dict[str, Any]:
    """The content of result.json: losses on the held-out text by source, and what it took."""
    from src.pretraining.held_out import by_source
    from src.pretraining.ngram_baseline import bigram
    from src.runs import provenance, run_dir

    baseline = bigram(text.ids, held_out.ids, held_out.sources, cfg.gpt.vocab_size)
    return {
        "id": folder.name,
        "name": cfg.name,
        **run_dir.recorded(folder),
        "seed": cfg.seed,
        "commit": provenance.commit(),
        "corpus": {
            part: {"sha256": packed.sha256, "tokens": len(packed.ids), "documents": packed.documents}
            for part, packed in (("train", text), ("validation", held_out))
        },
        "gpt": {
            "name": cfg.gpt.name,
            "weights": cfg.gpt.weights,
            "parameters": sum(p.numel() for p in model.parameters()),
        },
        "metrics": {"validation": by_source(losses), "bigram": by_source(baseline.losses)},
        "bigram": {"alpha": baseline.alpha},
        "cost": {
            "train_seconds": clock.seconds,
            "train_flops": clock.flops,
            "train_tokens": clock.tokens,
            "peak_memory_bytes": peak,
        },
        "curve": clock.curve,
    }


def write(folder: Path, gpt: "GPT", result: dict[str, Any]) -> None:
    """model/ (bf16, Hugging Face's layout), curve.png, then result.json."""
    import torch

    from src.gpt.weights import export
    from src.reporting import figures
    from src.runs import run_dir

    export(gpt, folder / "model", torch.bfloat16)
    if result["curve"]:
        figures.loss_curve(result["curve"], folder / "curve.png", f"{result['name']}: gpt={result['gpt']['name']}")
    run_dir.write_text(folder / "result.json", json.dumps(run_dir.without_nan(result), indent=2) + "\n")


def flat(metrics: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """<source>/<measure> of each part."""
    return {
        part: {f"{source}/{name}": value for source, measured in sources.items() for name, value in measured.items()}
        for part, sources in metrics.items()
    }


def show(cfg: DictConfig, result: dict[str, Any], folder: Path) -> None:
    """Print what came out."""
    baseline = result["metrics"]["bigram"]
    for name, measured in result["metrics"]["validation"].items():
        print(
            f"held-out {name:<12} loss {measured['loss']:.3f}  perplexity {measured['perplexity']:.1f}  "
            f"(bigram model: loss {baseline[name]['loss']:.3f}, perplexity {baseline[name]['perplexity']:.1f})"
        )
    cost = result["cost"]
    rate = cost["train_tokens"] / max(cost["train_seconds"], 1e-9)
    print(f"{cost['train_tokens']:,} tokens in {cost['train_seconds']:.0f} s ({rate:,.0f} a second)")
    given = [*shape(cfg.gpt), override("gpt.weights", str(folder / "model"))]
    print(f"weights: {folder / 'model'}; fine-tune them with python -m src.train {shlex.join(given)}")


def shape(gpt: DictConfig) -> list[str]:
    """What src.train must be given for a GPT of this shape: its size's name, and where it departs from that."""
    from omegaconf import OmegaConf

    path = Path(__file__).parents[1] / "conf" / "gpt" / f"{gpt.name}.yaml"
    named = OmegaConf.load(path).gpt if path.is_file() else {}
    other = {key: gpt[key] for key in SHAPE if gpt[key] != named.get(key)}
    return [f"gpt={gpt.name}", *(f"gpt.{key}={value}" for key, value in other.items())]


def main(cfg: DictConfig) -> Path:
    """Pretrain, on other devices than the run that resume= names if the command says so."""
    return pretrain(cfg, {key: cfg.trainer[key] for key in MOVABLE if cfg.resume and was_given(f"trainer.{key}")})


if __name__ == "__main__":
    hydra_main("pretrain", main)
