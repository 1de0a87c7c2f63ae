"""What the frozen blocks make of each message, computed once: ids -> FineTuner.encode_frozen -> rows for every epoch.

Blocks below the first trained one are a constant function of the ids while training, so that this is exact. What
messages of a batch begin with alike is computed once for all of them. Rows are kept in memory, or on disk
(feature_store.py) for every later run that needs the same; a disk that cannot be read or written costs time alone.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from src import ranks
from src.data.batching import Batch, Messages, packed_batches
from src.finetune.cost import Flops
from src.finetune.feature_store import VERSION, AddRows, DamagedError, Features, FeatureStore, Rows
from src.finetune.frozen_identity import frozen_sha256

if TYPE_CHECKING:
    from src.finetune.base import FineTuner

KINDS = ("disk", "memory", "off")


@dataclass
class FeatureCache:
    """Where features are kept: kind disk, memory or off, and bytes at most. `prepare` fills the rest:

    seconds   what it took
    reused    the parts that were read back from disk, in each stage of training
    flops     of the frozen blocks, once a message of each part and stage, also where they were read back
    left, room    bytes that features may still take: of memory, and of a GPU's
    """

    kind: str
    store: FeatureStore
    max_bytes: float
    seconds: float = 0.0
    reused: list[str] = field(default_factory=list)
    flops: dict[str, int] = field(default_factory=dict)
    warned: set[str] = field(default_factory=set)
    writable: bool = True
    left: float = 0.0
    room: float = 0.0

    def prepare(self, tuner: "FineTuner", parts: Mapping[str, Messages], trainer: L.Trainer) -> None:
        """Give each stage of `tuner` the features of every part, where its frozen blocks are a constant function of a
        message: before training, what later stages train lies there as it does until they begin."""
        started = perf_counter()
        self.left, self.room = self.max_bytes, free_bytes(tuner, trainer.strategy.root_device)
        for stage in tuner.stages:
            tuner.begin(stage)
            if self.kind != "off" and stage.first_trainable > 0:
                self._prepare_stage(tuner, parts, trainer)
        if any(stage.features for stage in tuner.stages):
            self.seconds = perf_counter() - started

    def _prepare_stage(self, tuner: "FineTuner", parts: Mapping[str, Messages], trainer: L.Trainer) -> None:
        frozen = FrozenBlocks(tuner)
        for part, messages in parts.items():
            if messages.padding == "batch" and (tuner.is_linear_probe or not tuner.gpt.config.causal):
                return  # what becomes of a message, or where it is read, depends on those beside it
            if (size := _bytes_of(tuner, messages)) > self.left:
                self._warn(
                    f"the features of {part} take {size / 1e9:.1f} GB, more than cache.max_gb leaves: frozen blocks "
                    "are computed in every epoch"
                )
                continue
            self.left -= size
            found = self._features(frozen, part, messages, trainer)
            if found.bytes <= self.room:
                self.room -= found.bytes
                found = found.to(trainer.strategy.root_device)
            tuner.features[part] = found

    def _features(self, frozen: "FrozenBlocks", part: str, messages: Messages, trainer: L.Trainer) -> Features:
        whole, frozen.ragged = messages, messages.padding in ("free", "none")
        if messages.padding == "batch":  # under a causal mask a row as wide as the longest holds all narrower ones
            whole = Messages(messages.ids, messages.labels, max(map(len, messages.ids)), part=part)
        batches = [whole[rows] for rows in packed_batches(whole, frozen.tuner.answer_rows)]
        key = ranks.gathered(key_of(frozen, batches, trainer))[0]  # of all, if devices differ
        if found := self._cached_features(key):
            self.reused.append(part)
        else:
            found = self._computed_features(frozen, batches, trainer, key, {"flops": frozen.operations(whole)})
        rows, facts = found
        self.flops[part] = self.flops.get(part, 0) + facts["flops"]
        return Features(rows, sliced=messages.padding == "batch")

    def _cached_features(self, key: str) -> tuple[Rows, dict[str, Any]] | None:
        """What is on disk, if every rank can read it."""
        found = self._read(key) if self.kind == "disk" else None
        return found if all(ranks.gathered(found is not None)) else None

    def _read(self, key: str) -> tuple[Rows, dict[str, Any]] | None:
        try:
            return self.store.open(key)
        except DamagedError as error:
            self._warn(f"the cached features {error}: they are computed anew")
        except OSError as error:
            self._warn(
                f"the feature cache {self.store.folder} cannot be read ({error.strerror or error}): features are "
                "computed anew and kept in memory, for this run alone"
            )
            self.writable = False  # what is there is another's: it is left alone
        return None

    def _computed_features(
        self, frozen: "FrozenBlocks", batches: list[Batch], trainer: L.Trainer, key: str, facts: dict[str, Any]
    ) -> tuple[Rows, dict[str, Any]]:
        """Each rank's share is written for all to read; where that cannot be, each makes all of them for itself."""
        if self.kind == "disk" and all(ranks.gathered(self.writable)):
            own, begun = ranks.share(batches) or batches[:1], False

            def fill(add: AddRows) -> None:
                nonlocal begun
                begun = True
                if not all(ranks.gathered(True)):
                    raise OSError("another process of this run is refused")
                frozen.compute_features(trainer, own, add)

            try:
                self.store.write(key, facts, fill, ranks.rank(), ranks.world())
            except OSError as error:
                self._warn(
                    f"the feature cache {self.store.folder} cannot be written ({error.strerror or error}): features "
                    "are kept in memory, for this run alone; make room, or set cache.folder"
                )
                self.writable = False
                if not begun:
                    ranks.gathered(False)
            if all(ranks.gathered(self.writable)) and (found := self._cached_features(key)):
                return found
        rows: Rows = {}
        frozen.compute_features(trainer, batches, lambda numbers, made: rows.update(zip(numbers, made, strict=True)))
        return rows, facts

    def _warn(self, sentence: str) -> None:
        """Say it once."""
        if sentence not in self.warned:
            print(sentence, flush=True)
        self.warned.add(sentence)

    def facts(self) -> dict[str, Any]:
        """What a result says of it."""
        return {
            "features_seconds": self.seconds,
            "features_reused": self.reused,
            "features_flops": sum(self.flops.values()),
        }


