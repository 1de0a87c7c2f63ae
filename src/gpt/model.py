"""GPT-2 from scratch: token ids in, hidden states or next-token logits out.

    ids (B, T) -> lower_blocks(ids, k): embeddings and blocks 0..k-1
               -> upper_blocks(x, k):  blocks k..n-1 and the final norm -> (B, T, C) -> logits (B, T, V)

The architecture is Radford et al. 2019, "Language Models are Unsupervised Multitask Learners": pre-norm blocks,
learned positions, tanh-approximated GELU, biases everywhere, output layer tied to the token embedding. The split at
any block k is this project's: what lies below the first trained block is a constant function of the ids.

Letters: B batch, T tokens, C channels, H heads, V vocabulary.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.errors import InputError
from src.gpt.shared_prefixes import Context, SharedPrefixes

MOST_PARAMETERS = 10**11  # building more layers would take until memory or patience ends


@dataclass(frozen=True)
class GPTConfig:
    """Architecture of a GPT; the defaults are GPT-2 small. Raises InputError if the sizes do not fit together."""

    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    context_length: int = 1024
    vocab_size: int = 50257
    dropout: float = 0.0
    causal: bool = True

    def __post_init__(self) -> None:
        if self.n_layer < 0 or min(self.n_head, self.n_embd, self.context_length, self.vocab_size) < 1:
            raise InputError(f"a GPT needs positive sizes, got {self}")
        if self.n_embd % self.n_head:
            raise InputError(f"gpt.n_embd={self.n_embd} must be a multiple of gpt.n_head={self.n_head}")
        if not 0.0 <= self.dropout < 1.0:
            raise InputError(f"gpt.dropout={self.dropout} must lie in [0, 1)")
        if self.parameters > MOST_PARAMETERS:
            sizes = ", ".join(
                f"gpt.{key}={getattr(self, key)}" for key in ("n_layer", "n_embd", "vocab_size", "context_length")
            )
            raise InputError(f"{sizes} make more than {MOST_PARAMETERS:.0e} parameters: give smaller ones")

    @property
    def parameters(self) -> int:
        """The number of weights in matrices and embeddings."""
        return 12 * self.n_layer * self.n_embd**2 + (self.context_length + self.vocab_size) * self.n_embd


class Attention(nn.Module):
    """Multi-head self-attention, (B, T, C) -> (B, T, C)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head, self.causal, self.dropout = config.n_head, config.causal, config.dropout
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.out = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)  # 3 x (B, H, T, D)
        if context is not None:
            y = context.attend(q, k, v)
        else:
            dropout = self.dropout if self.training else 0.0
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=self.causal)  # (B, H, T, D)
        return F.dropout(self.out(y.transpose(1, 2).reshape(B, T, C)), self.dropout, self.training)

    def forward_at(self, x: Tensor, query_positions: Tensor) -> Tensor:
        """What `forward` gives at query_positions (B, Q): (B, T, C) -> (B, Q, C), without projecting keys or values.

        A score is q (W_k x) = (W_k^T q) x, and a head's weighted sum of values is W_v times that of the x: with few
        queries both are far cheaper than projecting all T tokens.
        """
        (B, T, C), Q, H = x.shape, query_positions.shape[1], self.n_head
        D = C // H
        w_q, w_k, w_v = self.qkv.weight.view(3, H, D, C)
        b_q, _, b_v = self.qkv.bias.view(3, H, 1, D)  # that of the keys adds the same to all scores of a query
        here = x.gather(1, query_positions[..., None].expand(B, Q, C))
        q = F.linear(here, w_q.reshape(C, C)).view(B, Q, H, D) + b_q.view(H, D)
        q = torch.einsum("bqhd,hdc->bhqc", q, w_k).reshape(B, H * Q, C)  # by one product a message, not one a head
        scores = (q @ x.transpose(1, 2)).view(B, H, Q, T).float() / math.sqrt(D)
        if self.causal:
            future = torch.arange(T, device=x.device) > query_positions[:, None, :, None]  # (B, 1, Q, T)
            scores = scores.masked_fill(future, float("-inf"))
        share = F.dropout(scores.softmax(-1).to(x.dtype), self.dropout, self.training)
        seen = (share.view(B, H * Q, T) @ x).view(B, H, Q, C)  # what each head sees of x
        y = torch.einsum("bhqc,hdc->bqhd", seen, w_v) + (b_v * share.sum(-1, keepdim=True)).transpose(1, 2)
        return F.dropout(self.out(y.reshape(B, Q, C)), self.dropout, self.training)


