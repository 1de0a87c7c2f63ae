"""Exported runs: what transformers, tokenizers, onnxruntime and a hub make of them, without this code."""

import base64
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from torch import nn

from src.config import build
from src.data.datasets import BUNDLED, SmsSpam
from src.data.tokenizer import END_OF_TEXT, decode, encode
from src.errors import InputError
from src.export import export
from src.exporting import hub, model_card, onnx_file, transformers_folder
from src.exporting.finished_run import FinishedRun
from src.gpt.generation import Decoder
from src.predict import predict_texts
from src.sweeps import study
from src.train import train

ROOT = Path(__file__).parents[2]
TINY = [
    *("gpt.weights=random", "gpt.n_layer=2", "gpt.n_head=2", "gpt.n_embd=16", "gpt.context_length=64"),
    *("trainer.max_epochs=2", "trainer.accelerator=cpu", "optimizer.lr=1e-2"),
    *("data=table", "data.split=deduplicated", "data.max_length=32", "logger=none", "cache=off"),
]
ALL = "task.trainable=all"
PROMPTED = ("data.max_length=48", 'data.instruction="Is it spam?"')
STOCK = {
    "last_nonpad": (ALL, "task.pooling=last_nonpad"),
    "lora": ("task.trainable=lora", "task.pooling=last_nonpad"),
    "no_padding": (ALL, "task.pooling=last", "data.padding=none", "data.batch_size=1"),
    "prompted": (ALL, "task.pooling=last_nonpad", "task.prompt=instruction", "task.head=answers", *PROMPTED),
}
CUSTOM = {
    "last": (ALL, "task.pooling=last"),
    "mean": (ALL, "task.pooling=mean"),
    "first": (ALL, "task.pooling=first"),
    "padded_as_the_batch": (ALL, "task.pooling=last", "data.padding=batch"),
    "mean_without_padding": (ALL, "task.pooling=mean", "data.padding=none", "data.batch_size=1"),
    "no_causal_mask": (ALL, "task.pooling=last_nonpad", "gpt.causal=false"),
    "no_causal_mask_no_padding": (ALL, "gpt.causal=false", "data.padding=none", "data.batch_size=1"),
}
INSTRUCT = {
    "instruct": ("task=instruct", ALL, *PROMPTED),
    "instruct_last_layer": ("task=instruct", "task.trainable=last_layer", "trainer.max_epochs=4", *PROMPTED),
}
KINDS = STOCK | CUSTOM | INSTRUCT
TEXTS = ["free prize call now", "a", "see you soon " * 40, "call <|endoftext|> now", "<|endoftext|>"]
TEXTS += ["Grüße, 你好  \n\n 🎉!", " lunch ", "win cash"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, uncounted: None) -> Path:
    """A folder with messages.tsv: 30 ham, 30 spam, a few of them long."""
    folder = tmp_path_factory.mktemp("export")
    words = {"ham": "see you at lunch, ok", "spam": "claim your free prize"}
    rows = [f"{label}\t{text} {'ha ' * (i % 7 * 8)}{chr(97 + i)}" for i in range(26) for label, text in words.items()]
    (folder / "messages.tsv").write_text("label\ttext\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return folder


class Trained:
    """Runs of this file by kind, each trained when it is first asked for."""

    def __init__(self, home: Path) -> None:
        self.home, self.ids = home, dict[str, str]()

    def __getitem__(self, kind: str) -> FinishedRun:
        if kind not in self.ids:
            given = [*TINY, f"data.path={self.home / 'messages.tsv'}", f"runs={self.home / 'runs'}", f"name={kind}"]
            cfg = study.config(study.Trial({}, (*given, *KINDS[kind])))
            self.ids[kind] = train(cfg).folder.name
        return FinishedRun.load(self.home / "runs", self.ids[kind])

    def export(self, kind: str, to: Path, **options: Any) -> Path:
        self[kind]
        export(self.ids[kind], to, runs=self.home / "runs", **options)
        return to


@pytest.fixture(scope="module")
def trained(home: Path) -> Trained:
    return Trained(home)


@pytest.fixture(scope="module")
def stock(trained: Trained, home: Path) -> Path:
    return trained.export("last_nonpad", home / "exported" / "stock")


def fresh(code: str, given: Any, home: Path) -> Any:
    """What Python code prints as JSON, given JSON, in a process that knows nothing of this project or of a network."""
    plain = {"HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"]}
    code = "import importlib.util, json, sys\nassert importlib.util.find_spec('src') is None\n" + code
    line, given = [sys.executable, "-I", "-c", code], json.dumps(given)
    done = subprocess.run(line, input=given, capture_output=True, text=True, cwd=home, env=plain)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def example(folder: Path) -> str:
    """The Python code of a card, of a model that lies in `folder`."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    return code.replace(model_card.HERE, str(folder))


# ---- the folder


def test_an_exported_folder_holds_these_files_readable_by_all(stock):
    files = {path.name: path.stat().st_mode for path in stock.iterdir()}
    assert files.keys() == {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert len(set(files.values())) == 1
    assert list(stock.parent.iterdir()) == [stock]


def test_the_tokenizer_file_gives_our_ids(stock):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(stock / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    texts = [*TEXTS, *BUNDLED.read_text(encoding="utf-8").splitlines()[:300], "it's  3,000\t\r\n x²"]
    assert [one.ids for one in tokenizer.encode_batch(texts)] == encode(texts)


def test_a_bias_is_folded_into_the_final_norm_where_that_can_be():
    torch.manual_seed(0)
    head = nn.Linear(16, 3)
    folded = transformers_folder.folded(head)
    x = torch.randn(5, 16)
    torch.testing.assert_close((x + folded) @ head.weight.T, head(x), rtol=0, atol=1e-5)
    assert transformers_folder.folded(nn.Linear(2, 3)) is None  # more classes than channels


def test_a_card_says_what_the_run_measured(stock, trained):
    run, card = trained["last_nonpad"], ModelCard.load(stock / "README.md")
    tested = run.result["metrics"]["test"]
    results = {one.metric_type: one.metric_value for one in card.data.eval_results}
    assert results == {name: tested[name] for name in ("accuracy", "f1", "ece")}
    for said in (run.result["id"], run.result["data"]["sha256"], "95% interval", "Seed 123", "Left padding is not"):
        assert said in card.text
    assert str(trained.home) not in card.content


def test_a_card_is_sound_whatever_the_labels_and_the_prompt_are(trained):
    run = trained["last_nonpad"]
    data = run.result["data"] | {"labels": ["a|b", '"<script>\n: {{ x }}'], "name": "`x`: - |"}
    card = model_card.card(replace(run, result=run.result | {"data": data}), "me/mine", onnx=True)
    assert r"a\|b" in card.text
    assert "<script" not in card.text
    assert ModelCard(card.content).data.model_name == run.result["id"]
    assert eval(model_card._python("``` \n'\"")) == "``` \n'\""  # of which no mark can end the card's code
    assert "`" not in model_card._python("```")
    for split in SmsSpam.SPLITS:
        told = replace(run, result=run.result | {"data": run.result["data"] | {"split": split}})
        assert model_card.LEAKS[split] in model_card.card(told, None, onnx=False).text


@pytest.mark.parametrize("taken", ["file", "folder"])
def test_what_is_there_already_is_not_written_over(trained, tmp_path, taken):
    to = tmp_path / "to"
    mine = to / "mine" if taken == "folder" else to
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    with pytest.raises(InputError, match="to="):
        trained.export("last_nonpad", to)
    assert mine.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [to]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("no space left")])
def test_an_export_that_fails_leaves_nothing(trained, tmp_path, monkeypatch, error):
    def fails(run: FinishedRun, folder: Path) -> None:
        (folder / "model.safetensors").write_text("half")
        raise error

    monkeypatch.setattr(transformers_folder, "write", fails)
    with pytest.raises((KeyboardInterrupt, InputError)):
        trained.export("last_nonpad", tmp_path / "to")
    assert list(tmp_path.iterdir()) == []


# ---- transformers, without this project

CLASSIFY = """
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

