"""A finished run -> the files that transformers loads: weights, config and tokenizer.

classify, pooling last_nonpad   GPT2ForSequenceClassification
classify, any other             TwoWaysForSequenceClassification, in modeling_two_ways.py beside the weights
instruct                        GPT2LMHeadModel
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from src.data.prompts import Prompt
from src.data.tokenizer import END_OF_TEXT
from src.exporting import tokenizer_files
from src.exporting.finished_run import FinishedRun
from src.gpt.weights import gpt2_config, gpt2_tensors

CODE = Path(__file__).parent / "modeling_two_ways.py"
MOST_ROUNDING = 1e-5  # of a logit, by which a folded bias may differ


def write(run: FinishedRun, folder: Path) -> None:
    """Weights in fp32, config, tokenizer, and code where the architecture is none of transformers'."""
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), END_OF_TEXT)
    tensors = gpt2_tensors(run.model.gpt)
    changes = _language_model(run, tensors) if run.writes else _classifier(run, tensors)
    config = gpt2_config(run.model.gpt.config) | special | {"dtype": "float32"} | changes | decision(run)
    _dump(folder / "config.json", config)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copymode(folder / "config.json", folder / "model.safetensors")  # safetensors writes for the owner alone
    if "auto_map" in config:
        shutil.copyfile(CODE, folder / CODE.name)
    if run.writes:
        longest = max(len(answer) for task in run.model.tasks for answer in task.answers)  # <|endoftext|> ends it
        _dump(folder / "generation_config.json", {**special, "do_sample": False, "max_new_tokens": longest})
    limit = run.model.gpt.config.context_length if run.writes else run.data["max_length"]
    tokenizer_files.write(folder, limit, Prompt() if run.writes else run.model.prompts[0])


def decision(run: FinishedRun) -> dict[str, Any]:
    """The threshold that the run chose, as config.json has it: that of the probability of the class `positive_id`."""
    if not (chosen := run.result.get("threshold")):
        return {}
    positive = run.data["labels"].index(run.result["positive"])
    return {"positive_id": positive, "threshold": chosen["probability"]}


def is_stock(run: FinishedRun) -> bool:
    """Whether a class of transformers itself computes what the run's model does."""
    if run.writes:
        return True
    head = run.model.head
    assert isinstance(head, nn.Linear)
    return run.pooling == "last_nonpad" and run.model.gpt.config.causal and folded(head) is not None


def folded(head: nn.Linear) -> Tensor | None:
    """What, added to the bias of the final norm (C,), does what the head's bias (K,) does: the d of least norm with
    W d = b. None where there is none, as with more classes than channels."""
    weight, bias = head.weight.detach().double(), head.bias.detach().double()
    d = torch.linalg.lstsq(weight, bias[:, None], driver="gelsd").solution[:, 0].float()
    return d if torch.allclose(weight @ d.double(), bias, rtol=0, atol=MOST_ROUNDING) else None


def _language_model(run: FinishedRun, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """What config.json says besides; the output layer, where it is not the token embedding, goes into `tensors`."""
    if run.model.head is None:
        return {}
    tensors["lm_head.weight"] = _plain(run.model.vocabulary)
    return {"tie_word_embeddings": False}


def _classifier(run: FinishedRun, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """What config.json says besides; the head goes into `tensors`."""
    head, labels = run.model.head, run.data["labels"]
    assert isinstance(head, nn.Linear)
    tensors["score.weight"] = _plain(head.weight)
    config = {
        "architectures": ["GPT2ForSequenceClassification"],
        "problem_type": "single_label_classification",
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
    }
    if is_stock(run) and (shift := folded(head)) is not None:
        tensors["transformer.ln_f.bias"] = tensors["transformer.ln_f.bias"] + shift
        return config
    tensors["score.bias"] = _plain(head.bias)
    name = "TwoWaysForSequenceClassification"
    return config | {
        "architectures": [name],
        "model_type": "two_ways_gpt2",  # one that transformers has not: it would load its own class without a word
        "auto_map": {
            "AutoConfig": f"{CODE.stem}.TwoWaysConfig",
            "AutoModelForSequenceClassification": f"{CODE.stem}.{name}",
        },
        "pooling": run.pooling,
        "causal": run.model.gpt.config.causal,
        "reads_padding": run.reads_padding,
        "width": run.data["width"] if run.reads_padding else None,
    }


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().float().cpu().contiguous()


def _dump(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
