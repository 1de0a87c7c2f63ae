"""Finished runs -> a web application: a page for people, and the same answers as JSON.

    POST /predict -> body -> texts -> checked -> the worker's queue -> one batch of all that wait -> answers

Only names of this machine may stand in the Host header: a foreign page whose name was made to point here (DNS
rebinding) reads nothing. No other site may call (no CORS), nor send a form.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from src.serving import page, requests, word_attribution
from src.serving.predictor import Predictor
from src.serving.worker import Worker

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
OPENAPI = Path(__file__).parent / "openapi.json"


def application(predictors: Mapping[str, Predictor], hosts: Sequence[str]) -> Starlette:
    """The application of one or two runs, by the name of the option that gave them; `hosts` may stand in Host."""
    service = Service(predictors)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        service.worker.start()
        yield
        service.worker.stop()

    routes = [
        Route("/", service.page),
        Route("/predict", service.predict, methods=["POST"]),
        Route("/write", service.write, methods=["POST"]),
        Route("/health", service.health),
        Route("/openapi.json", openapi),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)],
        exception_handlers={HTTPException: refused, Exception: failed},
        lifespan=lifespan,
    )


class Service:
    """The endpoints, and what they share: models, loaded once, and the thread that runs them."""

    def __init__(self, predictors: Mapping[str, Predictor]) -> None:
        self.predictors, self.worker = predictors, Worker()
        writers = [one for one in predictors.values() if one.run.writes]
        self.writer = writers[-1] if writers else None  # of free prompts: instruct= before run=
        self.view = page.Page(predictors, self.writer)

    async def health(self, request: Request) -> Response:
        """Which runs are served."""
        return JSONResponse({"status": "ok", **{option: one.id for option, one in self.predictors.items()}})

    async def page(self, request: Request) -> Response:
        """The page without an answer."""
        return HTMLResponse(self.view.render(), headers=HEADERS)

    async def predict(self, request: Request) -> Response:
        """Answers to a message or a list of them; to a form, the page with them."""
        same_origin(request)
        if requests.kind(request) == requests.FORM:
            return await self._form(requests.form(await requests.body(request)))
        given = requests.only_key(await json_body(request), "text")
        texts = await self._checked(requests.messages(given))
        answers = await self._answers(texts)
        each = [dict(zip(answers, row, strict=True)) for row in zip(*answers.values(), strict=True)]
        return JSONResponse({"answers": each} if isinstance(given, list) else each[0])

    async def write(self, request: Request) -> Response:
        """What the instruct run writes after a prompt."""
        same_origin(request)
        prompt = requests.only_key(await json_body(request), "prompt")
        return JSONResponse({"prompt": prompt, "written": await self._continuation(prompt)})

    async def _form(self, fields: dict[str, str]) -> Response:
        """The page, with what was asked by the button that was pressed; what is wrong with it stands there too."""
        text = fields.get("example") or fields.get("text", "")
        shown: dict[str, Any] = {"text": text, "prompt": fields.get("prompt", "")}
        status = 200
        try:
            if "free" in fields:
                shown["continuation"] = await self._continuation(shown["prompt"])
            if text.strip() or "free" not in fields:
                shown["answers"] = await self._explained(text)
        except HTTPException as error:
            shown["error"], status = error.detail, error.status_code
        return HTMLResponse(self.view.render(**shown), status, headers=HEADERS)

    async def _explained(self, text: str) -> dict[str, dict[str, Any]]:
        """Of each run its answer, which words moved it, and what was written."""
        await self._checked([text])
        parts = word_attribution.pieces(text)
        answers = await self._answers([text, *word_attribution.without_each(parts)])
        written = {
            option: (await self._ask(one, one.written_answers, [text]))[0]
            for option, one in self.predictors.items()
            if one.run.writes
        }
        return {
            option: {**own[0], "pieces": word_attribution.moved(parts, own), "written": written.get(option)}
            for option, own in answers.items()
        }

    async def _continuation(self, prompt: Any) -> str:
        if self.writer is None:
            raise HTTPException(422, "no run here can write: start with instruct=<id>")
        (checked,) = await asyncio.to_thread(requests.check, [prompt], "prompt", [self.writer.check_prompt])
        return str((await self._ask(self.writer, self.writer.continuations, [checked]))[0])

    async def _checked(self, texts: list[Any]) -> list[str]:
        checks = [one.check for one in self.predictors.values()]
        return await asyncio.to_thread(requests.check, texts, "message", checks)

    async def _answers(self, texts: list[str]) -> dict[str, list[dict[str, Any]]]:
        """Of each run its answers to texts."""
        each = await asyncio.gather(*(self._ask(one, one.answers, texts) for one in self.predictors.values()))
        return dict(zip(self.predictors, each, strict=True))

    async def _ask(
        self, predictor: Predictor, function: Callable[[list[str]], list[Any]], items: list[str]
    ) -> list[Any]:
        return await asyncio.wrap_future(self.worker.ask(function, items, alone=predictor.answers_depend_on_each_other))


async def json_body(request: Request) -> str:
    """The body of a request that says it is JSON, which no other site's page can say without being asked first."""
    if requests.kind(request) != requests.JSON:
        raise HTTPException(415, f"send {requests.JSON}, as /openapi.json describes")
    return await requests.body(request)


def same_origin(request: Request) -> None:
    """Raises HTTPException for a request that a page of another site sent."""
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
        raise HTTPException(403, "requests from other sites are refused")


async def openapi(request: Request) -> Response:
    """The description of this interface."""
    return Response(OPENAPI.read_text(encoding="utf-8"), media_type="application/json")


async def refused(request: Request, error: Exception) -> Response:
    """A wrong request, in one sentence."""
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, headers=dict(error.headers or {}))


async def failed(request: Request, error: Exception) -> Response:
    """A fault of ours; the server logs it."""
    return JSONResponse({"error": "this failed; the server's log says why"}, 500)