given, said = json.load(sys.stdin), {}
texts = given["texts"]
for name, (folder, remote) in given["folders"].items():
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=remote)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    classify = pipeline("text-classification", folder, trust_remote_code=remote)

    @torch.no_grad()
    def logits(texts):
        return model(**tokenizer(texts, padding=True, truncation=True, return_tensors="pt")).logits.tolist()

    def probabilities(batch_size):
        answers = classify(texts, truncation=True, top_k=None, batch_size=batch_size)
        return [[one["score"] for one in sorted(answer, key=lambda one: one["label"])] for answer in answers]

    said[name] = {"class": type(model).__name__, "labels": list(model.config.id2label.values())}
    said[name] |= {"1": [logits([text])[0] for text in texts], "8": logits(texts)}
    said[name] |= {"pipeline 1": probabilities(1), "pipeline 8": probabilities(8)}
    exec(given["examples"][name])  # of its card
    said[name]["example"] = classify("see you", truncation=True)[0]["label"]

folder, _ = given["folders"]["last"]
model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
ids = torch.ones(1, 40, dtype=torch.long)
for call, what in (
    (lambda: AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=False), "untrusted"),
    (lambda: model(ids), "too long"),
    (lambda: model(ids[:, :2], attention_mask=torch.tensor([[0, 1]])), "padded on the left"),
):
    try:
        call()
    except ValueError as error:
        said[what] = str(error)
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def classified(trained: Trained, home: Path) -> dict[str, Any]:
    """What a fresh process says of TEXTS with every exported classifier."""
    folders = {kind: (str(trained.export(kind, home / kind)), kind in CUSTOM) for kind in STOCK | CUSTOM}
    examples = {kind: example(home / kind) for kind in folders}
    return fresh(CLASSIFY, {"texts": TEXTS, "folders": folders, "examples": examples}, home)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*STOCK, *CUSTOM])
