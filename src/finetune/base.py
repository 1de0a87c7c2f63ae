"""What both ways of fine-tuning share: what is trained, by which optimizer, and what a checkpoint holds."""

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, Literal, Self

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src import ranks
from src.data.batching import Batch
from src.data.prompts import Prompt, Question, Task
from src.errors import InputError
from src.finetune import freezing as strategies
from src.finetune.checkpointing import check_tensors
from src.finetune.feature_store import Features
from src.finetune.history import Mean
from src.finetune.optim import OptimizerFactory, SchedulerFactory, adamw, clip, configure, warmup_schedule
from src.gpt.lora import LoRA, inject
from src.gpt.model import GPT
from src.gpt.shared_prefixes import SharedPrefixes

FrozenPrecision = Literal["run", "bf16"]


class FineTuner(L.LightningModule):
    """A GPT and, where there is one, a head. A way of fine-tuning adds `pooling_index`, `output` and `loss`.

    questions         what is asked of the texts: their classes, and for a task that prompts the instruction and answers
    trainable         what is unfrozen (see freezing.py); the rest does not move by a bit
    lora              the rank and scaling of the adapters, for trainable="lora"
    optimizer, scheduler    factories (see optim.py)
    frozen_precision  of the blocks below the first trained one: run (that of the Trainer) or bf16
    features          part -> what these blocks have made of its messages (feature_cache.py); empty: made in each step
    Checkpoints hold the trained parameters only, and the norms of the frozen ones, which are the GPT's that the run
    started from.
    """

    def __init__(
        self,
        gpt: GPT,
        questions: Sequence[Question],
        head: nn.Module | None,
        trainable: str,
        lora: LoRA | None,
        optimizer: OptimizerFactory = adamw,
        scheduler: SchedulerFactory = warmup_schedule,
        frozen_precision: FrozenPrecision = "run",
    ) -> None:
        super().__init__()
        self.frozen_precision = frozen_precision
        self.features: dict[str, Features] = {}
        self.answer_rows = 0  # rows of a message that `compute_features` has besides its own
        self.seed = torch.initial_seed()  # what the run was seeded with
        self.gpt, self.head, self.questions = gpt, head, list(questions)
        self.tasks = list[Task]()  # the questions as tokens, of a way that prompts
        self.prompts = [Prompt() for _ in self.questions]  # around the texts of each
        self.strict_loading = False  # a checkpoint holds the trained parameters alone, which on_load_checkpoint checks
        self.optimizer, self.scheduler = optimizer, scheduler
        if trainable == "lora":
            inject(self, lora or LoRA())
        names = [name for name, _ in self.named_parameters()]
        self.trained = strategies.trainable_names(names, trainable, gpt.config.n_layer)
        self.first_trainable = strategies.first_trainable_block(self.trained, gpt.config.n_layer)
        strategies.freeze_all_but(self, self.trained)
        self.frozen_norms = self._norms_of_frozen()  # now: a Trainer may round the weights to its precision
        self.means = nn.ModuleDict(
            {f"{phase}_{name}": Mean() for phase in ("train", "validation") for name in ("accuracy", "loss")}
        )
        self.nonfinite_loss: Tensor
        self.register_buffer("nonfinite_loss", torch.zeros((), dtype=torch.bool), persistent=False)
        self.train()  # Lightning takes the modes as they are

    def inputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What `forward` is given for a batch in training."""
        return batch.ids, batch.length

    def compute_features(self, batch: Batch, extent: Tensor) -> tuple[Tensor, Tensor]:
        """All that `encode_frozen` makes of a batch, (B, T, C), and how many rows (B,) of it count, where of each
        message `extent` (B,) tokens do."""
        x = self.encode_frozen(*self.inputs(batch), extent)
        return x, extent.clamp(max=x.shape[1])

    def cached_features(self, batch: Batch) -> Tensor | None:
        """What `decode_trainable` takes of a batch, from its features: what `compute_features` gave."""
        return batch.features

    def forward(self, ids: Tensor, length: Tensor, features: Tensor | None = None) -> Tensor:
        """Logits of ids (B, T), or of what `encode_frozen` has made of them."""
        return self.decode_trainable(self.encode_frozen(ids, length) if features is None else features, length)

    def encode_frozen(self, ids: Tensor, length: Tensor, extent: Tensor | None = None) -> Tensor:
        """What lies below the first trained block: ids (B, T) -> (B, T, C), a constant unless that is block 0. Where no
        block is trained, (B, Q, C): only what the output layer reads. Given the extent (B,) of each message, tokens
        behind it are not computed, and those of messages that begin alike once."""
        shared = None if extent is None else SharedPrefixes.of(ids, extent, self.gpt.config.causal)
        with self.arithmetic():
            x = self.gpt.lower_blocks(ids, self.feature_boundary, shared)
            return self.read(x, self.feature_boundary, length) if self.is_linear_probe else x

    def arithmetic(self) -> AbstractContextManager[Any]:
        """That of the frozen blocks."""
        bf16 = self.frozen_precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16) if bf16 else nullcontext()

    def decode_trainable(self, x: Tensor, length: Tensor) -> Tensor:
        """Logits from what `encode_frozen` gives of messages of length (B,)."""
        return self.output(x if self.is_linear_probe else self.read(x, self.first_trainable, length))

    def output(self, hidden: Tensor) -> Tensor:
        """Logits from final hidden states (B, Q, C)."""
        raise NotImplementedError

    @property
    def reads_padding(self) -> bool:
        """Whether what is said of a text can depend on the padding behind it."""
        return True

    @property
    def vocabulary(self) -> Tensor:
        """The output layer of the language model, (V, C)."""
        return self.gpt.token_embedding.weight

    def pooling_index(self, length: Tensor, width: int) -> Tensor | None:
        """Which of `width` tokens the output layer reads, (B, Q); None where `pool` makes one of all of them."""
        return None

    def pool(self, hidden: Tensor, length: Tensor) -> Tensor:
        """One hidden state of all those (B, T, C) of texts of length (B,): (B, 1, C), by default their mean."""
        return hidden.mean(1, keepdim=True)

    def read(self, x: Tensor, k: int, length: Tensor) -> Tensor:
        """Blocks k.. and the final norm, at the places that are read: (B, T, C) -> (B, Q, C)."""
        index = self.pooling_index(length, x.shape[1])
        if index is None:
            return self.pool(self.gpt.upper_blocks(x, k), length)
        if any("lora_" in name for name in self.trained):  # upper_blocks_at multiplies with the bare weights of a layer
            return self.gpt.upper_blocks(x, k).gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
        return self.gpt.upper_blocks_at(x, k, index)

    @property
    def feature_boundary(self) -> int:
        """The first block that is computed only where it is read, or trained."""
        return max(0, self.first_trainable - 1) if self.is_linear_probe else self.first_trainable

    @property
    def is_linear_probe(self) -> bool:
        """Whether nothing of the GPT is trained."""
        return self.first_trainable == self.gpt.config.n_layer

    @property
    def feature_key(self) -> str:
        """What `encode_frozen` keeps of the hidden states; empty for all of them."""
        return ""

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        known = self.features.get(batch.part)
        return batch._replace(features=known.of(batch)) if known else batch

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss of a batch, and whether each message (B,) would be answered rightly."""
        raise NotImplementedError

    def targets(self, label: Tensor) -> Tensor:
        """How many targets the loss of a batch with these labels is the mean of: its weight in the loss of an epoch,
        which so depends on no batch size."""
        raise NotImplementedError

    def cross_entropy(self, logits: Tensor, targets: Tensor, batch: Batch, ignored: int) -> Tensor:
        """Mean over the targets of a batch; of a rank's share, its part of the mean over the whole batch."""
        if batch.whole is None:
            return F.cross_entropy(logits, targets, ignore_index=ignored)
        summed = F.cross_entropy(logits, targets, ignore_index=ignored, reduction="sum")
        return summed * (batch.counted != 0) / self.targets(batch.whole)

    def train(self, mode: bool = True) -> Self:
        """Training mode, but for what lies below the first trained block: a frozen prefix has no dropout either."""
        super().train(mode)
        if self.first_trainable > 0:
            self.gpt.eval()
            self.gpt.blocks[self.first_trainable :].train(mode)
        return self

    def on_train_batch_start(self, batch: Batch, batch_index: int) -> None:  # dropout, which survives a resume
        if self.gpt.config.dropout:
            torch.manual_seed(
                self.seed + 1_000_003 * self.current_epoch + batch_index + ranks.SEEDS_APART * ranks.rank()
            )

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        loss = self._shared_step(batch, "train")
        if self.trainer.is_last_batch:
            self._log_means("train")
        self.nonfinite_loss |= ~loss.detach().isfinite()  # looked at where a sync costs nothing: see _stop_if_nonfinite
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and self.trainer.global_step % every == 0:
            self._stop_if_nonfinite()
        return loss * ranks.world() if batch.whole is not None else loss  # DDP takes the mean of the ranks' gradients

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        self.nonfinite_loss |= ~self._shared_step(batch, "validation").isfinite()

    def _shared_step(self, batch: Batch, phase: str) -> Tensor:
        loss, right = self.loss(batch)
        right, own = right[: batch.counted], self.targets(batch.label[: batch.counted])
        self._mean(phase, "accuracy").update(right.sum(), len(right))
        whole = own if batch.whole is None else self.targets(batch.whole)
        self._mean(phase, "loss").update(loss.detach().float() * whole, own)
        return loss

    def _mean(self, phase: str, name: str) -> Mean:
        mean = self.means[f"{phase}_{name}"]
        assert isinstance(mean, Mean)
        return mean

    def _log_means(self, phase: str) -> None:
        for name in ("accuracy", "loss"):
            self.log(f"{phase}/{name}", self._mean(phase, name), on_step=False, on_epoch=True, prog_bar=True)

    def on_validation_epoch_end(self) -> None:
        self._log_means("validation")
        self._stop_if_nonfinite()  # before a checkpoint of this epoch is written

    def _stop_if_nonfinite(self) -> None:
        if ranks.total(self.nonfinite_loss.float()):
            raise InputError(
                f"the loss became infinite or NaN in epoch {self.current_epoch + 1}: training stopped, the checkpoints "
                "of the epochs before are kept; lower optimizer.lr or set trainer.gradient_clip_val=1"
            )

    def configure_optimizers(self) -> Any:
        trained = [p for p in self.parameters() if p.requires_grad]
        return configure(trained, self.optimizer, self.scheduler, self._progress)

    def _progress(self) -> float:
        return self.trainer.global_step / max(1, self.trainer.estimated_stepping_batches)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        if self.trainer.precision == "16-mixed":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            clip(self, gradient_clip_val, gradient_clip_algorithm)

    @classmethod
    def load_from_checkpoint(cls, *args: Any, **kwargs: Any) -> Self:
        """Not had: a checkpoint holds what was trained alone. Raises InputError that says what has the rest."""
        raise InputError(
            "a checkpoint holds the trained parameters alone, and the run folder what is around them: call "
            "src.config.build.restore(Path('runs/<id>'))"
        )

    @property
    def classes_by_question(self) -> dict[str, list[int]]:
        """The class numbers of each question of a mixture; empty for a single dataset."""
        return {question.name: question.classes for question in self.questions if question.name}

    def question(self, name: str | None = None) -> int:
        """The place of a question by its name, which may be left out where there is one. Raises InputError."""
        names = [question.name for question in self.questions]
        if name is None and len(names) == 1:
            return 0
        if name is None or name not in names:
            several = f"Give task=<one of {', '.join(names)}>" if any(names) else "The run has one: leave task= out"
            raise InputError(f"which question should be asked? {several}")
        return names.index(name)

    @cached_property
    def frozen_sha256(self) -> str:
        """Of the parameters that do not move, to the last bit."""
        whole = hashlib.sha256()
        for name, parameter in self.named_parameters():
            if name not in self.trained:
                whole.update(name.encode())
                whole.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return whole.hexdigest()

    def _norms_of_frozen(self) -> Tensor:
        """Of each parameter that does not move: another GPT has others, while random weights of one seed keep theirs on
        whatever processor."""
        frozen = [p for name, p in self.named_parameters() if name not in self.trained]
        rows = [torch.linalg.vector_norm(p.detach(), dim=-1) for p in frozen]  # of few numbers each: exact enough
        norms = [torch.linalg.vector_norm(row, dtype=torch.float64).item() for row in rows]
        return torch.tensor(norms, dtype=torch.float64)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: state[name] for name in sorted(self.trained)}
        checkpoint["frozen_norms"] = self.frozen_norms

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = self.state_dict()
        check_tensors(checkpoint["state_dict"], {name: state[name] for name in self.trained})
        norms = checkpoint.get("frozen_norms", torch.empty(0))
        if norms.shape != self.frozen_norms.shape or not torch.allclose(norms, self.frozen_norms, rtol=1e-5):
            raise InputError(
                "the GPT is another one than that which the run was trained on, and a checkpoint holds only what was "
                "trained: put the weights back to which gpt.weights points"
            )
