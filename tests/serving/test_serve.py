"""Serving: the page and its JSON, whatever a client sends, many clients at once, and a browser."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import uvicorn
from starlette.testclient import TestClient

from src.data.tokenizer import tokenizer
from src.errors import InputError
from src.predict import predict_texts
from src.predict import write as written_by_predict
from src.serve import Options, allowed_hosts, bound, load
from src.serving import predictor, requests, word_attribution
from src.serving.app import OPENAPI, application
from src.serving.worker import Worker
from src.sweeps import study
from src.train import train

ROOT = Path(__file__).parents[2]
TINY = [
    *("gpt.weights=random", "gpt.n_layer=2", "gpt.n_head=2", "gpt.n_embd=16", "gpt.context_length=128"),
    *("trainer.max_epochs=2", "trainer.accelerator=cpu", "optimizer.lr=1e-2", "task.trainable=all"),
    *("data=table", "data.split=deduplicated", "logger=none", "cache=off"),
]
KINDS = {
    "classify": ("data.max_length=32", "task.pooling=last_nonpad"),
    "instruct": ("task=instruct", "data.max_length=48", 'data.instruction="Is it spam?"'),
    "sorted": ("task=instruct", "data.max_length=48", "data.answers={ham: fine, spam: junk}", "seed=7"),
    "batch": ("data.max_length=32", "task.pooling=last", "data.padding=batch"),
}
TEXTS = [
    "free prize call now",
    "see you at lunch",
    "a",
    "Grüße, 你好 🎉!",
    "call <|endoftext|> now",
    "<b>win</b> & cash",
]
FORM = {"Content-Type": requests.FORM}
HOST = "http://127.0.0.1"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, uncounted: None) -> Path:
    """A folder with messages.tsv: 26 ham, 26 spam."""
    folder = tmp_path_factory.mktemp("serve")
    said = {"ham": "see you at lunch, ok", "spam": "claim your free prize"}
    rows = [f"{label}\t{text} {'ha ' * (i % 7 * 4)}{chr(97 + i)}" for i in range(26) for label, text in said.items()]
    (folder / "messages.tsv").write_text("label\ttext\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(home: Path) -> Callable[[str], str]:
    """The id of a run of that kind, trained when it is first asked for."""
    ids: dict[str, str] = {}

    def trained(kind: str) -> str:
        if kind not in ids:
            given = [*TINY, f"data.path={home / 'messages.tsv'}", f"runs={home / 'runs'}", f"name={kind}"]
            cfg = study.config(study.Trial({}, (*given, *KINDS[kind])))
            ids[kind] = train(cfg).folder.name
        return ids[kind]

    return trained


@pytest.fixture(scope="module")
def options(home: Path, run: Callable[[str], str]) -> Options:
    return Options(run=run("classify"), instruct=run("instruct"), runs=str(home / "runs"))


@pytest.fixture(scope="module")
def client(options: Options) -> Iterator[TestClient]:
    app = application(load(options), allowed_hosts("127.0.0.1"))
    with TestClient(app, base_url=HOST, raise_server_exceptions=False) as made:
        yield made


@pytest.fixture(scope="module")
def expected(options: Options) -> dict[str, dict[str, dict[str, Any]]]:
    """What predict says of TEXTS: by text, then by option."""
    runs = {"run": options.run, "instruct": options.instruct or ""}
    each = {option: list(predict_texts(name, TEXTS, options.runs)) for option, name in runs.items()}
    return {text: {option: found[i] for option, found in each.items()} for i, text in enumerate(TEXTS)}


def close(answer: dict[str, Any]) -> Any:
    """An answer whose probabilities need agree only as far as fp32 sums do, which depend on the batch."""
    return {
        option: own
        | {"probability": pytest.approx(own["probability"], abs=1e-5)}
        | {"probabilities": pytest.approx(own["probabilities"], abs=1e-5)}
        for option, own in answer.items()
    }


class Seen(HTMLParser):
    """What a browser would make of a page: its tags with their attributes, and its text by the card it stands in."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.card, self.texts = "", dict[str, str]()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.card = dict(attrs).get("id") or self.card if tag in ("article", "section") else self.card

    def handle_data(self, data: str) -> None:
        self.texts[self.card] = self.texts.get(self.card, "") + data


# ---- answers


def test_health_names_the_runs(client, options):
    assert client.get("/health").json() == {"status": "ok", "run": options.run, "instruct": options.instruct}