def test_transformers_gives_our_logits(kind, trained, classified):
    run, said = trained[kind], classified[kind]
    alone = torch.cat([logits(run, [text]) for text in TEXTS])
    together = logits(run, TEXTS) if run.padding == "batch" else alone
    assert said["class"] == ("TwoWays" if kind in CUSTOM else "GPT2") + "ForSequenceClassification"
    assert said["labels"] == run.data["labels"]
    assert said["example"] in said["labels"]
    predicted = [next(predict_texts(trained.ids[kind], [text], str(trained.home / "runs"))) for text in TEXTS]
    probabilities = [list(one["probabilities"].values()) for one in predicted]
    for found, expected in (
        (said["1"], alone),
        (said["8"], together),
        (said["pipeline 1"], alone.softmax(-1)),
        (said["pipeline 8"], together.softmax(-1)),
        (probabilities, alone.softmax(-1)),
    ):
        torch.testing.assert_close(torch.tensor(found), expected, rtol=0, atol=1e-4)


@torch.inference_mode()
def logits(run: FinishedRun, texts: list[str]) -> torch.Tensor:
    """Those of the run's own model, adapters apart, in the order of the texts."""
    model = build.restore(Path(run.cfg.runs) / run.result["id"])
    parts = zip(*(model.predict_step(batch, 0) for batch in run.batches(encode(texts))), strict=True)
    rows, found, _ = map(torch.cat, parts)
    return found[rows.argsort()]


@pytest.mark.slow
def test_a_foreign_architecture_is_not_taken_for_a_stock_one_and_refuses_what_it_cannot_read(classified):
    assert "trust_remote_code" in classified["untrusted"]
    assert "truncation=True" in classified["too long"]
    assert "padding_side='right'" in classified["padded on the left"]


@pytest.mark.slow
def test_the_code_of_a_card_answers_as_an_instruct_run_does(trained, home):
    code = """
given = json.load(sys.stdin)
said = {}
for name, example in given["examples"].items():
    exec(example)
    said[name] = [answer(text) for text in given["texts"]]
print(json.dumps(said))
"""
    examples = {kind: example(trained.export(kind, home / kind)) for kind in INSTRUCT}
    said = fresh(code, {"texts": TEXTS, "examples": examples}, home)
    assert said == {kind: written(trained[kind], TEXTS) for kind in INSTRUCT}
    assert all(any(words) for words in said.values())


def written(run: FinishedRun, texts: list[str]) -> list[str]:
    """What an instruct run writes about each text, by greedy decoding."""
    words, room = [""] * len(texts), run.model.answers.shape[1]
    for batch in run.batches(encode(texts)):
        decoder = Decoder(run.model.gpt, batch.ids, batch.length, room, run.model.logits)
        for row, ids in zip(batch.row.tolist(), decoder.generate(room, END_OF_TEXT), strict=True):
            words[row] = decode(ids).strip()
    return words


