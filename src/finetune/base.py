"""What both ways of fine-tuning share: what is trained, by which optimizer, and what a checkpoint holds."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from src.data.batching import Batch
from src.data.prompts import Prompt, Question, Task
from src.errors import InputError
from src.finetune import freezing as strategies
from src.finetune.checkpointing import check_tensors
from src.finetune.class_weights import ClassWeights, check_class_weights, class_weight
from src.finetune.feature_store import Features
from src.finetune.freezing import Decay, Epochs, Stage
from src.finetune.frozen_identity import check_frozen_norms, frozen_norms
from src.finetune.optim import OptimizerFactory, SchedulerFactory, adamw, warmup_schedule
from src.finetune.training_steps import TrainingSteps
from src.gpt.lora import LoRA, inject
from src.gpt.model import GPT
from src.gpt.shared_prefixes import SharedPrefixes

FrozenPrecision = Literal["run", "bf16"]


class FineTuner(TrainingSteps):
    """A GPT and, where there is one, a head. A way of fine-tuning adds `pooling_index`, `output` and `loss`.

    questions         what is asked of the texts: their classes, and for a task that prompts the instruction and answers
    trainable         what is unfrozen (see freezing.py); the rest does not move by a bit
    lora              the rank and scaling of the adapters, for trainable="lora"
    optimizer, scheduler    factories (see optim.py)
    frozen_precision  of the blocks below the first trained one: run (that of the Trainer) or bf16
    class_weights     of a message's loss by its class: none, balanced, which `weigh` counts, or a number for each
    head_epochs, gradual_unfreezing    the stages of training (see freezing.py)
    layer_decay       the learning rate of a block is that of the block above times this, of the last block that of the
                      head and the final norm: discriminative rates (Howard and Ruder 2018), as in ELECTRA
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
        class_weights: ClassWeights = "none",
        head_epochs: Epochs = 0,
        gradual_unfreezing: Epochs = 0,
        layer_decay: Decay = 1.0,
    ) -> None:
        super().__init__(optimizer, scheduler)
        self.frozen_precision, self.class_weights, self.layer_decay = frozen_precision, class_weights, layer_decay
        check_class_weights(class_weights, questions)
        self.answer_rows = 0  # rows of a message that `compute_features` has besides its own
        self.gpt, self.head, self.questions = gpt, head, list(questions)
        self.tasks = list[Task]()  # the questions as tokens, of a way that prompts
        self.prompts = [Prompt() for _ in self.questions]  # around the texts of each
        self.strict_loading = False  # a checkpoint holds the trained parameters alone, which on_load_checkpoint checks
        if trainable == "lora":
            inject(self, lora or LoRA())
        names, n_layer = [name for name, _ in self.named_parameters()], gpt.config.n_layer
        self.trained = strategies.trainable_names(names, trainable, n_layer)  # sooner or later
        strategies.check_stages(trainable, self.trained, n_layer, head_epochs, gradual_unfreezing, layer_decay)
        self.stages = strategies.stages(self.trained, n_layer, head_epochs, gradual_unfreezing)
        self.begin(self.stages[-1])
        self.frozen_norms = frozen_norms(self, self.trained)  # now: a Trainer may round the weights to its precision

    def begin(self, stage: Stage) -> None:
        """Train what a stage does, in its modes: Lightning takes them as they are."""
        self.stage = stage
        strategies.freeze_all_but(self, stage.trained)
        self.train()

    def on_train_epoch_start(self) -> None:
        self.begin(max((s for s in self.stages if s.first_epoch <= self.current_epoch), key=lambda s: s.first_epoch))

    def on_fit_end(self) -> None:
        self.begin(self.stages[-1])

    @property
    def first_trainable(self) -> int:
        """The first block that is trained in this stage."""
        return self.stage.first_trainable

    @property
    def features(self) -> dict[str, Features]:
        """Part -> what the blocks below it have made of its messages."""
        return self.stage.features

    def optimizer_parameters(self) -> list[Any]:
        """All that is ever trained: what has no gradient yet is left alone by an optimizer, its decay and its moments.
        With layer_decay, in groups of one depth."""
        trained = [(name, p) for name, p in self.named_parameters() if name in self.trained]
        if self.layer_decay == 1:
            return [p for _, p in trained]
        groups = dict[int, list[nn.Parameter]]()
        for name, parameter in trained:
            groups.setdefault(strategies.depth(name, self.gpt.config.n_layer), []).append(parameter)
        return [{"params": groups[depth], "lr_ratio": self.layer_decay**depth} for depth in sorted(groups)]

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

    def weigh(self, labels: Sequence[int]) -> None:
        """Give classes their weights in the loss, from the labels of the training messages."""
        self.class_weight = class_weight(self.class_weights, labels, len(self.questions[0].labels))

    def train(self, mode: bool = True) -> Self:
        """Training mode, but for what lies below the first trained block: a frozen prefix has no dropout either."""
        super().train(mode)
        if self.first_trainable > 0:
            self.gpt.eval()
            self.gpt.blocks[self.first_trainable :].train(mode)
        return self

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

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: state[name] for name in sorted(self.trained)}
        checkpoint["frozen_norms"] = self.frozen_norms

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = self.state_dict()
        check_tensors(checkpoint["state_dict"], {name: state[name] for name in self.trained})
        check_frozen_norms(checkpoint.get("frozen_norms", torch.empty(0)), self.frozen_norms)
