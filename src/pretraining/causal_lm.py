"""Language modelling, which is how a GPT is pretrained: ids (B, T+1) -> GPT -> the loss of each next token."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanMetric

from src import ranks
from src.data.tokenizer import END_OF_TEXT
from src.errors import InputError
from src.finetune.checkpointing import check_tensors
from src.finetune.optim import ClippedGradients, OptimizerFactory, SchedulerFactory, adamw, configure, warmup_schedule
from src.gpt.model import GPT
from src.pretraining.losses import IGNORE_INDEX, chunk_loss, chunked_cross_entropy, sampled_cross_entropy


def pad_messages(ids: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Windows (B, T+1) that begin with a document, and as many numbers drawn from [0, 1) -> inputs and targets (B, T):
    its first words, as many as a message has, and <|endoftext|> behind them to the end. What is asked for there is
    words of the document's rest, at random: padding has to carry what the message is about, which a head that reads
    behind padding needs.

    The cut lies between 4 tokens and three quarters of the window, its logarithm being uniform; nothing is asked for at
    the cut, nor where less than 5 tokens are left of the document.
    """
    T, device = ids.shape[1] - 1, ids.device
    place = torch.arange(T, device=device)
    ended = ids[:, :-1] == END_OF_TEXT
    length = torch.where(ended.any(1), ended.int().argmax(1), T)[:, None]  # (B, 1), of the document
    drawn = drawn.to(device)
    cut = (4 * (length.clamp(4, max(4, T * 3 // 4)) / 4) ** drawn[:, :1]).long()
    rest, message = length - cut, place < cut
    words = ids.gather(1, (cut + drawn[:, 1:] * rest).long().clamp(max=T))
    targets = torch.where(place < cut - 1, ids[:, 1:], IGNORE_INDEX)
    return torch.where(message, ids[:, :-1], END_OF_TEXT), torch.where(message | (rest < 5), targets, words)


class CausalLM(ClippedGradients):
    """A GPT as a language model, trained whole.

    num_sampled    None for the exact softmax; a number samples the vocabulary in training (never in validation)
    chunk         tokens whose logits are held at once
    padded        the first so many windows of a batch, of all ranks, are padded as messages are (see pad_messages)
    `progress` is the share of training done, which the learning rate follows: steps of the Trainer's max_steps.
    """

    def __init__(
        self,
        gpt: GPT,
        optimizer: OptimizerFactory = adamw,
        scheduler: SchedulerFactory = warmup_schedule,
        num_sampled: int | None = None,
        chunk: int = 2048,
        seed: int = 123,
        padded: int = 0,
    ) -> None:
        super().__init__()
        if chunk < 1 or (num_sampled is not None and num_sampled < 1):
            raise InputError(f"chunk={chunk} and num_sampled={num_sampled} must be at least 1")
        self.gpt, self.optimizer, self.scheduler, self.padded = gpt, optimizer, scheduler, padded
        self.num_sampled, self.chunk, self.seed = num_sampled, chunk, seed
        self.chunk_loss = chunk_loss
        self.validation_loss = MeanMetric(nan_strategy="disable")
        self.progress: Callable[[], float] = lambda: self.trainer.global_step / max(1, self.trainer.max_steps)

    def forward(self, ids: Tensor) -> Tensor:
        """Hidden states (B, T, C)."""
        return self.gpt(ids)

    def compile_parts(self) -> None:
        """torch.compile, for the GPT and for what the loss does between its matrix products."""
        self.gpt.compile()
        self.chunk_loss = torch.compile(chunk_loss)

    def batch_seed(self) -> int:
        """For what is drawn in a batch: of the seed and the number of the batch alone, so that it survives a resume."""
        return self.seed * 1_000_003 + self.trainer.fit_loop.total_batch_idx

    def on_train_batch_start(self, batch: Tensor, batch_index: int) -> None:
        torch.manual_seed(self.batch_seed() + ranks.SEEDS_APART * ranks.rank())  # dropout

    def training_step(self, batch: Tensor, batch_index: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.batch_seed())
        ids, targets = batch[:, :-1], batch[:, 1:]
        if self.padded:
            drawn = ranks.share(torch.rand(self.padded, batch.shape[1], generator=generator))
            inputs, asked = pad_messages(batch[: (n := len(drawn))], drawn)
            ids, targets = torch.cat([inputs, ids[n:]]), torch.cat([asked, targets[n:]])
        if ranks.rank():  # each has words of its own to leave out
            generator.manual_seed(self.batch_seed() + ranks.SEEDS_APART * ranks.rank())
        hidden, targets = self(ids).flatten(0, 1), targets.flatten()
        weight = self.gpt.token_embedding.weight
        if self.num_sampled is None:
            loss = chunked_cross_entropy(hidden, weight, targets, self.chunk, self.chunk_loss)
        else:
            loss = sampled_cross_entropy(
                hidden, weight, targets, self.num_sampled, generator, self.chunk, self.chunk_loss
            )
        if self.padded and ranks.world() > 1:  # the mean over all ranks is one over targets, which they have unalike
            own = (targets != IGNORE_INDEX).sum()
            loss = loss * own * ranks.world() / ranks.total(own)
        self.log("train/loss", loss.detach(), prog_bar=True, sync_dist=ranks.world() > 1)
        return loss

    def validation_step(self, batch: Tensor, batch_index: int) -> None:
        targets = batch[:, 1:].flatten()
        hidden, weight = self(batch[:, :-1]).flatten(0, 1), self.gpt.token_embedding.weight
        loss = chunked_cross_entropy(hidden, weight, targets, self.chunk, self.chunk_loss)
        self.validation_loss.update(loss.expand(len(targets)))  # torchmetrics 1.9 forgets weights that let NaN through

    def on_validation_epoch_end(self) -> None:
        loss = self.validation_loss.compute()
        self.validation_loss.reset()
        self.log_dict({"validation/loss": loss, "validation/perplexity": loss.exp()}, prog_bar=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if not all(parameter.isfinite().all() for parameter in self.parameters()):
            raise InputError(
                f"the weights became infinite or NaN before step {checkpoint['global_step']}: training stopped, the "
                "checkpoint before is kept; lower optimizer.lr"
            )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_tensors(checkpoint["state_dict"], self.state_dict())

    def configure_optimizers(self) -> Any:
        decayed = [p for name, p in self.gpt.named_parameters() if p.ndim == 2 and "embedding" not in name]
        others = [p for name, p in self.gpt.named_parameters() if p.ndim != 2 or "embedding" in name]
        groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
        return configure(groups, self.optimizer, self.scheduler, self.progress)
