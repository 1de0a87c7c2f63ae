"""GPT-2 weights on disk <-> a GPT. Files are safetensors in Hugging Face's layout; each key, shape and type is checked,
and so is config.json where there is one.

`build` takes "random", "pretrained" or a path; `export` writes a folder that transformers' GPT2LMHeadModel reads.
"""

import json
import logging
import re
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from src.errors import InputError
from src.files import file_sha256, whole_file, why_no_download
from src.gpt.model import GPT, GPTConfig
from src.gpt.pinned_weights import PUBLISHED, SHIPPED
from src.gpt.weight_files import check_config, named_tensors, tensor_files

log = logging.getLogger(__name__)

OURS_TO_GPT2 = [  # one row a module; Conv1D layers of GPT-2 hold their weight as (in, out)
    ("token_embedding", "wte", False),
    ("position_embedding", "wpe", False),
    ("blocks.{}.norm1", "h.{}.ln_1", False),
    ("blocks.{}.attention.qkv", "h.{}.attn.c_attn", True),
    ("blocks.{}.attention.out", "h.{}.attn.c_proj", True),
    ("blocks.{}.norm2", "h.{}.ln_2", False),
    ("blocks.{}.mlp.up", "h.{}.mlp.c_fc", True),
    ("blocks.{}.mlp.down", "h.{}.mlp.c_proj", True),
    ("final_norm", "ln_f", False),
]
# causal-mask buffers, which older GPT-2 files hold besides the parameters
NOT_PARAMETERS = re.compile(r"h\.\d+\.attn\.(masked_)?bias")


def build(name: str, weights: str, config: GPTConfig, seed: int) -> GPT:
    """A GPT of `config` with `weights`: "random" (from `seed`), "pretrained" (those of size `name`) or a path."""
    if weights == "random":
        return GPT(config, seed=seed)
    source = PUBLISHED.get(name) if weights == "pretrained" else None
    if source and source.n_head not in (None, config.n_head):
        raise InputError(f"gpt.n_head={config.n_head}: the published weights of gpt={name} have {source.n_head} heads")
    path = pretrained_file(name) if weights == "pretrained" else Path(weights)
    gpt = GPT(config, blank=True)
    read(gpt, path)
    return gpt


def read(gpt: GPT, path: str | Path) -> None:
    """Copy the weights that a path names (see weight_files.py) into `gpt`. Raises InputError naming the tensor."""
    files = tensor_files(Path(path))
    where = files[0] if len(files) == 1 else files[0].parent
    renamed = _gpt2_names(gpt)
    with ExitStack() as stack:
        stored = named_tensors(files, stack)
        output_layer = stored.pop("lm_head.weight", None)
        check_config(files[0].parent / "config.json", gpt.config, tied=output_layer is not None)
        _check_keys(where, set(renamed), {key for key in stored if not NOT_PARAMETERS.fullmatch(key)})
        for key, (parameter, transposed) in renamed.items():
            _copy(where, key, stored[key](), parameter, transposed)
        embedding = gpt.token_embedding.weight
        if output_layer and not _equal(output_layer(), embedding):
            raise InputError(
                f"{where}: lm_head.weight is an output layer of its own, where this GPT has the token embedding: these "
                "weights would give other numbers than in the model that they are of"
            )


@torch.no_grad()
def _copy(where: Path, key: str, tensor: Tensor, parameter: Tensor, transposed: bool) -> None:
    shape = tuple(parameter.shape)[::-1] if transposed else tuple(parameter.shape)
    if tensor.shape != shape:
        raise InputError(
            f"{where}: tensor {key} is {tuple(tensor.shape)}, this GPT needs {shape}: "
            "choose the gpt= size that the file was made for"
        )
    if not tensor.dtype.is_floating_point:
        raise InputError(f"{where}: tensor {key} is of {tensor.dtype}: weights are floating-point numbers")
    parameter.copy_(tensor.t() if transposed else tensor)


def _equal(output_layer: Tensor, embedding: Tensor) -> bool:
    """Whether they are the same numbers, each rounded as the file has them."""
    return output_layer.shape == embedding.shape and torch.equal(output_layer.to(embedding.dtype), embedding)


