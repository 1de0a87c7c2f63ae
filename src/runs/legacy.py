"""Run folders of version 0.1, read as if today's had written them.

Goes when every study has been run anew.
"""

from typing import Any

TASKS = {"classify": "src.finetune.classifier.Classifier", "instruct": "src.finetune.instruction.InstructionTuner"}
DATASETS = {
    "bundled": "src.data.datasets.Bundled",
    "sms_spam": "src.data.datasets.SmsSpam",
    "table": "src.data.datasets.Table",
    "mix": "src.data.mixture.Mixture",
}
POOLINGS = {"last_real": "last_nonpad"}

# a setting of version 0.1, as people still type it -> what it is called today
RENAMED = {
    "task.kind": "task=classify or task=instruct",
    "task.position": "task.pooling (last_real is last_nonpad)",
    "task.optimizer": "optimizer.lr and optimizer.weight_decay; its schedule is scheduler=...",
    "task.optimizer.lr": "optimizer.lr",
    "task.optimizer.weight_decay": "optimizer.weight_decay",
    "task.optimizer.schedule": "scheduler=constant, cosine or linear",
    "task.optimizer.warmup": "scheduler.warmup_ratio",
    "task.optimizer.floor": "scheduler.min_lr_ratio",
    "optimizer.schedule": "scheduler=constant, cosine or linear",
    "optimizer.warmup": "scheduler.warmup_ratio",
    "optimizer.floor": "scheduler.min_lr_ratio",
    "optimizer.muon": "optimizer=muon",
    "candidates": "num_sampled",
    "data.name": "data=<dataset>",
    "logger.kind": "logger=wandb, csv, tensorboard, mlflow or none",
    "logger.offline": "logger.wandb.offline",
    "logger.project": "logger.wandb.project",
    "logger.entity": "logger.wandb.entity",
    "logger.group": "logger.wandb.group",
}

# Weights of gpt=mini that runs without a record began from; their config hashes hold it.
WEIGHTS_BEFORE_RECORDS = "7755868c4c31646cf59baabd3225315311845f93eb59645d3a991b6728fb52f0"


def todays(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run in today's words; those of today's runs as they are."""
    if "scheduler" in config or "param_grid" in config.get("task", {}) or not config.keys() & {"task", "optimizer"}:
        return config
    new = {key: value for key, value in config.items() if key not in ("task", "data", "optimizer", "candidates", "gpt")}
    new["gpt"] = {key: value for key, value in config["gpt"].items() if key != "finetune"}
    task = dict(config.get("task", {}))
    new["optimizer"], new["scheduler"] = optimizer_of(task.pop("optimizer", None) or config["optimizer"])
    new["callbacks"] = {}
    if task:
        new["task"], new["data"] = task_of(task), data_of(config["data"])
    if "candidates" in config:
        new["num_sampled"] = config["candidates"]
    return new


def optimizer_of(old: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """AdamW or Muon beside it, and the schedule, apart."""
    optimizer = {
        "_target_": "src.finetune.optim.MuonAdamW" if old.get("muon") else "torch.optim.AdamW",
        "_partial_": True,
        "lr": old["lr"],
        "weight_decay": old["weight_decay"],
        "betas": old.get("betas", [0.9, 0.999]),
        "fused": True,
    }
    shape = {"shape": old["schedule"], "warmup_ratio": old["warmup"]}
    decay = {} if old["schedule"] == "constant" else {"min_lr_ratio": old.get("floor", 0.0)}
    return optimizer, {"_target_": "src.finetune.optim.warmup_schedule", "_partial_": True, **shape, **decay}


def task_of(old: dict[str, Any]) -> dict[str, Any]:
    """A way of fine-tuning by its class."""
    new = {"_target_": TASKS[old["kind"]], **{key: value for key, value in old.items() if key != "kind"}}
    new["lora"] = {"_target_": "src.gpt.lora.LoRA", "init": "in_features", **old["lora"]}
    if position := new.pop("position", None):
        new["pooling"] = POOLINGS.get(position, position)
    return new


def data_of(old: dict[str, Any]) -> dict[str, Any]:
    """A dataset by its class."""
    new = {"_target_": DATASETS[old["name"]], **{key: value for key, value in old.items() if key != "name"}}
    if "sources" in old:
        new["sources"] = {source: data_of(settings) for source, settings in old["sources"].items()}
    return new


def sha256(config: dict[str, Any], result: dict[str, Any]) -> dict[str, str | None]:
    """What is known of what a run read that did not record it: its data, unless they are a mix, and its weights."""
    found: dict[str, str | None] = {}
    if "sources" not in config.get("data", {}):
        found["data.path"] = result.get("data", {}).get("sha256")
    gpt = config.get("gpt", {})
    if (gpt.get("name"), gpt.get("weights")) == ("mini", "pretrained"):
        found["gpt.weights"] = WEIGHTS_BEFORE_RECORDS
    return found