# ---- ONNX


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["last_nonpad", "last", "no_causal_mask_no_padding", "instruct"])
def test_an_onnx_file_gives_our_logits_for_any_batch_and_length(kind, trained, tmp_path):
    from onnxruntime import InferenceSession

    run = trained[kind]
    session = InferenceSession(trained.export(kind, tmp_path / "to", onnx=True) / "onnx" / "model.onnx")
    graph = onnx_file.Graph(run)
    for B, T in ((1, 1), (1, 7), (8, 20), (3, 32)):
        ids, real = torch.randint(50_000, (B, T)), torch.ones(B, T, dtype=torch.long)
        real[0, (T + 1) // 2 :] = 0
        (found,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": real.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), graph(ids, real), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_an_onnx_file_of_other_probabilities_is_not_kept(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file.Graph, "_pooled", lambda graph, hidden, real, length: hidden[:, 0])
    with pytest.raises(InputError, match="onnx=true"):
        trained.export("last_nonpad", tmp_path / "to", onnx=True)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(onnx_file, "PACKAGES", ("no_such_package",))
    with pytest.raises(InputError, match="no_such_package"):
        onnx_file.check()


# ---- the hub


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a push needs: large files go to /lfs, small ones stand in the commit."""

    pushed: dict[str, bytes]
    created: list[dict[str, Any]]
    refuses = False

    def log_message(self, *of: Any) -> None:
        pass

    def answer(self, status: int, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if not self.path.endswith("/whoami-v2"):
            self.answer(404, {"error": "Repository not found"})
            return
        known = self.headers["Authorization"] == "Bearer hf_right"
        self.answer(200 if known else 401, {"name": "me", "type": "user"} if known else {"error": "Invalid token"})

    def do_PUT(self) -> None:
        self.pushed[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(200, {})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        here = f"http://{self.headers['Host']}"
        if self.path.endswith("/repos/create"):
            self.created.append(json.loads(body))
            self.answer(403 if self.refuses else 200, {"url": f"{here}/me/mine", "name": "me/mine", "error": "no room"})
        elif "/preupload/" in self.path:
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": p, "uploadMode": "lfs" if p.endswith(".safetensors") else "regular"} for p in files]
            self.answer(200, {"files": [{**mode, "shouldIgnore": False} for mode in modes]})
        elif self.path.endswith("/objects/batch"):
            (file,) = json.loads(body)["objects"]
            upload = {"upload": {"href": f"{here}/lfs"}}
            self.answer(200, {"transfer": "basic", "objects": [{**file, "actions": upload}]})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.pushed[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer(200, {"commitUrl": f"{here}/me/mine/commit/1", "commitOid": "1", "pullRequestUrl": None})
        else:
            self.answer(200, {"errors": [], "warnings": []})  # of the card's metadata


@pytest.fixture
def server() -> Iterator[tuple[type[Hub], str]]:
    """A hub on loopback, and its address."""
    handler = type("OneHub", (Hub,), {"pushed": {}, "created": []})
    listening = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    yield handler, f"http://127.0.0.1:{listening.server_port}"
    listening.shutdown()
    thread.join()
    listening.server_close()


def push(folder: Path, home: Path, repo: str = "me/mine", **environment: str) -> tuple[str, str]:
    """What pushing a folder prints, and what is wrong with it, in a process with that environment."""
    code = """
import sys
from pathlib import Path
from src.errors import InputError
from src.exporting import hub
try:
    hub.check(sys.argv[2])
    print(hub.push(Path(sys.argv[1]), sys.argv[2], "run"))
except InputError as error:
    print(error, file=sys.stderr)
"""
    plain = {"HF_HOME": str(home / "hf"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    line, environment = [sys.executable, "-c", code, str(folder), repo], plain | environment
    environment["PATH"] = os.environ["PATH"]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=environment)
    return done.stdout.strip(), done.stderr.strip()


def test_a_push_sends_every_file_to_a_private_repository(stock, home, server):
    seen, address = server
    out, error = push(stock, home, HF_ENDPOINT=address, HF_TOKEN="hf_right")
    assert (out, error) == (f"{address}/me/mine", "")
    assert [made.get("private") or made["visibility"] == "private" for made in seen.created] == [True]
    files = {path.name: path.read_bytes() for path in stock.iterdir()}
    files["/lfs"] = files.pop("model.safetensors")
    assert seen.pushed == files


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"HF_TOKEN": ""}, "hub= needs a token"),
        ({"HF_TOKEN": "hf_wrong"}, "does not accept the token"),
        ({"HF_TOKEN": "hf_right", "HF_HUB_OFFLINE": "1"}, "cannot be reached"),
        ({"HF_TOKEN": "hf_right", "HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot be reached"),
    ],
)
def test_where_nothing_can_be_pushed_one_sentence_says_so(stock, home, server, environment, said):
    seen, address = server
    out, error = push(stock, home, **{"HF_ENDPOINT": address, **environment})
    assert (out, len(error.splitlines()), seen.created) == ("", 1, [])
    assert said in error


def test_a_push_that_is_refused_says_where_the_folder_is(stock, home, server):
    seen, address = server
    seen.refuses = True
    out, error = push(stock, home, HF_ENDPOINT=address, HF_TOKEN="hf_right")
    assert (out, len(error.splitlines())) == ("", 1)
    assert f"hf upload me/mine {stock}" in error


@pytest.mark.parametrize("name", ["mine", "a/b/c", "me/", "me/m ne", ""])
def test_a_name_that_the_hub_cannot_have_is_refused(name):
    with pytest.raises(InputError, match="hub="):
        hub.check(name)


def test_weights_are_those_of_the_run(stock, trained):
    run, stored = trained["last_nonpad"], load_file(stock / "model.safetensors")
    torch.testing.assert_close(stored["score.weight"], run.model.head.weight.detach(), rtol=0, atol=0)
    moved = stored["transformer.ln_f.bias"] - run.model.gpt.final_norm.bias.detach()
    torch.testing.assert_close(stored["score.weight"] @ moved, run.model.head.bias.detach(), rtol=0, atol=1e-5)
