"""Weight files: which safetensors files a path names, their tensors by GPT-2's names, and the config.json beside them.

    one .safetensors file | a Hugging Face folder | an index of shards (model.safetensors.index.json)

Wrappers leave their prefixes in a file: `transformer.` of GPT2LMHeadModel, `module.` of DistributedDataParallel,
`_orig_mod.` of torch.compile. Nothing is ever unpickled, and nobody is told to delete a file that is theirs.
"""

import json
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from src.errors import InputError
from src.gpt.model import GPTConfig

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = (".bin", ".ckpt", ".pt", ".pth")
PREFIXES = re.compile(r"^(module\.|transformer\.)+")

# transformers' GPT2Config: its name and its more general one, its default, our setting
SIZES = [
    ("n_layer", "num_hidden_layers", 12, "n_layer"),
    ("n_head", "num_attention_heads", 12, "n_head"),
    ("n_embd", "hidden_size", 768, "n_embd"),
    ("n_positions", "max_position_embeddings", 1024, "context_length"),
    ("vocab_size", "vocab_size", 50257, "vocab_size"),
]
# what this GPT computes, with the default first; others of these would give other numbers from the same tensors.
# reorder_and_upcast_attn is none of them: it is the same function, in fp32 on any device
COMPUTED: dict[str, tuple[Any, ...]] = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast", "gelu_accurate"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}


def tensor_files(path: Path) -> list[Path]:
    """The safetensors files that a path names. Raises InputError where there are none, or a shard is missing."""
    if path.is_dir():
        path = next((path / name for name in (WHOLE, INDEX) if (path / name).is_file()), path / WHOLE)
    if not path.is_file():
        pickled = sorted(file.name for file in path.parent.glob("*") if file.suffix in PICKLED)
        beside = f"; {pickled[0]} beside it is pickled, and pickles are never loaded" if pickled else ""
        raise InputError(
            f"gpt.weights: there is no file {path}; expected random, pretrained, a .safetensors file or a Hugging Face "
            f"folder{beside}"
        )
    return _shards(path) if path.name.endswith(".index.json") else [path]


def _shards(index: Path) -> list[Path]:
    """The files that an index of shards names."""
    names = _json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise InputError(f"{index} has no weight_map from tensors to files: it is no index of shards")
    files = [index.parent / name for name in sorted(set(names.values()))]
    for file in files:
        if file.suffix != ".safetensors":
            raise InputError(f"{index} names {file.name}, which is no safetensors file, and pickles are never loaded")
        if not file.is_file():
            raise InputError(f"{index} names the shard {file.name}, which is not beside it: put all {len(files)} there")
    return files


def named_tensors(files: Sequence[Path], stack: ExitStack) -> dict[str, Callable[[], Tensor]]:
    """GPT-2's name of each tensor -> a function that reads it while `stack` is open."""
    found: dict[str, Callable[[], Tensor]] = {}
    for path in files:
        file = stack.enter_context(_open(path))
        for key in list(file.keys()):
            name = PREFIXES.sub("", key.replace("_orig_mod.", ""))
            if name in found:
                raise InputError(f"{path}: {key} is a second tensor {name}: which one counts cannot be known")
            found[name] = partial(file.get_tensor, key)
    return found


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise InputError(
            f"{path} is {_kind(path) or f'not a whole safetensors file ({error}): get it again'}"
        ) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def _kind(path: Path) -> str | None:
    """What a file that is no safetensors file is instead, and what to do; None where that cannot be said."""
    with path.open("rb") as file:
        begin = file.read(24)
    if begin.startswith((b"PK\3\4", b"\x80")):
        return (
            "a checkpoint or another pickled file of PyTorch, and pickles are never loaded: give the whole weights as "
            "safetensors, such as transformers' save_pretrained writes"
        )
    if begin.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer in place of the file: fetch it with git lfs pull"
    return None


def check_config(path: Path, config: GPTConfig, tied: bool) -> None:
    """Raises InputError where a config.json says that its weights are another GPT's than one of `config`: other sizes,
    which the shapes of tensors may hide (the number of heads), or another function. A file that is not there says
    nothing.

    tied   whether the file's own output layer was seen to equal the embedding, whatever config.json says of it
    """
    if not path.is_file():
        return
    given = _json(path)
    for key, allowed in COMPUTED.items():
        value = given.get(key, allowed[0])
        if value not in allowed and not (tied and key == "tie_word_embeddings"):
            raise InputError(
                f"{path} says {key}={json.dumps(value)}, this GPT has {key}={json.dumps(allowed[0])}: these weights "
                "would give other numbers than in the model that they are of"
            )
    stated = {ours: given.get(theirs, given.get(general, default)) for theirs, general, default, ours in SIZES}
    if other := {key: value for key, value in stated.items() if value != getattr(config, key)}:
        says = ", ".join(f"{key}={value}" for key, value in other.items())
        ours = ", ".join(f"gpt.{key}={getattr(config, key)}" for key in other)
        raise InputError(f"{path} says {says}, not {ours}: give {' '.join(f'gpt.{k}={v}' for k, v in other.items())}")


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}): mend it, or get it again") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no JSON object: mend it, or get it again")
    return found
