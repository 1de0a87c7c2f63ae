"""GPT-2's vocabulary -> tokenizer.json and tokenizer_config.json, as the library `tokenizers` reads them.

A classifier's prompt is a post-processor: the tokens before and after the text are added behind truncation, so that the
text alone is cut, as in training. "<|endoftext|>" within a text is text (split_special_tokens).
"""

import json
from pathlib import Path
from typing import Any

from src.data.prompts import Prompt
from src.data.tokenizer import END_OF_TEXT, vocabulary_file

SPECIAL = "<|endoftext|>"


def write(folder: Path, limit: int, prompt: Prompt) -> None:
    """Both files; a message is cut so that it has `limit` tokens, with those of the prompt."""
    encoder = json.loads(vocabulary_file("encoder.json").read_text(encoding="utf-8"))
    lines = vocabulary_file("vocab.bpe").read_text(encoding="utf-8").splitlines()
    _dump(folder / "tokenizer.json", definition(encoder, lines[1:], prompt))  # the first line is a version
    _dump(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": limit,
            "padding_side": "right",
            "truncation_side": "right",
            "split_special_tokens": True,
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"],
            **dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), SPECIAL),
        },
    )


def definition(encoder: dict[str, int], merges: list[str], prompt: Prompt) -> dict[str, Any]:
    """The content of tokenizer.json."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": END_OF_TEXT, "content": SPECIAL, **flags, "special": True}],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": around(prompt, {number: token for token, number in encoder.items()}),
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": encoder,
            "merges": merges,
        },
    }


def around(prompt: Prompt, token_of: dict[int, str]) -> dict[str, Any]:
    """A post-processor that puts a prompt around a text."""
    pieces = {name: list(ids) for name, ids in (("before", prompt.before), ("after", prompt.after)) if ids}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    single = [
        *({"SpecialToken": {"id": "before", "type_id": 0}} for _ in prompt.before[:1]),
        text,
        *({"SpecialToken": {"id": "after", "type_id": 0}} for _ in prompt.after[:1]),
    ]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [text, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {
            name: {"id": name, "ids": ids, "tokens": [token_of[number] for number in ids]}
            for name, ids in pieces.items()
        },
    }


def _dump(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
