"""python -m src.pretrain corpus.path=<text> [key=value ...]

Trains a GPT from random weights on text. A killed run goes on with `resume=<run id>`, to the very same weights.
"""

import hydra
from omegaconf import DictConfig

CONF = "../conf"


def pretrain(cfg: DictConfig) -> None:
    import json
    from datetime import timedelta
    from pathlib import Path

    import lightning as L
    from lightning.pytorch.callbacks import ModelCheckpoint, Timer
    from lightning.pytorch.loggers import CSVLogger
    from omegaconf import OmegaConf

    from src.data.pack import Windows, pack
    from src.finetune.language import Language
    from src.gpt.model import GPT, GPTConfig

    run = Path(cfg.runs) / cfg.name
    run.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(cfg, run / "config.yaml", resolve=True)
    size = {k: v for k, v in cfg.gpt.items() if k not in ("name", "weights")}
    gpt = GPT(GPTConfig(**size), seed=cfg.seed)
    task = OmegaConf.to_container(cfg.task, resolve=True)
    batch_size, compiled = task.pop("batch_size"), task.pop("compile")
    model = Language(gpt, **task)
    if compiled:
        model.gpt.compile()
    train = Windows(pack(cfg.corpus.path, Path(cfg.corpus.cache).expanduser()), cfg.corpus.window, batch_size, cfg.seed)
    valid = Windows(pack(cfg.corpus.validation_path, Path(cfg.corpus.cache).expanduser()), cfg.corpus.window, batch_size, None)
    callbacks = [ModelCheckpoint(run / "checkpoints", save_last=True, every_n_train_steps=cfg.checkpoint_every, save_top_k=0)]
    if cfg.budget_minutes:
        callbacks.append(Timer(timedelta(minutes=cfg.budget_minutes)))
    L.seed_everything(cfg.seed)
    trainer = L.Trainer(
        **cfg.trainer, max_epochs=-1, check_val_every_n_epoch=None, callbacks=callbacks,
        logger=CSVLogger(run, name="", version=""), default_root_dir=run,
    )
    last = run / "checkpoints" / "last.ckpt"
    trainer.fit(model, train, valid, ckpt_path=str(last) if last.exists() else None)


@hydra.main(version_base="1.3", config_path=CONF, config_name="pretrain")
def main(cfg: DictConfig) -> None:
    pretrain(cfg)


if __name__ == "__main__":
    main()
