"""Continuations: how a GPT in pretraining goes on from a few prompts, after each validation."""

import logging
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch

from src.data.tokenizer import END_OF_TEXT, decode, encode
from src.gpt.generation import Decoder, check, sampler
from src.gpt.model import GPT
from src.runs.loggers import is_wandb

log = logging.getLogger("src.pretrain")
NEW_TOKENS = 24


class Continuations(L.Callback):
    """Logs the held-out loss and NEW_TOKENS sampled tokens after each prompt, on W&B as a table too.

    Raises InputError, when made, for a prompt that leaves no room in the context.
    """

    def __init__(self, gpt: GPT, prompts: Sequence[str], seed: int) -> None:
        self.gpt, self.prompts, self.seed = gpt, list(prompts), seed
        ids = encode(self.prompts)
        lengths = [len(one) for one in ids]
        if ids:
            check(gpt.config, lengths, NEW_TOKENS)  # now, not after the first validation
        self.lengths = torch.tensor(lengths)
        self.ids = torch.tensor([one + [END_OF_TEXT] * (max(lengths) - len(one)) for one in ids])  # (prompts, T)

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        loss = trainer.callback_metrics["validation/loss"]
        log.info("step %d: held-out loss %.3f, perplexity %.1f", trainer.global_step, loss, loss.exp())
        if not self.prompts:
            return
        ids, lengths = self.ids.to(module.device), self.lengths.to(module.device)
        choose = sampler(temperature=0.8, top_k=40, seed=self.seed)
        new = Decoder(self.gpt, ids, lengths, max_new_tokens=NEW_TOKENS).generate(NEW_TOKENS, END_OF_TEXT, choose)
        rows = [[prompt, decode(more)] for prompt, more in zip(self.prompts, new, strict=True)]
        for prompt, more in rows:
            log.info("    %s", " ".join(f"{prompt} |{more}".split()))
        loggers: list[Any] = list(filter(is_wandb, trainer.loggers))
        for logger in loggers:
            logger.log_text("continuations", ["prompt", "continuation"], rows, step=trainer.global_step)
