"""python -m src.serve run=<id> [instruct=<id>]     a page that shows what finished runs say of a message

Give a classifier as run= and an instruct run as instruct= to see both answer; the page's address is printed. The same
answers as JSON: POST /predict {"text": "..."} or {"text": ["...", ...]}; GET /openapi.json describes it.
Further options: port=8000 (0: a free one); host=127.0.0.1, which only this machine can reach; runs=<folder of the run
folders>; task=<which question>, for a run on data=mix. Needs pip install -e '.[serve]'.
"""

import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from src.config.command_line import one_sentence
from src.config.options import AtLeast0, Place, options
from src.errors import InputError

if TYPE_CHECKING:
    from src.serving.predictor import Predictor

LOOPBACK = ("localhost", "127.0.0.1", "::1")
CONNECTIONS = 64  # at once; more are told to come back (503)


@dataclass
class Options:
    """What the command line takes."""

    run: str
    instruct: str | None = None
    port: AtLeast0 = 8000
    host: str = "127.0.0.1"
    runs: Place = "runs"
    task: str | None = None


def bound(host: str, port: int) -> socket.socket:
    """A socket on that address, on which nobody listens yet. Raises InputError where there can be none."""
    if port > 65535:
        raise InputError(f"port={port} must be at most 65535")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except (OSError, OverflowError) as error:
        raise InputError(f"host={host} port={port} cannot be had: {error}; choose another port=") from None
    return made


def allowed_hosts(host: str) -> list[str]:
    """What may stand in a request's Host header; beyond loopback, the machine's own name and addresses too."""
    names = [*LOOPBACK, host]
    if host not in LOOPBACK:
        own = socket.gethostname()
        names.append(own)
        with suppress(OSError):  # a name that resolves to nothing
            names += [str(found[4][0]) for found in socket.getaddrinfo(own, None)]
    return [f"[{name}]" if ":" in name else name for name in names]


def load(given: Options) -> "dict[str, Predictor]":
    """The runs by option. Raises InputError for what is no fine-tuned run, or an instruct= that has a head."""
    from src.serving.predictor import Predictor

    predictors = {}
    for option, run in {"run": given.run, "instruct": given.instruct}.items():
        if run is None:
            continue
        predictor = Predictor.load(given.runs, run)
        if option == "instruct" and not predictor.run.writes:
            raise InputError(f"instruct={run} has a head over fixed labels: give it as run=")
        predictor.task = given.task if predictor.run.writes else None
        predictors[option] = predictor
    return predictors


def main() -> None:
    """Load the runs, then answer until Ctrl-C."""
    given = options(Options, sys.argv[1:], __doc__ or "")
    if missing := [name for name in ("starlette", "uvicorn") if find_spec(name) is None]:
        raise InputError(f"{missing[0]} is missing: pip install -e '.[serve]'")
    with bound(given.host, given.port) as made:
        import uvicorn

        from src.serving.app import application

        app = application(load(given), allowed_hosts(given.host))
        made.listen(128)
        address = f"[{given.host}]" if ":" in given.host else given.host
        print(f"http://{address}:{made.getsockname()[1]}    Ctrl-C ends it", flush=True)
        config = uvicorn.Config(
            app, log_level="warning", limit_concurrency=CONNECTIONS, server_header=False, timeout_graceful_shutdown=5
        )
        uvicorn.Server(config).run(sockets=[made])


if __name__ == "__main__":
    with one_sentence():
        main()