def test_one_message_and_a_list_are_answered_as_by_predict(client, expected):
    one = client.post("/predict", json={"text": TEXTS[0]})
    assert (one.status_code, one.json()) == (200, close(expected[TEXTS[0]]))
    several = client.post("/predict", json={"text": TEXTS})
    assert several.json() == {"answers": [close(expected[text]) for text in TEXTS]}


def test_a_prompt_is_continued_as_by_predict(client, options):
    prompt = "Once upon a time"
    written = written_by_predict(options.instruct or "", prompt, predictor.NEW_TOKENS, options.runs)
    assert client.post("/write", json={"prompt": prompt}).json() == {"prompt": prompt, "written": written}


def test_a_list_has_256_messages_at_most(client):
    assert len(client.post("/predict", json={"text": ["a"] * 256}).json()["answers"]) == 256
    assert client.post("/predict", json={"text": ["a"] * 257}).status_code == 422


def test_where_padding_is_read_requests_are_not_answered_together(home, run):
    runs = str(home / "runs")
    (one,) = load(Options(run=run("batch"), runs=runs)).values()
    worker = Worker()
    asked = [["a"], ["see you at lunch " * 4], TEXTS]
    results = [worker.ask(one.answers, texts, alone=one.answers_depend_on_each_other) for texts in asked]
    worker.start()
    worker.stop()
    for texts, result in zip(asked, results, strict=True):
        alone = list(predict_texts(run("batch"), texts, runs))
        assert [close({"run": found}) for found in alone] == [{"run": found} for found in result.result()]


def test_requests_that_wait_are_one_batch():
    worker, calls = Worker(), list[list[int]]()

    def double(items: list[int]) -> list[int]:
        calls.append(items)
        return [2 * item for item in items]

    results = [worker.ask(double, [i, 10 + i]) for i in range(3)]
    worker.start()
    worker.stop()
    assert [result.result() for result in results] == [[0, 20], [2, 22], [4, 24]]
    assert calls == [[0, 10, 1, 11, 2, 12]]


def test_a_fault_is_told_to_those_who_wait_and_the_next_are_answered():
    worker = Worker()
    worker.start()
    with pytest.raises(ZeroDivisionError):
        worker.ask(lambda items: [1 / item for item in items], [1, 0]).result()
    assert worker.ask(lambda items: items, [1, 0]).result() == [1, 0]
    worker.stop()


# ---- wrong requests


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b'{"text": ""}', 422, "empty"),
        (b'{"text": " \\n\\t"}', 422, "empty"),
        (b'{"text": ["a", ""]}', 422, "message 2"),
        (b'{"text": []}', 422, "1 to 256"),
        (b'{"text": ["a", null]}', 422, "message 2"),
        (b'{"text": 3}', 422, "must be a text"),
        (b'{"text": {"a": 1}}', 422, "must be a text"),
        (b'{"text": "a", "more": 1}', 422, '"text"'),
        (b'{"message": "a"}', 422, '"text"'),
        (b'["a"]', 422, '"text"'),
        (b"", 400, "no JSON"),
        (b'{"text": ', 400, "no JSON"),
        (b'{"text": ' + b"1" * 5000 + b"}", 400, "no JSON"),
        (b"[" * 200_000, 400, "nested"),
        (b'{"text": "\xff"}', 400, "UTF-8"),
        (b'{"text": "\\ud800"}', 400, "surrogate"),
        (json.dumps({"text": "see you soon " * 40}).encode(), 422, "too long"),
        (json.dumps({"text": "a" * 900_000}).encode(), 422, "too long"),
        (b" " * 1_000_001, 413, "1,000,000"),
        (b" " * 20_000_000, 413, "1,000,000"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_a_wrong_body_is_refused_in_a_sentence(client, body, status, said):
    answer = client.post("/predict", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert said in answer.json()["error"]


def test_a_body_without_a_length_is_measured_too(client):
    chunks = (b" " * 100_000 for _ in range(11))
    answer = client.post("/predict", content=chunks, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", "/predict", {"Content-Type": "text/plain"}, 415),
        ("POST", "/write", FORM, 415),
        ("GET", "/predict", {}, 405),
        ("GET", "/nothing", {}, 404),
        ("GET", "/", {"Host": "evil.example"}, 400),
        ("GET", "/", {"Host": "127.0.0.1.evil.example:8000"}, 400),
        ("POST", "/predict", {"Host": "evil.example", "Content-Type": "application/json"}, 400),
        ("POST", "/predict", {"Origin": "https://evil.example", "Content-Type": "application/json"}, 403),
        ("POST", "/predict", {"Origin": "null", **FORM}, 403),
        ("POST", "/predict", {"Origin": "http://[", **FORM}, 403),
        ("OPTIONS", "/predict", {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}, 405),
    ],
)
def test_other_methods_types_names_and_sites_are_refused(client, method, path, headers, status):
    answer = client.request(method, path, headers=headers, content=b'{"text": "a"}' if method == "POST" else None)
    assert answer.status_code == status
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "LOCALHOST", "[::1]:8000"])
def test_names_of_this_machine_are_answered(client, host):
    assert client.get("/health", headers={"Host": host}).status_code == 200


