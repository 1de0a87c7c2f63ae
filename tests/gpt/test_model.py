"""The GPT, its weights and its adapters: parity with transformers and peft, exact round trips and error sentences."""

import copy
import dataclasses
import hashlib
import math
import re
import socket
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import peft
import pytest
import torch
from huggingface_hub import constants as hub_constants
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, PreTrainedModel

from src.config.instantiate import build
from src.data.prompts import Question
from src.errors import InputError
from src.finetune.classifier import Classifier
from src.gpt import weights
from src.gpt.lora import LoRA, LoRALinear, inject, merge
from src.gpt.model import GPT, Attention, Block, GPTConfig
from src.gpt.pinned_weights import Published
from src.gpt.shared_prefixes import SharedPrefixes
from src.gpt.weight_files import COMPUTED

CONFIG = GPTConfig(n_layer=3, n_head=3, n_embd=24, context_length=32, vocab_size=101)
CONF = Path(__file__).parents[2] / "conf" / "gpt"


def scatter(module: nn.Module, std: float = 0.3) -> None:
    """Give every parameter, biases and norms too, values of its own, so that a swapped tensor is noticed."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            is_scale = ("norm" in name or "ln_" in name) and name.endswith("weight")
            parameter.normal_(1.0 if is_scale else 0.0, std, generator=generator)


def scattered(**changes: Any) -> GPT:
    gpt = GPT(dataclasses.replace(CONFIG, **changes)).eval()
    scatter(gpt)
    return gpt


def hugging_face(kind: type[PreTrainedModel], c: GPTConfig = CONFIG, std: float = 0.3, **more: Any) -> PreTrainedModel:
    """A GPT-2 of transformers with the sizes of `c`, unless others are given, and scattered weights."""
    sizes = {"n_layer": c.n_layer, "n_head": c.n_head, "n_embd": c.n_embd, "n_positions": c.context_length}
    sizes |= {"vocab_size": c.vocab_size, "bos_token_id": 0, "eos_token_id": 0}
    model = kind(GPT2Config(**{**sizes, **more})).eval()
    scatter(model, std)
    return model


def some_ids(messages: int, tokens: int, vocab_size: int = CONFIG.vocab_size) -> Tensor:
    return torch.randint(vocab_size, (messages, tokens), generator=torch.Generator().manual_seed(2))


def assert_same_weights(ours: nn.Module, theirs: nn.Module) -> None:
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def with_random_factors(module: nn.Module, lora: LoRA) -> nn.Module:
    """`module` with adapters whose factors are away from zero, and magnitudes from those of its rows, as after
    training."""
    inject(module, lora)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_" in name:
                parameter.normal_(1.0 if "magnitude" in name else 0.0, 0.1, generator=generator)
    return module


# ---------------------------------------------------------------------------------------------------------- parity


@torch.no_grad()
@pytest.mark.parametrize(
    ("config", "std"), [(CONFIG, 0.3), pytest.param(GPTConfig(), 0.02, marks=pytest.mark.slow)], ids=["tiny", "124M"]
)
def test_logits_and_loss_equal_those_of_transformers(config, std, tmp_path):
    theirs = hugging_face(GPT2LMHeadModel, config, std)
    theirs.save_pretrained(tmp_path)
    ours = GPT(config).eval()
    weights.read(ours, tmp_path)
    ids = some_ids(2, 20, config.vocab_size)
    expected = theirs(ids, labels=ids)
    logits = ours.logits(ours(ids))
    loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(logits, expected.logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(loss, expected.loss, rtol=0, atol=1e-4)


@torch.no_grad()
def test_class_logits_at_the_last_real_token_equal_those_of_transformers(tmp_path):
    pad = CONFIG.vocab_size - 1
    theirs = hugging_face(GPT2ForSequenceClassification, pad_token_id=pad, num_labels=3)
    theirs.transformer.save_pretrained(tmp_path)
    ours = Classifier(GPT(CONFIG), [Question("", ("a", "b", "c"))], pooling="last_nonpad").eval()
    weights.read(ours.gpt, tmp_path)
    ours.head.weight.copy_(theirs.score.weight)
    ours.head.bias.zero_()
    length = torch.tensor([1, 7, 12, 20])
    ids = some_ids(4, 20, pad)  # no message holds the padding id
    ids[torch.arange(20) >= length[:, None]] = pad
    torch.testing.assert_close(ours(ids, length), theirs(ids).logits, rtol=0, atol=1e-4)


@torch.no_grad()
def test_transformers_reads_what_export_wrote(tmp_path):
    ours = scattered()
    weights.export(ours, tmp_path)
    theirs, report = GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert {key: list(found) for key, found in report.items() if found} == {}
    ids = some_ids(2, CONFIG.context_length)
    torch.testing.assert_close(ours.logits(ours(ids)), theirs.eval()(ids).logits, rtol=0, atol=1e-4)


# --------------------------------------------------------------------------------------------------------- the model


def written_out(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Scaled dot-product attention, (B, H, T, D) each."""
    T, D = q.shape[-2:]
    scores = q @ k.transpose(-2, -1) / math.sqrt(D)  # (B, H, T, T)
    if causal:
        scores = scores.masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), float("-inf"))
    return scores.softmax(-1) @ v


