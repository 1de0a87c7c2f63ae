"""Held-out text -> the loss of a language model on it, by source and domain."""

import torch
from torch import Tensor

from src import ranks
from src.errors import InputError
from src.evaluation.metrics import perplexity
from src.gpt.model import GPT
from src.pretraining.losses import mean_loss
from src.pretraining.token_stream import Packed, in_order

Losses = dict[str, tuple[float, int]]  # source -> mean loss in nats a token, and tokens


def validation_batches(held_out: Packed, window: int, batch_size: int, n: int) -> list[Tensor]:
    """`n` whole batches (B, T+1) from all over the held-out text. Raises InputError where it has none."""
    whole = [batch for batch in in_order(held_out.ids, window, batch_size) if len(batch) == batch_size]
    if not whole:
        raise InputError(
            f"corpus.validation_path has {len(held_out.ids)} tokens, a batch needs {batch_size * window + 1}: "
            "give more held-out text or lower batch_size"
        )
    return whole[:: max(1, len(whole) // n)][:n]


def losses_by_source(gpt: GPT, held_out: Packed, window: int, batch_size: int, bf16: bool) -> Losses:
    """The loss of every token of the held-out text, by the exact softmax; a lone token has none before it."""
    gpt.eval()
    with (
        torch.autocast(gpt.token_embedding.weight.device.type, torch.bfloat16, enabled=bf16),
        torch.compiler.set_stance("eager_on_recompile"),  # a source's last, shorter batches are not worth it
    ):
        return {
            name: mean_loss(gpt, ranks.share(in_order(held_out.ids[start:end], window, batch_size)))
            for name, (start, end) in held_out.sources.items()
            if end - start > 1
        }


def by_source(losses: Losses) -> dict[str, dict[str, float]]:
    """Loss, perplexity and tokens of each source, of each domain (reviews/ of reviews/films), and of all tokens."""
    groups = {name: [name] for name in losses}
    for name in losses:
        if "/" in name:
            groups.setdefault(name.partition("/")[0] + "/", []).append(name)
    groups["all"] = list(losses)
    found = {}
    for group, names in groups.items():
        tokens = sum(losses[name][1] for name in names)
        loss = sum(losses[name][0] * losses[name][1] for name in names) / tokens
        found[group] = {"loss": loss, "perplexity": perplexity(loss), "tokens": tokens}
    return found