class MLP(nn.Module):
    """Two linear layers with a tanh-approximated GELU between them, (B, T, C) -> (B, T, C)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.down = nn.Linear(4 * config.n_embd, config.n_embd)
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.down(F.gelu(self.up(x), approximate="tanh")), self.dropout, self.training)


class Block(nn.Module):
    """One pre-norm transformer block, (B, T, C) -> (B, T, C)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.n_embd)
        self.attention = Attention(config)
        self.norm2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        x = x + self.attention(self.norm1(x), context)
        return x + self.mlp(self.norm2(x))

    def forward_at(self, x: Tensor, query_positions: Tensor) -> Tensor:
        """What `forward` gives at query_positions (B, Q) alone: (B, T, C) -> (B, Q, C), in the weights' precision:
        autocast would convert all of them, in every step, for a few rows."""
        with torch.autocast("cuda" if x.is_cuda else "cpu", enabled=False):
            here = x.gather(1, query_positions[..., None].expand(-1, -1, x.shape[-1]))
            here = here + self.attention.forward_at(self.norm1(x), query_positions)
            return here + self.mlp(self.norm2(here))


class GPT(nn.Module):
    """GPT-2 without an output layer of its own: `logits` uses the token embedding, a task brings its own head.

    Weights start as GPT-2's did: normal with std 0.02, the projections into the residual stream scaled by
    1/sqrt(2 n_layer), biases zero. Given `seed`, they depend on nothing else. With blank=True this is left out: all of
    them are to be read from a file.
    """

    def __init__(self, config: GPTConfig, seed: int | None = None, blank: bool = False) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.position_embedding = nn.Embedding(config.context_length, config.n_embd)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.final_norm = nn.LayerNorm(config.n_embd)
        if not blank:
            self._initialise(torch.Generator().manual_seed(seed) if seed is not None else None)

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator | None) -> None:
        residual_std = 0.02 / math.sqrt(2 * max(1, self.config.n_layer))
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif "norm" not in name:
                into_residual = name.endswith(("attention.out.weight", "mlp.down.weight"))
                parameter.normal_(0.0, residual_std if into_residual else 0.02, generator=generator)

    def lower_blocks(self, ids: Tensor, k: int, shared: SharedPrefixes | None = None) -> Tensor:
        """Embeddings and blocks 0..k-1: (B, T) ids -> (B, T, C), without dropout what begins alike `shared`. Raises
        InputError beyond the context length."""
        T = ids.shape[1]
        if self.config.context_length < T:
            raise InputError(f"{T} tokens do not fit into a context of {self.config.context_length}")
        positions = torch.arange(T, device=ids.device)
        x = self.token_embedding(ids) + self.position_embedding(positions)  # (B, T, C)
        x = F.dropout(x, self.config.dropout, self.training)
        x = shared.gather(x) if shared else x
        for block in self.blocks[:k]:
            x = block(x, shared)
        return shared.scatter(x) if shared else x

    def upper_blocks(self, x: Tensor, k: int) -> Tensor:
        """Blocks k..n-1 and the final norm: (B, T, C) -> (B, T, C)."""
        for block in self.blocks[k:]:
            x = block(x)
        return self.final_norm(x)

    def upper_blocks_at(self, x: Tensor, k: int, query_positions: Tensor) -> Tensor:
        """What `upper_blocks` gives at query_positions (B, Q) alone, where alone the last block works: (B, Q, C)."""
        if k == len(self.blocks):
            return self.final_norm(x.gather(1, query_positions[..., None].expand(-1, -1, x.shape[-1])))
        for block in self.blocks[k:-1]:
            x = block(x)
        last = self.blocks[-1]
        assert isinstance(last, Block)
        return self.final_norm(last.forward_at(x, query_positions))

    def forward(self, ids: Tensor) -> Tensor:
        """Hidden states after the final norm: (B, T) ids -> (B, T, C)."""
        return self.upper_blocks(self.lower_blocks(ids, 0), 0)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits from hidden states: (..., C) -> (..., V), with the tied embedding."""
        return F.linear(hidden, self.token_embedding.weight)