@torch.no_grad()
@pytest.mark.parametrize("causal", [True, False])
def test_fused_attention_equals_the_written_out_one(causal):
    config = dataclasses.replace(CONFIG, causal=causal)
    attention, x = Attention(config).eval(), torch.randn(2, 9, 24, generator=torch.Generator().manual_seed(4))
    scatter(attention)
    q, k, v = (part.view(2, 9, 3, 8).transpose(1, 2) for part in attention.qkv(x).split(24, -1))
    expected = attention.out(written_out(q, k, v, causal).transpose(1, 2).reshape(2, 9, 24))
    torch.testing.assert_close(attention(x), expected, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("causal", [True, False])
def test_a_hidden_state_depends_on_later_tokens_without_the_causal_mask_alone(causal):
    gpt, ids = scattered(causal=causal), some_ids(1, 12)
    before = gpt(ids)
    for t in range(12):
        changed = ids.clone()
        changed[0, t] = (ids[0, t] + 1) % CONFIG.vocab_size
        moved = (gpt(changed) != before).any(-1)[0]
        assert moved.tolist() == [position >= t or not causal for position in range(12)]


@torch.no_grad()
@pytest.mark.parametrize("k", range(CONFIG.n_layer + 1))
def test_prefix_then_suffix_is_forward_bit_for_bit(k):
    gpt, ids = scattered(), some_ids(2, 12)
    hidden = gpt.lower_blocks(ids, k)
    assert torch.equal(gpt.upper_blocks(hidden, k), gpt(ids))
    for block in gpt.blocks[:k]:  # blocks below k have no part in the suffix
        scatter(block, 5.0)
    gpt.token_embedding.weight.zero_()
    assert torch.equal(gpt.upper_blocks(hidden, k), scattered()(ids))


@torch.no_grad()
def test_a_message_as_long_as_the_context_fits_and_a_longer_one_is_refused():
    gpt = scattered()
    assert gpt(some_ids(1, 32)).shape == (1, 32, 24)
    with pytest.raises(InputError, match=r"33 tokens .* 32"):
        gpt(some_ids(1, 33))


@torch.no_grad()
def test_dropout_acts_in_training_only():
    gpt, ids = GPT(dataclasses.replace(CONFIG, dropout=0.5), seed=0), some_ids(1, 12)
    assert not torch.equal(gpt.train()(ids), gpt(ids))
    assert torch.equal(gpt.eval()(ids), GPT(CONFIG, seed=0).eval()(ids))


SIZES = ("n_layer", "n_head", "n_embd", "context_length", "vocab_size")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((size, -1) for size in ("n_layer", "n_head", "n_embd", "context_length", "vocab_size")),
        ("n_embd", 100),  # no multiple of the heads
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("n_layer", 10**18),
        ("n_embd", 12 * 10**12),
        ("vocab_size", 10**18),
    ],
)
def test_settings_that_cannot_be_are_refused(key, value):
    with pytest.raises(InputError, match=f"{key}={value}"):
        GPTConfig(**{key: value})


def test_weights_depend_on_the_seed_and_on_nothing_else():
    torch.manual_seed(5)
    first = GPT(CONFIG, seed=0)
    torch.manual_seed(6)
    assert_same_weights(first, GPT(CONFIG, seed=0))
    other = GPT(CONFIG, seed=1).state_dict()
    moved = {name for name, tensor in first.state_dict().items() if not torch.equal(tensor, other[name])}
    assert moved == {name for name in other if name.endswith("weight") and "norm" not in name}


def test_weights_start_as_gpt2s_did():
    config = GPTConfig(n_layer=4, n_head=4, n_embd=128, context_length=128, vocab_size=1000)
    for name, tensor in GPT(config, seed=0).state_dict().items():
        if name.endswith("bias"):
            assert (tensor == 0).all(), name
        elif "norm" in name:
            assert (tensor == 1).all(), name
        else:
            into_residual = "attention.out" in name or "mlp.down" in name
            expected = 0.02 / math.sqrt(8) if into_residual else 0.02
            assert tensor.std().item() == pytest.approx(expected, rel=0.04), name
            assert abs(tensor.mean().item()) < 0.04 * expected, name


def config_of(size: str) -> GPTConfig:
    """The GPT that gpt=<size> chooses."""
    settings = OmegaConf.load(CONF / f"{size}.yaml").gpt
    return GPTConfig(**{field.name: settings[field.name] for field in dataclasses.fields(GPTConfig)})


def test_every_size_has_the_parameter_count_of_the_published_model():
    counts = {}
    for path in CONF.glob("*.yaml"):
        with torch.device("meta"):
            gpt = GPT(config_of(path.stem))
        assert OmegaConf.load(path).gpt.name == path.stem
        counts[path.stem] = sum(parameter.numel() for parameter in gpt.parameters())
    published = {"small": 124_439_808, "medium": 354_823_168, "large": 774_030_080, "xl": 1_557_611_200}
    assert counts == {"mini": 12_515_520, **published}
    assert config_of("small") == GPTConfig()


