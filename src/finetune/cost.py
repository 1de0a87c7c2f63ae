"""What training costs: seconds, tokens, floating-point operations, memory.

Operations are counted, not estimated: torch's flop counter watches one forward and backward pass a batch shape on the
meta device, where frozen parameters get no gradient and so cost nothing. A multiply-add is two operations.
"""

import ctypes
import gc
import resource
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from src import ranks
from src.data.batching import Batch
from src.finetune.base import FineTuner

STATUS = Path("/proc/self/status")  # Linux
COUNTED = ("train_flops", "ordinary_flops", "every_position_flops", "train_tokens")


def count_flops(model: nn.Module, *inputs: Tensor) -> int:
    """Operations of `model(*inputs)` and of its backward pass into what requires gradients, without running them."""
    meta = {
        name: torch.empty_like(p, device="meta").requires_grad_(p.requires_grad) for name, p in model.named_parameters()
    }
    meta |= {name: torch.empty_like(b, device="meta") for name, b in model.named_buffers()}
    counter = FlopCounterMode(display=False)
    with counter, torch.enable_grad():
        output = torch.func.functional_call(model, meta, tuple(x.to("meta") for x in inputs))
        if output.requires_grad:
            output.float().sum().backward()
    return counter.get_total_flops()


class Flops:
    """Operations of a model by the shape of its batches, of which only three are counted: everything that a GPT
    multiplies is linear in B and at most quadratic in T."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.points: dict[int, int] = {}

    def of(self, ids: Tensor, length: Tensor, features: Tensor | None = None) -> int:
        """Of `model(ids, length, features)`, ids (B, T); features have T rows too, or always as many."""
        B, T = ids.shape
        for n in (2, 3, 4):
            if n not in self.points:
                wide = [torch.empty(1, n, dtype=ids.dtype, device="meta"), torch.ones_like(length[:1])]
                if features is not None:
                    rows = n if features.shape[1] == T else features.shape[1]
                    wide.append(torch.empty(1, rows, features.shape[2], dtype=features.dtype, device="meta"))
                self.points[n] = count_flops(self.model, *wide)
        a, b, c = self.points[2], self.points[3], self.points[4]
        s = T - 2  # Newton's interpolation, in whole numbers
        return B * (a + s * (b - a) + s * (s - 1) * (c - 2 * b + a) // 2)


class OrdinaryTraining(nn.Module):
    """A FineTuner as it is trained without this project's shortcuts: nothing cached, every block at every token, and
    logits where an answer is read."""

    def __init__(self, tuner: FineTuner) -> None:
        super().__init__()
        self.tuner = tuner

    def forward(self, ids: Tensor, length: Tensor) -> Tensor:
        hidden = self.tuner.gpt(ids)  # (B, T, C)
        index = self.tuner.pooling_index(length, ids.shape[1])
        if index is None:
            return self.tuner.output(self.tuner.pool(hidden, length))
        return self.tuner.output(hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[-1])))


class OutputLayer(nn.Module):
    """The output layer of a FineTuner alone."""

    def __init__(self, tuner: FineTuner) -> None:
        super().__init__()
        self.tuner = tuner

    def forward(self, hidden: Tensor) -> Tensor:
        return self.tuner.output(hidden)


class OrdinaryFlops:
    """Operations of `OrdinaryTraining`, and of the same with logits at every position, as most code for language models
    makes them."""

    def __init__(self, tuner: FineTuner) -> None:
        self.tuner, self.blocks = tuner, Flops(OrdinaryTraining(tuner))
        below = any(parameter.requires_grad for parameter in tuner.gpt.parameters())
        hidden = torch.empty(1, 1, tuner.gpt.config.n_embd, device="meta", requires_grad=below)
        self.position = count_flops(OutputLayer(tuner), hidden)

    def of(self, ids: Tensor, length: Tensor) -> tuple[int, int]:
        """Of ids (B, T)."""
        operations, (B, T) = self.blocks.of(ids, length), ids.shape
        index = self.tuner.pooling_index(length, T)
        return operations, operations + B * (T - (1 if index is None else index.shape[1])) * self.position


class Cost(L.Callback):
    """Adds up the cost of training; kept in checkpoints, so that a resumed run goes on counting.

    began: when the command was given, by perf_counter
    """

    def __init__(self, began: float = 0.0) -> None:
        self.train_seconds = self.validation_seconds = 0.0
        self.spent = dict.fromkeys(COUNTED, 0)
        self._own = dict.fromkeys(COUNTED, 0)  # of this rank's share of the epoch
        self._flops: dict[int, tuple[Flops, OrdinaryFlops]] = {}  # of each stage
        self._since = 0.0
        self.began = self.ready = self.first_step = self.fitted = began

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._since = perf_counter()

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Batch, batch_index: int
    ) -> None:
        assert isinstance(module, FineTuner)
        ids, length = module.inputs(batch)
        if module.stage.first_epoch not in self._flops:
            self._flops[module.stage.first_epoch] = Flops(module), OrdinaryFlops(module)
        own, ordinary = self._flops[module.stage.first_epoch]
        # made for the first batch alone, from which all others are counted
        operations = own.of(ids, length, None if own.points else module.cached_features(batch))
        if batch.counted != 0:
            counts = operations, *ordinary.of(ids, length), ids.numel()
            self._own = {name: self._own[name] + n for name, n in zip(COUNTED, counts, strict=True)}

    def on_fit_start(self, *_: Any) -> None:
        self.ready = perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        if self.first_step == self.began:
            self.first_step = perf_counter()

    def on_fit_end(self, *_: Any) -> None:
        self.fitted = perf_counter()

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.train_seconds += self._lap(module)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.validation_seconds += self._lap(module)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.train_seconds += self._lap(module)
        of_ranks = ranks.gathered(self._own)
        self.spent = {name: self.spent[name] + sum(own[name] for own in of_ranks) for name in COUNTED}
        self._own = dict.fromkeys(COUNTED, 0)

    def _lap(self, module: L.LightningModule) -> float:
        if module.device.type == "cuda":
            torch.cuda.synchronize(module.device)
        now = perf_counter()
        seconds, self._since = now - self._since, now
        return seconds

    def summary(self, device: torch.device, features_seconds: float = 0.0, frozen_flops: int = 0) -> dict[str, Any]:
        """Operations and tokens (with padding) of training, of all ranks: those of this code, of ordinary training, and
        of that with logits at every position; peak memory, that of the rank which used
        most; and seconds: from the command to the training without what features took, to the end of the first step,
        of training without validation, of evaluation.

        device: of the training. frozen_flops: operations of the frozen blocks where they were not made in every step.
        """
        return {
            "setup_seconds": self.ready - self.began - features_seconds,
            "first_step_seconds": self.first_step - self.began,
            "evaluate_seconds": self.validation_seconds + perf_counter() - self.fitted,
            "train_seconds": self.train_seconds,
            **self.spent,
            "train_flops": self.spent["train_flops"] + frozen_flops,
            "peak_memory_bytes": max(ranks.gathered(peak_memory_bytes(device))),
        }

    def state_dict(self) -> dict[str, Any]:
        names = ("train_seconds", "validation_seconds", "spent")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory used since `forget_peak_memory`: allocated on a GPU, resident in this process for a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if STATUS.is_file():
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes, since the process began


def forget_peak_memory() -> None:
    """Begin anew, for a process that runs several trainings; where the system cannot, the peak of all of them stays."""
    if gc.get_freeze_count():
        gc.collect()
    else:
        gc.freeze()  # before the first of them there are imports alone, among which a search takes half a second
    with suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)  # give the system what is free now
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    if STATUS.is_file():
        with suppress(PermissionError):
            STATUS.with_name("clear_refs").write_text("5")  # see proc(5)