def test_a_prompt_that_leaves_no_room_is_refused(client):
    answer = client.post("/write", json={"prompt": "see you soon " * 40})
    assert (answer.status_code, "too long" in answer.json()["error"]) == (422, True)


def test_the_longest_token_is_as_long_as_it_is_said_to_be():
    assert max(map(len, tokenizer().token_byte_values())) == predictor.LONGEST_TOKEN


# ---- the page


def test_the_page_shows_both_cards_before_and_after_a_message(client, options):
    before = Seen(client.get("/").text)
    assert {"run-card", "instruct-card", "free-card"} <= before.texts.keys()
    answer = client.post("/predict", content=urlencode({"text": TEXTS[0], "message": "1"}), headers=FORM)
    seen = Seen(answer.text)
    assert answer.status_code == 200
    for card, run in (("run-card", options.run), ("instruct-card", options.instruct)):
        for said in (run or "", "ham", "spam", "n = ", "95% interval", "TFLOP", "free prize", "erasure"):
            assert said in seen.texts[card]
    assert "can say nothing else" in seen.texts["run-card"]
    assert "It writes" in seen.texts["instruct-card"]


def test_the_page_needs_no_script_and_nothing_from_elsewhere(client):
    answer = client.get("/")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "script" not in {tag for tag, _ in Seen(answer.text).tags}
    links = [value for _, given in Seen(answer.text).tags for name, value in given.items() if name in ("src", "href")]
    assert all(link and (link.startswith("data:") or link.startswith("/")) for link in links)
    assert "http" not in answer.text


def test_an_example_is_asked_in_place_of_the_message(client):
    examples = [given["value"] for tag, given in Seen(client.get("/").text).tags if given.get("name") == "example"]
    fields = {"text": "something else", "example": examples[0] or ""}
    seen = Seen(client.post("/predict", content=urlencode(fields), headers=FORM).text)
    assert examples[0] == "Claim your prize now"
    assert examples[0] in seen.texts["run-card"]
    assert "something else" not in seen.texts["run-card"]