# ------------------------------------------------------------------------------------------------- weights on disk


def refusal(path: Path, config: GPTConfig = CONFIG) -> str:
    with pytest.raises(InputError) as error:
        weights.build("mini", str(path), config, seed=0)
    assert "elete" not in str(error.value)  # whatever it is, it is the user's
    return str(error.value)


def exported(folder: Path) -> dict[str, Tensor]:
    """The tensors of an export into `folder`, by the names they have on the hub."""
    weights.export(scattered(), folder)
    tensors = load_file(folder / "model.safetensors")
    return {key.removeprefix("transformer."): tensor for key, tensor in tensors.items()}


def test_read_gives_back_what_export_wrote_bit_for_bit_or_rounded(tmp_path):
    gpt, folder = scattered(), tmp_path / "new" / "folder"
    (tmp_path / "file").touch()
    for dtype, expected in ((torch.float32, gpt), (torch.bfloat16, copy.deepcopy(gpt).bfloat16().float())):
        weights.export(gpt, folder, dtype)
        assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {dtype}
        assert {path.name for path in folder.iterdir()} == {"model.safetensors", "config.json"}
        assert {path.stat().st_mode for path in folder.iterdir()} == {(tmp_path / "file").stat().st_mode}
        for path in (folder, folder / "model.safetensors"):
            weights.read(back := GPT(CONFIG), path)
            assert_same_weights(back, expected)


