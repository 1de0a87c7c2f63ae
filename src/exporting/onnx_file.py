"""A finished run -> an ONNX graph: input_ids, attention_mask (B, T) -> logits, of any batch and length.

    classify   logits (B, K) of the classes
    instruct   logits (B, T, V) of the next tokens
Held to the run's own probabilities with onnxruntime before it is kept.
"""

import logging
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.data.batching import Batch
from src.data.tokenizer import END_OF_TEXT, encode
from src.errors import InputError
from src.exporting.finished_run import FinishedRun
from src.finetune.instruction import InstructionTuner

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4  # of a probability
PROBES = ["Claim your prize now", "a", "See you at lunch, " * 400, "Text with <|endoftext|> in it"]


def check() -> None:
    """Raises InputError where a package is missing."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise InputError(f"onnx=true needs {missing[0]}: pip install -e '.[onnx]'")


class Seen:
    """Attention of every token to all that are no padding."""

    def __init__(self, real: Tensor) -> None:
        self.mask = real.bool()[:, None, None, :]  # (B, 1, 1, T)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, self.mask)


class Graph(nn.Module):
    """What is exported: the run's GPT and output layer, with its padding and pooling, in plain operations."""

    def __init__(self, run: FinishedRun) -> None:
        super().__init__()
        self.gpt, self.head, self.writes = run.model.gpt, run.model.head, run.writes
        self.reads_padding, self.width = run.reads_padding, run.data["width"] if run.reads_padding else None
        self.pooling = "" if run.writes else run.pooling

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        length, real = attention_mask.sum(1), attention_mask  # (B,), (B, T)
        ids = torch.where(real == 1, input_ids, END_OF_TEXT)
        if self.width is not None:
            ids = F.pad(ids, (0, self.width - ids.shape[1]), value=END_OF_TEXT)
        if self.reads_padding:
            real = torch.ones_like(ids)
        x = self.gpt.lower_blocks(ids, 0)
        for block in self.gpt.blocks:
            x = block(x) if self.gpt.config.causal else block(x, Seen(real))
        hidden = self.gpt.final_norm(x)  # (B, T, C)
        if self.writes:
            return self.gpt.logits(hidden) if self.head is None else self.head(hidden)
        assert self.head is not None
        return self.head(self._pooled(hidden, real, length))

    def _pooled(self, hidden: Tensor, real: Tensor, length: Tensor) -> Tensor:
        if self.pooling == "mean":
            return (hidden * real[..., None]).sum(1) / real.sum(1, keepdim=True)
        if self.pooling == "first":
            return hidden[:, 0]
        place = torch.full_like(length, hidden.shape[1]) if self.pooling == "last" else length
        return hidden.gather(1, (place - 1)[:, None, None].expand(-1, 1, hidden.shape[2]))[:, 0]


def write(run: FinishedRun, path: Path) -> None:
    """Export and check. Raises InputError if onnxruntime's probabilities are not the run's."""
    path.parent.mkdir()
    longest = run.data["width"] if run.reads_padding and run.data["width"] else run.model.gpt.config.context_length
    example = torch.full((2, min(3, longest)), END_OF_TEXT - 1)
    shape = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("length", min=1, max=longest)}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # torchvision is not installed, four times
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what torch deprecates within itself
        torch.onnx.export(
            Graph(run).eval(),
            (example, torch.ones_like(example)),
            path,
            dynamo=True,
            verbose=False,
            input_names=["input_ids", "attention_mask"],
            output_names=["logits"],
            dynamic_shapes=(shape, shape),
        )
    check_probabilities(run, path)


@torch.inference_mode()
def check_probabilities(run: FinishedRun, path: Path) -> None:
    """Raises InputError if onnxruntime's probabilities of PROBES, alone and together, are not the run's."""
    from onnxruntime import InferenceSession

    session = InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (batch for texts in (PROBES[:1], PROBES) for batch in run.batches(encode(texts))):
        ours = run.model.predict_step(batch, 0)[1].softmax(-1)  # (B, K)
        scores = _answer_scores if isinstance(run.model, InstructionTuner) else _class_logits
        off = (scores(session, batch, run).softmax(-1) - ours).abs().max().item()
        if not off < TOLERANCE:
            raise InputError(f"onnx=true: onnxruntime's probabilities are off by {off:.2g}; nothing was written")


def _class_logits(session: Any, batch: Batch, run: FinishedRun) -> Tensor:
    """Logits (B, K) from the graph."""
    places = torch.arange(int(batch.length.max()))
    return _run(session, batch.ids[:, : len(places)], places < batch.length[:, None])


def _answer_scores(session: Any, batch: Batch, run: FinishedRun) -> Tensor:
    """Log-probability (B, K) of each answer to the first question, -inf for those to another."""
    scores = torch.full((len(batch.ids), len(run.data["labels"])), -torch.inf)
    for row, length in enumerate(batch.length.tolist()):
        for number, answer in zip(run.model.tasks[0].classes, run.model.tasks[0].answers, strict=True):
            ids = torch.cat([batch.ids[row, :length], torch.tensor(answer[:-1], dtype=torch.long)])[None]
            log_p = _run(session, ids, torch.ones_like(ids))[0, length - 1 :].log_softmax(-1)
            scores[row, number] = log_p.gather(1, torch.tensor(answer)[:, None]).sum()
    return scores


def _run(session: Any, ids: Tensor, real: Tensor) -> Tensor:
    """The graph's answer."""
    given = {"input_ids": ids.numpy(), "attention_mask": real.long().numpy()}
    return torch.from_numpy(session.run(None, given)[0])