@pytest.mark.parametrize("text", ['<script>alert("1")</script>', "</textarea><img src=x>", "\" ' & < >", "{{ 7 * 7 }}"])
def test_texts_are_escaped(client, text):
    fields = {"text": text, "prompt": text, "free": "1"}
    answer = client.post("/predict", content=urlencode(fields), headers=FORM)
    seen = Seen(answer.text)
    assert answer.status_code == 200
    assert not {"script", "img"} & {tag for tag, _ in seen.tags}
    assert text in seen.texts["run-card"]
    assert text in seen.texts["free-card"]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"text=", 422, "empty"),
        (b"text=%FF", 400, "UTF-8"),
        (urlencode({"text": "see you soon " * 40}).encode(), 422, "too long"),
        (b"text=" + b"a" * 1_000_000, 413, "1,000,000"),
        (b"free=1&prompt=+", 422, "empty"),
        (b"&".join(b"a=1" for _ in range(100)), 400, "fields"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_a_wrong_form_is_refused_in_a_sentence(client, body, status, said):
    answer = client.post("/predict", content=body, headers=FORM)
    assert answer.status_code == status
    assert said in answer.text


def test_a_free_prompt_is_continued_on_the_page(client):
    fields = {"text": "", "prompt": "Once upon a time", "free": "1"}
    answer = client.post("/predict", content=urlencode(fields), headers=FORM)
    assert ("continuation" in {given.get("id") for _, given in Seen(answer.text).tags}, answer.status_code) == (
        True,
        200,
    )


@pytest.mark.slow
def test_of_two_instruct_runs_each_card_shows_what_its_own_writes(options, run):
    served = load(Options(run=run("sorted"), instruct=options.instruct, runs=options.runs))
    with TestClient(application(served, ["127.0.0.1"]), base_url=HOST) as both:
        seen = Seen(both.post("/predict", content=urlencode({"text": TEXTS[0], "message": "1"}), headers=FORM).text)
        for option, one in served.items():
            assert one.written_answers([TEXTS[0]])[0] in seen.texts[f"{option}-card"].partition("It writes")[2]
        prompt = both.post("/write", json={"prompt": "Hello"}).json()
    assert prompt["written"] == served["instruct"].continuations(["Hello"])[0]
    assert prompt["written"] != served["run"].continuations(["Hello"])[0]


def test_a_classifier_alone_writes_nothing(options):
    app = application(load(Options(run=options.run, runs=options.runs)), ["127.0.0.1"])
    with TestClient(app, base_url=HOST) as alone:
        assert "free-card" not in Seen(alone.get("/").text).texts
        answer = alone.post("/write", json={"prompt": "Hello"})
        assert (answer.status_code, "instruct=" in answer.json()["error"]) == (422, True)
        assert alone.post("/predict", json={"text": "a"}).json().keys() == {"run"}


def test_openapi_describes_every_route(client):
    described = client.get("/openapi.json").json()
    assert described == json.loads(OPENAPI.read_text(encoding="utf-8"))
    methods = {(path, method.upper()) for path, item in described["paths"].items() for method in item}
    assert methods == {("/predict", "POST"), ("/write", "POST"), ("/health", "GET")}


# ---- which words


def test_a_word_is_worth_what_the_log_odds_lose_without_it():
    def answer(p: float) -> dict[str, Any]:
        return {"label": "spam", "probabilities": {"spam": p, "ham": 1 - p}}

    parts = word_attribution.pieces(" free prize\nnow")
    assert (parts, word_attribution.without_each(parts)) == (
        [" free ", "prize\n", "now"],
        ["prize\nnow", " free now", " free prize\n"],
    )
    found = word_attribution.moved(parts, [answer(0.5), answer(0.2), answer(0.8), answer(0.5)])
    assert [piece.moved for piece in found] == pytest.approx([1.3863, -1.3863, 0], abs=1e-4)
    assert [piece.strength for piece in found] == [4, -4, 0]


@pytest.mark.parametrize("n", [1, 2, 32, 33, 500])
def test_pieces_are_few_and_make_up_the_message(n):
    text = "  " + "word\t" * n + "\n"
    parts = word_attribution.pieces(text)
    assert "".join(parts) == text
    assert len(parts) <= word_attribution.MOST
    assert len(word_attribution.without_each(parts)) == (len(parts) if n > 1 else 0)


def test_a_certain_answer_has_words_too():
    sure: dict[str, Any] = {"label": "spam", "probabilities": {"spam": 1.0, "ham": 0.0}}
    assert [piece.strength for piece in word_attribution.moved(["a ", "b"], [sure, sure, sure])] == [0, 0]


# ---- the command line


def test_wrong_options_are_named(options, run):
    with pytest.raises(InputError, match=r"instruct=.* has a head"):
        load(Options(run=options.run, instruct=options.run, runs=options.runs))
    with pytest.raises(InputError, match="is no run"):
        load(Options(run="nothing", runs=options.runs))
    with bound("127.0.0.1", 0) as taken:
        taken.listen()
        with pytest.raises(InputError, match="port="):
            bound("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(InputError, match="port=70000"):
        bound("127.0.0.1", 70000)


def test_beyond_loopback_the_machines_own_names_are_allowed():
    assert {"localhost", "127.0.0.1", "[::1]", "0.0.0.0", socket.gethostname()} <= set(allowed_hosts("0.0.0.0"))
    assert "*" not in allowed_hosts("0.0.0.0")


# ---- many clients, and a browser


@contextmanager
def serving(options: Options) -> Iterator[str]:
    """The address of a real server, in a thread."""
    app = application(load(options), allowed_hosts("127.0.0.1"))
    with bound("127.0.0.1", 0) as made:
        made.listen(128)
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [made]})
        thread.start()
        try:
            yield f"{HOST}:{made.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def post(address: str, path: str, given: Any) -> Any:
    request = urllib.request.Request(
        address + path, json.dumps(given).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_16_clients_at_once_get_their_own_answers(options, expected):
    def ask(number: int) -> None:
        for i in range(6):
            text = TEXTS[(number + i) % len(TEXTS)]
            if (number + i) % 3:
                assert post(address, "/predict", {"text": text}) == close(expected[text])
            else:
                several = [text, *TEXTS]
                found = post(address, "/predict", {"text": several})
                assert found == {"answers": [close(expected[one]) for one in several]}

    with serving(options) as address, ThreadPoolExecutor(16) as clients:
        list(clients.map(ask, range(16)))


@pytest.mark.slow
def test_memory_does_not_grow_and_the_command_ends(options):
    given = [f"run={options.run}", f"instruct={options.instruct}", f"runs={options.runs}", "port=0"]
    server = subprocess.Popen([sys.executable, "-m", "src.serve", *given], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert server.stdout is not None
    try:
        address = server.stdout.readline().split()[0]

        def ask(n: int) -> None:
            with ThreadPoolExecutor(16) as clients:
                list(clients.map(lambda i: post(address, "/predict", {"text": TEXTS * (1 + i % 6)}), range(n)))

        ask(64)
        before = resident(server.pid)
        ask(128)
        assert resident(server.pid) - before < 30_000_000
    finally:
        server.terminate()
    assert server.wait(20) == 143


def resident(pid: int) -> int:
    """Bytes of memory that a process has (man 5 proc_pid_statm)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


class Browser:
    """Headless Chromium, driven over a pipe by its DevTools protocol, one command after the other; `asked` holds the
    address of every request it made."""

    FLAGS = (
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
        *("--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe"),
    )

    def __init__(self, chromium: str, folder: Path) -> None:
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        command = ["bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out} 2>/dev/null', "bash", chromium]
        self.process = subprocess.Popen(
            [*command, *self.FLAGS, f"--user-data-dir={folder}"], pass_fds=(theirs_in, theirs_out)
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.out, self.into = os.fdopen(ours_out, "wb", buffering=0), os.fdopen(ours_in, "rb")
        self.number, self.asked, self.loaded, self.session = 0, list[str](), 0, {}
        target = self.do("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self.do("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Network"):
            self.do(f"{domain}.enable")

    def do(self, method: str, **parameters: Any) -> Any:
        """The result of a command."""
        self.number += 1
        self.out.write(
            json.dumps({"id": self.number, "method": method, "params": parameters, **self.session}).encode() + b"\0"
        )
        while (told := self._next()).get("id") != self.number:
            pass
        assert "error" not in told, told
        return told["result"]

    def after_loading(self, act: Callable[[], object]) -> None:
        """Do what loads a page, and wait until it has."""
        before = self.loaded
        act()
        while self.loaded == before:
            self._next()

    def js(self, expression: str) -> Any:
        """The value of an expression in the page."""
        found = self.do("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def close(self) -> None:
        """End it."""
        self.do("Browser.close")
        self.process.wait(20)
        self.out.close()
        self.into.close()

    def _next(self) -> dict[str, Any]:
        line = bytearray()
        while (byte := self.into.read(1)) != b"\0":
            assert byte, "Chromium ended"
            line += byte
        told: dict[str, Any] = json.loads(line)
        self.loaded += told.get("method") == "Page.loadEventFired"
        if told.get("method") == "Network.requestWillBeSent":
            self.asked.append(told["params"]["request"]["url"])
        return told


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("there is no Chromium on this machine")
    made = Browser(chromium, tmp_path)
    yield made
    made.close()


@pytest.mark.slow
def test_a_person_types_a_message_sees_both_cards_and_clicks_an_example(options, browser):
    def card(option: str) -> str:
        return str(browser.js(f"document.getElementById('{option}-card').innerText"))

    with serving(options) as address:
        browser.after_loading(lambda: browser.do("Page.navigate", url=address))
        browser.js("document.getElementById('text').focus()")
        browser.do("Input.insertText", text=TEXTS[-1])
        browser.after_loading(lambda: browser.js("document.querySelector('[name=message]').click()"))
        for option in ("run", "instruct"):
            assert TEXTS[-1] in card(option)
            assert "spam" in card(option)
        assert "can say nothing else" in card("run")
        assert "It writes" in card("instruct")
        assert browser.js("document.getElementById('text').value") == TEXTS[-1]
        browser.after_loading(lambda: browser.js("document.querySelector('[name=example]').click()"))
        for option in ("run", "instruct"):
            assert "Claim your prize now" in card(option)
        browser.after_loading(lambda: browser.js("document.querySelector('[name=free]').click()"))
        assert browser.js("document.getElementById('continuation').innerText")
        browser.do("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=1, mobile=True)
        assert browser.js("document.documentElement.scrollWidth") <= 360
    assert browser.asked
    assert all(url.startswith((address, "data:")) for url in browser.asked)