def export(gpt: GPT, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write `gpt` as a Hugging Face folder: model.safetensors and config.json. The file appears whole or not at all."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / "config.json") as unfinished:
        unfinished.write_text(json.dumps(gpt2_config(gpt.config), indent=2) + "\n")
    with whole_file(folder / "model.safetensors") as unfinished:
        save_file(gpt2_tensors(gpt, dtype), unfinished, metadata={"format": "pt"})
        shutil.copymode(folder / "config.json", unfinished)  # safetensors writes for the owner alone


def gpt2_tensors(gpt: GPT, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """The weights under the names and in the layout that transformers' GPT-2 classes have."""
    return {
        f"transformer.{key}": (parameter.t() if transposed else parameter).detach().to("cpu", dtype).contiguous()
        for key, (parameter, transposed) in _gpt2_names(gpt).items()
    }


def gpt2_config(c: GPTConfig) -> dict[str, Any]:
    """The config.json of a GPT2LMHeadModel of these sizes."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "n_layer": c.n_layer,
        "n_head": c.n_head,
        "n_embd": c.n_embd,
        "n_positions": c.context_length,
        "vocab_size": c.vocab_size,
        "resid_pdrop": c.dropout,
        "embd_pdrop": c.dropout,
        "attn_pdrop": c.dropout,
        "tie_word_embeddings": True,
        "bos_token_id": c.vocab_size - 1,
        "eos_token_id": c.vocab_size - 1,
    }


def pretrained_file(name: str) -> Path:
    """The pretrained weights of a size, checked by sha256: shipped with this project, or published."""
    if name not in SHIPPED:
        return published_file(name)
    path, sha256 = SHIPPED[name]
    verify(tensor_files(path)[0], sha256, f"bring it back with git checkout {path}")
    return path


def published_file(name: str) -> Path:
    """The published weights of a size, from the hub or its cache, checked by sha256. Raises InputError if offline."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    if name not in PUBLISHED:
        raise InputError(
            f"no weights are published for gpt={name}: use gpt.weights=random or a path, "
            f"or gpt={'|'.join((*SHIPPED, *PUBLISHED))}"
        )
    source = PUBLISHED[name]
    try:
        path = Path(hf_hub_download(source.repo, "model.safetensors", revision=source.revision))
    except (HTTPError, OSError) as error:
        raise InputError(
            f"cannot get model.safetensors of {source.repo} at {source.revision} from the Hugging Face hub and it is "
            f"not in its cache ({why_no_download(error)}): put the file anywhere and pass gpt.weights=<its path>, or "
            "stay offline with gpt=mini or gpt.weights=random"
        ) from None
    # the cache names the content of a large file by its sha256, the hub's etag; a file system without links has no name
    if sha256 := source.sha256 or (path.readlink().name if path.is_symlink() else None):
        verify(path, sha256, "remove it from the hub's cache, and it is downloaded again")
    else:
        log.warning("%s was not checked: the hub's cache has no links here, whose names say what it must be", path)
    return path


def verify(path: Path, sha256: str, remedy: str) -> None:
    """Raises InputError unless the file's content has this sha256."""
    if (found := file_sha256(path)) != sha256:
        raise InputError(
            f"{path.resolve()} has sha256 {found}, expected {sha256}: it is damaged or not the pinned file; {remedy}"
        )


def _gpt2_names(gpt: GPT) -> dict[str, tuple[torch.nn.Parameter, bool]]:
    """GPT-2's key -> (our parameter, whether the file holds it transposed)."""
    names = {}
    ours = dict(gpt.named_parameters())
    for our_module, gpt2_module, conv1d in OURS_TO_GPT2:
        for layer in range(gpt.config.n_layer) if "{}" in our_module else [0]:
            for kind in ("weight", "bias"):
                parameter = ours.pop(f"{our_module.format(layer)}.{kind}", None)
                if parameter is not None:
                    names[f"{gpt2_module.format(layer)}.{kind}"] = (parameter, conv1d and kind == "weight")
    if ours:
        raise InputError(f"only a plain GPT has GPT-2's layout; merge or remove {sorted(ours)[0]} first")
    return names


def _check_keys(path: Path, expected: set[str], found: set[str]) -> None:
    if missing := sorted(expected - found):
        raise InputError(f"{path}: tensor {missing[0]} is missing ({len(missing)} in all)")
    if extra := sorted(found - expected):
        raise InputError(f"{path}: tensor {extra[0]} has no place in this GPT ({len(extra)} such in all)")