class FrozenBlocks(L.LightningModule):
    """What a FineTuner has below the first trained block of its stage. ragged: padding does not count."""

    def __init__(self, tuner: "FineTuner") -> None:
        super().__init__()
        self.tuner, self.ragged = tuner, False
        self.sha256 = frozen_sha256(tuner, tuner.stage.trained)
        self.count = Flops(self)
        self.add: AddRows

    def forward(self, ids: Tensor, length: Tensor) -> Tensor:
        return self.tuner.encode_frozen(ids, length)

    def operations(self, messages: Messages) -> int:
        """Those of every message, as if none began alike and all answers followed each other behind a prompt."""
        widths = Counter(self.tuner.answer_rows + (messages.width or len(ids)) for ids in messages.ids)
        return sum(
            self.count.of(torch.empty(n, T, dtype=torch.long), torch.ones(1, dtype=torch.long))
            for T, n in widths.items()
        )

    def compute_features(self, trainer: L.Trainer, batches: list[Batch], add: AddRows) -> None:
        """Hand the numbers and rows of each batch to `add`."""
        self.add = add
        loader: Any = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
        trainer.predict(self, loader, return_predictions=False)

    def predict_step(self, batch: Batch, batch_index: int) -> list[int]:
        extent = batch.length if self.ragged else torch.full_like(batch.length, batch.ids.shape[1])
        x, extent = self.tuner.compute_features(batch, extent)
        numbers: list[int] = batch.row.tolist()
        self.add(numbers, [row[:n].cpu().clone() for row, n in zip(x, extent.tolist(), strict=True)])
        return numbers  # Lightning warns of nothing


def free_bytes(tuner: "FineTuner", device: torch.device) -> float:
    """How much of a GPU's memory features may take: half of what training leaves; none of a CPU's, where they are."""
    if device.type != "cuda":
        return 0.0
    size = {True: 0, False: 0}
    for parameter in tuner.parameters():
        size[parameter.requires_grad] += parameter.numel() * parameter.element_size()
    on_device = next(tuner.parameters()).device.type == "cuda"
    needed = size[False] + 4 * size[True]  # with each trained one its gradient and AdamW's two moments
    return (torch.cuda.mem_get_info(device)[0] - needed + on_device * sum(size.values())) / 2


def key_of(frozen: FrozenBlocks, batches: Sequence[Batch], trainer: L.Trainer) -> str:
    """A hash of all that features depend on: weights, messages, arithmetic, and the version of what is made of them."""
    tuner, device = frozen.tuner, trainer.strategy.root_device  # the model comes there later
    facts = {
        "version": VERSION,
        "weights": frozen.sha256,
        "k": tuner.first_trainable,
        "n_head": tuner.gpt.config.n_head,
        "causal": tuner.gpt.config.causal,
        "reads": tuner.feature_key,
        "ragged": frozen.ragged,
        "precision": [str(trainer.precision), tuner.frozen_precision],
        "matmul": torch.get_float32_matmul_precision(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "torch": torch.__version__,
    }
    whole = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for batch in batches:
        for tensor in (*tuner.inputs(batch), batch.row):
            whole.update(f"{tuple(tensor.shape)}".encode())
            whole.update(tensor.contiguous().numpy().data)
    return whole.hexdigest()


def _bytes_of(tuner: "FineTuner", messages: Messages) -> int:
    """How much memory features take at most."""
    wide = messages.width or (max(map(len, messages.ids)) if messages.padding == "batch" else None)
    rows = sum(1 if tuner.is_linear_probe else wide or len(ids) for ids in messages.ids)
    rows += tuner.answer_rows * len(messages)
    return rows * tuner.gpt.config.n_embd * 4