def test_an_export_that_fails_leaves_the_file_before_it_as_it_was(tmp_path, monkeypatch):
    def fails_halfway(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError("the disk is full")

    gpt, back = scattered(), GPT(CONFIG)
    weights.export(gpt, tmp_path)
    monkeypatch.setattr(weights, "save_file", fails_halfway)
    with pytest.raises(OSError, match="the disk is full"):
        weights.export(GPT(CONFIG), tmp_path)
    weights.read(back, tmp_path)
    assert_same_weights(back, gpt)


def test_a_file_in_the_layout_of_the_hub_reads_the_same(tmp_path):
    tensors, back = exported(tmp_path), GPT(CONFIG)
    for layer in range(CONFIG.n_layer):
        tensors[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 32, 32).tril()
        tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    tensors["lm_head.weight"] = tensors["wte.weight"].clone()
    save_file(tensors, tmp_path / "as_published.safetensors")
    weights.read(back, tmp_path / "as_published.safetensors")
    assert_same_weights(back, scattered())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda _: {"h.1.attn.c_attn.bias": None}, "h.1.attn.c_attn.bias is missing (1 in all)"),
        (lambda _: {"ln_f.weight": None, "ln_f.bias": None}, "ln_f.bias is missing (2 in all)"),
        (
            lambda t: {key.replace("h.2.", "h.3."): t[key].clone() for key in t if key.startswith("h.2.")},
            "h.3.attn.c_attn.bias has no place in this GPT (12 such in all)",
        ),
        (lambda t: {"h.0.attn.c_attn.weight": t["h.0.attn.c_attn.weight"].t()}, "h.0.attn.c_attn.weight is (72, 24)"),
        (lambda t: {"h.0.mlp.c_fc.weight": t["h.0.mlp.c_fc.weight"][None]}, "h.0.mlp.c_fc.weight is (1, 24, 96)"),
        (lambda _: {"wte.weight": torch.zeros(102, 24)}, "wte.weight is (102, 24), this GPT needs (101, 24)"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_and_the_tensor_named(change, named, tmp_path):
    tensors = exported(tmp_path)
    tensors |= change(tensors)
    path = tmp_path / "model.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in tensors.items() if tensor is not None}, path)
    said = refusal(path)
    assert str(path) in said
    assert named in said


@pytest.mark.parametrize(
    "damage", [lambda whole: whole[:-1], lambda whole: whole[:100], lambda whole: b"PK\3\4" * 50, lambda whole: b""]
)
def test_a_damaged_file_is_refused(damage, tmp_path):
    weights.export(scattered(), tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    assert str(path) in refusal(path)


@pytest.mark.parametrize(("given", "looked_for"), [("no.safetensors", "no.safetensors"), (".", "model.safetensors")])
def test_a_path_without_a_file_is_refused(given, looked_for, tmp_path):
    assert f"gpt.weights: there is no file {tmp_path / looked_for}" in refusal(tmp_path / given)


def test_a_gpt_with_adapters_is_not_exported(tmp_path):
    gpt = GPT(CONFIG)
    inject(gpt, LoRA(rank=2))
    with pytest.raises(InputError, match=r"blocks\.0\.attention\.out\.lora_A"):
        weights.export(gpt, tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


def test_build_starts_from_the_seed_or_from_a_path(tmp_path):
    weights.export(scattered(), tmp_path)
    assert_same_weights(weights.build("mini", "random", CONFIG, seed=7), GPT(CONFIG, seed=7))
    assert_same_weights(weights.build("mini", str(tmp_path), CONFIG, seed=7), scattered())


# ------------------------------------------------------------------------------------------------ weights in the wild


def assert_same_logits(path: Path, theirs: PreTrainedModel, config: GPTConfig = CONFIG) -> None:
    gpt, ids = weights.build("mini", str(path), config, seed=0).eval(), some_ids(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(gpt.logits(gpt(ids)), theirs(ids).logits, rtol=0, atol=1e-4)


def test_sharded_weights_of_transformers_read_as_one_file(tmp_path):
    theirs = hugging_face(GPT2LMHeadModel)
    theirs.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        assert_same_logits(path, theirs)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ('{"weight_map": {"wte.weight": "model-1-of-2.safetensors"}}', "model-1-of-2.safetensors"),
        ('{"weight_map": {"wte.weight": "pytorch_model-1-of-2.bin"}}', "pickles are never loaded"),
        ('{"weight_map": {}}', "weight_map"),
        ('["wte.weight"]', "index.json"),
        ('{"weight_map', "index.json"),
    ],
)
def test_an_index_without_its_shards_is_refused(content, named, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    assert named in refusal(tmp_path)


@pytest.mark.parametrize(
    ("at", "wrapper"),
    [
        *(("^", wrapper) for wrapper in ("_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module.")),
        (r"(h\.\d+\.)", r"\1_orig_mod."),  # blocks that were compiled apart
    ],
)
def test_the_prefixes_of_wrappers_are_left_out(at, wrapper, tmp_path):
    theirs = hugging_face(GPT2LMHeadModel)
    tensors = {re.sub(at, wrapper, key): tensor.clone() for key, tensor in theirs.state_dict().items()}
    save_file(tensors, tmp_path / "model.safetensors")
    assert_same_logits(tmp_path, theirs)


def test_a_tensor_that_stands_twice_in_a_file_is_refused(tmp_path):
    tensors = exported(tmp_path)
    save_file(tensors | {"transformer.wte.weight": tensors["wte.weight"] + 1}, tmp_path / "model.safetensors")
    assert "wte.weight" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        ({"n_head": 2}, "give gpt.n_head=2"),
        ({"num_attention_heads": 2}, "give gpt.n_head=2"),
        ({"n_positions": 64}, "gpt.context_length=64"),
        ({"vocab_size": 104}, "gpt.vocab_size=104"),
        ({"n_layer": 2, "n_embd": 12}, "give gpt.n_layer=2 gpt.n_embd=12"),
        ({"activation_function": "gelu"}, 'activation_function="gelu"'),
        ({"activation_function": "relu"}, 'activation_function="relu"'),
        ({"layer_norm_epsilon": 1e-3}, "layer_norm_epsilon=0.001"),
        ({"scale_attn_weights": False}, "scale_attn_weights=false"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=true"),
        ({"tie_word_embeddings": False}, "lm_head.weight"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_gpt2_of_transformers_that_computes_something_else_is_refused(theirs, said, tmp_path):
    model = hugging_face(GPT2LMHeadModel, **theirs)
    model.save_pretrained(tmp_path)
    assert said in refusal(tmp_path)
    assert said in refusal(tmp_path / "model.safetensors")  # config.json beside the file counts as well
    _, settings, given = refusal(tmp_path).partition(": give ")
    if settings:  # with what the sentence says to give, the numbers are those of transformers
        fits = dataclasses.replace(CONFIG, **{k: int(v) for k, v in re.findall(r"gpt\.(\w+)=(\d+)", given)})
        assert_same_logits(tmp_path, model, fits)


@pytest.mark.parametrize(
    "same",
    [{"reorder_and_upcast_attn": True}, *({"activation_function": name} for name in COMPUTED["activation_function"])],
    ids=lambda same: str(next(iter(same.values()))),
)
def test_another_name_of_the_same_function_is_taken(same, tmp_path):
    theirs = hugging_face(GPT2LMHeadModel, **same)
    theirs.save_pretrained(tmp_path)
    assert_same_logits(tmp_path, theirs)


def test_an_untied_output_layer_is_taken_where_it_equals_the_embedding(tmp_path):
    theirs = hugging_face(GPT2LMHeadModel, tie_word_embeddings=False)
    assert theirs.lm_head.weight is not theirs.transformer.wte.weight
    theirs.lm_head.weight.data.copy_(theirs.transformer.wte.weight)
    theirs.save_pretrained(tmp_path)
    assert_same_logits(tmp_path, theirs)
    theirs.transformer.save_pretrained(tmp_path / "without")  # the body alone: its output layer is unknown
    assert "tie_word_embeddings" in refusal(tmp_path / "without")


@pytest.mark.parametrize("content", ["{", "[]", '{"model_type": "llama"}'])
def test_a_config_that_is_none_of_gpt2_is_refused(content, tmp_path):
    weights.export(scattered(), tmp_path)
    (tmp_path / "config.json").write_text(content)
    assert str(tmp_path / "config.json") in refusal(tmp_path)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_weights_that_are_no_floating_point_numbers_are_refused(dtype, tmp_path):
    tensors = exported(tmp_path)
    tensors["h.1.mlp.c_fc.weight"] = tensors["h.1.mlp.c_fc.weight"].to(dtype)
    save_file(tensors, tmp_path / "model.safetensors")
    assert f"h.1.mlp.c_fc.weight is of {dtype}" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["best.ckpt", "pytorch_model.bin", "weights.pt", "model.safetensors"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_file_is_called_what_it_is(name, zipped, tmp_path):
    torch.save({"wte.weight": torch.ones(2)}, tmp_path / name, _use_new_zipfile_serialization=zipped)
    assert "pickled" in refusal(tmp_path / name)
    assert "pickle" in refusal(tmp_path)


def test_a_git_lfs_pointer_is_called_what_it_is(tmp_path):
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    assert "git lfs pull" in refusal(tmp_path)


def test_published_weights_keep_their_number_of_heads(cache):
    with pytest.raises(InputError, match=r"gpt\.n_head=3: .* 12 heads"):
        weights.build("small", "pretrained", CONFIG, seed=0)
    with pytest.raises(InputError, match=r"give gpt\.n_head=6"):
        weights.build("mini", "pretrained", GPTConfig(n_layer=6, n_head=3, n_embd=192), seed=0)


# ------------------------------------------------------------------------------------------------- published weights

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of the hub, and no network."""
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.fixture
def content(tmp_path) -> bytes:
    """The file that the tests below publish: the weights of `scattered()`."""
    weights.export(scattered(), tmp_path / "published")
    return (tmp_path / "published" / "model.safetensors").read_bytes()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def pretrained(name: str = "small") -> GPT:
    return weights.build(name, "pretrained", CONFIG, seed=0)


def publish(monkeypatch: pytest.MonkeyPatch, pinned: str | None) -> None:
    monkeypatch.setitem(weights.PUBLISHED, "small", Published("openai-community/gpt2", REVISION, pinned))


def put(cache: Path, content: bytes, name: str) -> Path:
    """Store a file as huggingface_hub does: the content under blobs/<etag>, a link to it under snapshots/<revision>."""
    repo = cache / "models--openai-community--gpt2"
    link, blob = repo / "snapshots" / REVISION / "model.safetensors", repo / "blobs" / name
    link.parent.mkdir(parents=True)
    blob.parent.mkdir()
    blob.write_bytes(content)
    link.symlink_to(f"../../blobs/{name}")
    return link


@pytest.mark.parametrize("pinned", [True, False])
def test_pretrained_weights_are_read_from_the_cache(pinned, cache, content, monkeypatch):
    publish(monkeypatch, sha256(content) if pinned else None)
    put(cache, content, sha256(content))
    assert_same_weights(pretrained(), scattered())


def test_pretrained_weights_are_read_from_the_store_that_repositories_share(cache, content, monkeypatch):
    """huggingface_hub 2 may make blobs/<sha256> a link itself, to a file named by another hash of the content."""
    publish(monkeypatch, None)
    blob = put(cache, content, sha256(content)).resolve()
    store = cache / "blobs" / "ab" / ("ab" * 32)
    store.parent.mkdir(parents=True)
    blob.rename(store)
    blob.symlink_to(f"../../blobs/ab/{store.name}")
    assert_same_weights(pretrained(), scattered())


def test_a_cache_without_links_is_read_and_said_not_to_be_checked(cache, content, monkeypatch, caplog):
    publish(monkeypatch, None)
    link = put(cache, content, sha256(content))
    link.unlink()
    link.write_bytes(content)
    assert_same_weights(pretrained(), scattered())
    assert "not checked" in caplog.text


@pytest.mark.parametrize("pinned", [True, False])
def test_a_tampered_download_is_refused(pinned, cache, content, monkeypatch):
    publish(monkeypatch, sha256(content) if pinned else None)
    tampered = content[:-1] + bytes([content[-1] ^ 1])
    path = put(cache, tampered, sha256(content))
    with pytest.raises(InputError, match=f"{path.resolve()} has sha256 {sha256(tampered)}, expected {sha256(content)}"):
        pretrained()


@pytest.mark.parametrize("name", ["small", "medium", "large", "xl"])
def test_without_network_and_cache_the_way_by_hand_is_told(name, cache):
    source = weights.PUBLISHED[name]
    with pytest.raises(InputError, match=rf"{source.repo} at {source.revision}.*OFFLINE.*gpt\.weights=<its path>"):
        weights.pretrained_file(name)


def test_a_size_without_published_weights_is_refused(cache):
    with pytest.raises(InputError, match="gpt=tiny"):
        pretrained("tiny")


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as one file needs: `files` maps an address to (content, etag)."""

    files: dict[str, tuple[bytes, str]]

    def do_HEAD(self) -> None:
        content, etag = self.files.get(self.path, (b"", ""))
        self.send_response(200 if etag else 404)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", REVISION)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(self.files[self.path][0])

    def do_CONNECT(self) -> None:  # what a proxy that lets nobody through answers
        self.send_error(403)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(cache, monkeypatch) -> Iterator[ThreadingHTTPServer]:
    """A hub on this machine, with network and an empty cache."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("EmptyHub", (Hub,), {"files": {}}))
    endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(hub_constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    huggingface_hub.close_session()
    yield server
    server.shutdown()
    server.server_close()
    huggingface_hub.close_session()


ADDRESS = f"/openai-community/gpt2/resolve/{REVISION}/model.safetensors"


@pytest.mark.parametrize("pinned", [True, False])
def test_pretrained_weights_are_downloaded_once(pinned, hub, content, monkeypatch):
    publish(monkeypatch, sha256(content) if pinned else None)
    hub.RequestHandlerClass.files[ADDRESS] = (content, sha256(content))
    assert_same_weights(pretrained(), scattered())
    hub.RequestHandlerClass.files.clear()
    assert_same_weights(pretrained(), scattered())


def test_a_download_that_is_not_the_pinned_file_is_refused(hub, cache, content, monkeypatch):
    publish(monkeypatch, sha256(b"the pinned file"))
    hub.RequestHandlerClass.files[ADDRESS] = (content, sha256(content))
    path = cache / "models--openai-community--gpt2" / "snapshots" / REVISION / "model.safetensors"
    with pytest.raises(InputError) as error:
        pretrained()
    assert f"{path.resolve()} has sha256 {sha256(content)}, expected " in str(error.value)


def has_nothing(hub: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.RequestHandlerClass.files.clear()


def hangs_up(hub: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def reset(handler: Hub) -> None:
        handler.do_HEAD()
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.connection.close()

    monkeypatch.setattr(hub.RequestHandlerClass, "do_GET", reset)


def is_behind_a_proxy_that_refuses(hub: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    template = "https://hub.invalid/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(hub_constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{hub.server_port}")


@pytest.mark.parametrize(
    ("fails", "cause"),
    [
        (has_nothing, "the server answers 404"),
        (hangs_up, "the connection broke off"),
        (is_behind_a_proxy_that_refuses, "the proxy does not let it through"),
    ],
)
def test_when_the_hub_fails_the_way_by_hand_is_told(fails, cause, hub, content, monkeypatch):
    publish(monkeypatch, None)
    hub.RequestHandlerClass.files[ADDRESS] = (content, sha256(content))
    fails(hub, monkeypatch)
    with pytest.raises(InputError, match=rf"not in its cache \({cause}.*gpt\.weights=<its path>"):
        pretrained()


# -------------------------------------------------------------------------------------------------------------- LoRA


@torch.no_grad()
@pytest.mark.parametrize("dora", [False, True])
def test_injected_adapters_change_nothing(dora):
    gpt, ids = scattered(), some_ids(2, 12)
    before = gpt(ids)
    inject(gpt, LoRA(rank=4, dora=dora))
    assert torch.equal(gpt(ids), before)


def test_inject_replaces_every_linear_and_keeps_its_parameters():
    gpt = GPT(CONFIG)
    before = dict(gpt.named_parameters())
    linears = {name for name, module in gpt.named_modules() if isinstance(module, nn.Linear)}
    inject(gpt, LoRA(rank=4))
    inject(gpt, LoRA(rank=2))  # a second time finds nothing left to replace
    after = dict(gpt.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())
    assert after.keys() - before.keys() == {f"{name}.lora_{factor}" for name in linears for factor in "AB"}
    assert len(linears) == 4 * CONFIG.n_layer
    assert {name for name, module in gpt.named_modules() if isinstance(module, LoRALinear)} == linears
    assert after["blocks.0.attention.qkv.lora_A"].shape == (4, 24)
    assert after["blocks.0.attention.qkv.lora_B"].shape == (72, 4)


@pytest.mark.parametrize(
    ("target", "layers"),
    [
        ("blocks", ["attention.qkv", "attention.out", "mlp.up", "mlp.down"]),
        ("attention", ["attention.qkv", "attention.out"]),
        ("qkv", ["attention.qkv"]),
        ("mlp", ["mlp.up", "mlp.down"]),
    ],
)
def test_only_the_targets_get_adapters(target, layers):
    model = nn.ModuleDict({"gpt": GPT(CONFIG), "head": nn.Linear(24, 2)})
    inject(model, LoRA(rank=2, target=target))
    found = {name for name, module in model.named_modules() if isinstance(module, LoRALinear)}
    assert found == {f"gpt.blocks.{i}.{layer}" for i in range(CONFIG.n_layer) for layer in layers}


@pytest.mark.parametrize("experiment", ["lora", "xl_lora"])
def test_factors_start_as_in_peft_and_those_of_rows_11_and_12_as_in_the_book(experiment):
    linear, theirs = LoRALinear(nn.Linear(300, 50), LoRA(rank=64)), nn.Sequential(nn.Linear(300, 50))
    peft.inject_adapter_in_model(peft.LoraConfig(r=64, target_modules=["0"]), theirs)
    books = LoRALinear(
        nn.Linear(300, 50), LoRA(**OmegaConf.load(CONF.parent / f"experiment/{experiment}.yaml").task.lora)
    )
    by_hand = nn.init.kaiming_uniform_(torch.empty(300, len(books.lora_A)), a=math.sqrt(5))  # appendix E: (in, rank)
    for A, B, bound in (
        (linear.lora_A, linear.lora_B, 1 / math.sqrt(300)),
        (theirs[0].lora_A.default.weight, theirs[0].lora_B.default.weight, 1 / math.sqrt(300)),
        (books.lora_A, books.lora_B, 1 / math.sqrt(16)),
        (by_hand, torch.zeros(1), 1 / math.sqrt(16)),
    ):
        assert (B == 0).all()
        assert A.abs().max().item() == pytest.approx(bound, rel=0.02)  # uniform up to 1/sqrt(in)
        assert A.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


@torch.no_grad()
@pytest.mark.parametrize(("scaling", "dora"), [("alpha", False), ("alpha_over_rank", False), ("alpha", True)])
def test_merged_equals_unmerged_and_is_a_plain_gpt_again(scaling, dora, tmp_path):
    plain, ids = scattered(), some_ids(2, 12)
    adapted = with_random_factors(scattered(), LoRA(rank=4, alpha=2.0, scaling=scaling, dora=dora))
    unmerged = adapted(ids)
    assert (unmerged - plain(ids)).abs().max() > 0.1
    merge(adapted)
    torch.testing.assert_close(adapted(ids), unmerged, rtol=0, atol=1e-4)
    assert [type(module) for module in adapted.modules()] == [type(module) for module in plain.modules()]
    weights.export(adapted, tmp_path)
    weights.read(plain, tmp_path)
    assert_same_weights(plain, adapted)


@torch.no_grad()
@pytest.mark.parametrize("dora", [False, True])
def test_a_linear_without_bias_is_adapted_and_merged(dora):
    layers, x = nn.Sequential(nn.Linear(24, 5, bias=False)), torch.eye(24)
    weight = layers[0].weight.clone()
    with_random_factors(layers, LoRA(rank=2, alpha=3.0, dora=dora))
    expected = (weight + 3.0 * layers[0].lora_B @ layers[0].lora_A).t()
    if dora:
        expected = layers[0].lora_magnitude * expected / expected.norm(dim=0)
    torch.testing.assert_close(layers(x), expected, rtol=0, atol=1e-6)
    merge(layers)
    assert layers[0].bias is None
    torch.testing.assert_close(layers(x), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize(("scaling", "pefts_alpha"), [("alpha_over_rank", 3), ("alpha", 3 * 4)])
def test_outputs_and_gradients_equal_those_of_peft(scaling, pefts_alpha, dora):
    ours = Block(CONFIG).eval()
    scatter(ours)
    theirs = copy.deepcopy(ours)
    with_random_factors(ours, LoRA(rank=4, alpha=3.0, scaling=scaling, dora=dora))
    config = peft.LoraConfig(r=4, lora_alpha=pefts_alpha, target_modules=["qkv", "out", "up", "down"], use_dora=dora)
    peft.inject_adapter_in_model(config, theirs)
    factors = {name: parameter for name, parameter in ours.named_parameters() if "lora_" in name}
    pefts = {name: name.replace("magnitude", "magnitude_vector") for name in factors}
    same = {name: theirs.get_parameter(f"{pefts[name]}.default.weight") for name in factors}
    with torch.no_grad():
        for name, parameter in factors.items():
            same[name].copy_(parameter)
    x = torch.randn(2, 9, 24, generator=torch.Generator().manual_seed(4))
    outputs = [block(x) for block in (ours, theirs.eval())]
    torch.testing.assert_close(*outputs, rtol=1e-6, atol=1e-6)
    for output in outputs:
        output.square().mean().backward()
    for name, parameter in factors.items():
        assert parameter.grad.abs().max() > 1e-3
        torch.testing.assert_close(parameter.grad, same[name].grad, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("key", "value"), [("rank", 0), ("scaling", "rank"), ("init", "book"), ("target", "heads")])
def test_adapters_that_cannot_be_are_refused(key, value):
    with pytest.raises(InputError, match=f"task.lora.{key}={value}"):
        build("task.lora", {"_target_": "src.gpt.lora.LoRA", key: value})


def test_the_shipped_weights_are_those_that_are_pinned():
    path, _ = weights.SHIPPED["mini"]
    embedding = weights.build("mini", "pretrained", config_of("mini"), seed=0).token_embedding.weight
    assert path.stat().st_size <= 26_000_000
    assert OmegaConf.load(CONF / "mini.yaml").gpt.weights == "pretrained"
    assert torch.equal(embedding, load_file(path)["transformer.wte.weight"].float())


def test_altered_shipped_weights_are_refused(tmp_path, monkeypatch):
    path, sha256 = weights.SHIPPED["mini"]
    content = path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])
    (altered := tmp_path / "model.safetensors").write_bytes(content)
    monkeypatch.setitem(weights.SHIPPED, "mini", (altered, sha256))
    found = hashlib.sha256(content).hexdigest()
    with pytest.raises(InputError, match=f"{altered} has sha256 {found}, expected {sha256}"):
        weights.build("mini", "pretrained", config_of("mini"), seed=0)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("k", [0, 2, 3])
def test_the_suffix_at_some_places_is_the_suffix_there_with_the_same_gradients(k, causal):
    gpt = GPT(dataclasses.replace(CONFIG, causal=causal), seed=0)
    scatter(gpt)
    ids = torch.randint(CONFIG.vocab_size, (4, 11), generator=torch.Generator().manual_seed(0))
    index = torch.tensor([[0, 10], [3, 3], [10, 9], [5, 0]])

    def result(at_places: bool) -> tuple[Tensor, dict[str, Tensor]]:
        gpt.zero_grad()
        x = gpt.lower_blocks(ids, k)
        x = gpt.upper_blocks_at(x, k, index) if at_places else gpt.upper_blocks(x, k)[torch.arange(4)[:, None], index]
        (x * torch.linspace(-1, 1, x.numel()).view_as(x)).sum().backward()
        return x, {name: p.grad.clone() for name, p in gpt.named_parameters() if p.grad is not None}

    (there, some), (everywhere, all_) = result(True), result(False)
    assert torch.allclose(there, everywhere, atol=1e-5)
    assert some.keys() == all_.keys()
    for name, gradient in some.items():
        assert torch.allclose(gradient, all_[name], atol=1e-5 * max(1.0, all_[name].abs().max().item())), name


# what begins alike

# beginnings of one, two and all tokens in common, one message twice, one that ends where another goes on
ALIKE = [[1], [1, 2, 3], [1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 9, 4, 5], [7, 7, 7, 7, 7, 7], [7, 7, 8]]
PADDING = 7  # also a token of some messages


def padded(messages: list[list[int]]) -> tuple[Tensor, Tensor]:
    """ids (B, T) and length (B,)."""
    width = max(map(len, messages))
    rows = [message + [PADDING] * (width - len(message)) for message in messages]
    return torch.tensor(rows), torch.tensor([len(message) for message in messages])


def distinct(messages: list[list[int]]) -> int:
    """How many tokens differ in themselves or in one before."""
    return len({tuple(message[: n + 1]) for message in messages for n in range(len(message))})


def read_once(gpt: GPT, messages: list[list[int]], k: int) -> tuple[int, float]:
    """How many rows the linear layers of a block are given, and how far its results are from those of `prefix`."""
    rows: list[int] = []
    layers = [layer for layer in gpt.blocks[0].modules() if isinstance(layer, nn.Linear)]
    count = lambda _, x, __: rows.append(x[0].flatten(0, -2).shape[0])  # noqa: E731
    hooks = [layer.register_forward_hook(count) for layer in layers]
    ids, length = padded(messages)
    with torch.no_grad():
        found = gpt.lower_blocks(ids, k, SharedPrefixes.of(ids, length, gpt.config.causal))
        for hook in hooks:
            hook.remove()
        expected = gpt.lower_blocks(ids, k)
    real = torch.arange(ids.shape[1]) < length[:, None]
    assert found.shape == expected.shape
    assert len(set(rows)) == (k > 0)
    return max(rows, default=0), (found - expected)[real].abs().max().item()


@pytest.mark.parametrize("k", [0, 1, 3])
def test_what_begins_alike_is_computed_once(k):
    rows, apart = read_once(scattered(), ALIKE, k)
    assert rows == (distinct(ALIKE) if k else 0) == (15 if k else 0)
    assert apart < 1e-5


def test_any_messages_are_read_once():
    """Sorted, each distinct token is computed once; in any order the result is right."""
    gpt, generator = scattered(), torch.Generator().manual_seed(0)
    for n in range(1, 30):
        lengths = torch.randint(1, 9, (n,), generator=generator).tolist()
        messages = [torch.randint(3, (length,), generator=generator).tolist() for length in lengths]
        for some in (messages, sorted(messages)):
            rows, apart = read_once(gpt, some, 2)
            assert distinct(messages) <= rows <= (sum(lengths) if some is messages else distinct(messages))
            assert apart < 1e-5


def test_without_a_causal_mask_only_equal_messages_share():
    gpt = scattered(causal=False)
    rows, apart = read_once(gpt, [[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 3, 5], [1, 2, 3, 5], [6, 2, 3, 5]], 2)
    assert rows == 12
    assert apart < 1e-5


def test_autocast_leaves_what_is_computed_at_few_places_in_full_precision():
    gpt, index = scattered(), torch.tensor([[3], [0]])
    x = torch.randn(2, 5, CONFIG.n_embd, generator=torch.Generator().manual_seed(0))
    exact, everywhere = gpt.upper_blocks_at(x, 2, index), gpt.upper_blocks_at(x, 1, index)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gpt.upper_blocks_at(x, 2, index), exact)
        rounded = gpt.upper_blocks_at(x, 1, index)  # a whole block lies before
    assert 1e-3 < (rounded - everywhere).abs().max() < 0.3
