"""The body of a request -> what is asked. Whatever it holds, it is taken, or refused with a status and a sentence."""

import json
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import parse_qs

from starlette.exceptions import HTTPException
from starlette.requests import Request

from src.errors import InputError

LIMIT = 1_000_000  # bytes of a body
MOST = 256  # messages of a list
FORM = "application/x-www-form-urlencoded"
JSON = "application/json"


def kind(request: Request) -> str:
    """The body's media type."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def body(request: Request) -> str:
    """The body as text. What is too much is read to its end, up to a point, for its sender to see the answer; and kept
    nowhere."""
    kept, size = bytearray(), 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= LIMIT:
            kept += chunk
        elif size > 16 * LIMIT:
            break
    if size > LIMIT:
        raise HTTPException(413, f"the body is larger than {LIMIT:,} bytes: send less at once")
    try:
        return kept.decode("utf-8")
    except UnicodeDecodeError:
        raise HTTPException(400, "the body is not UTF-8") from None


def form(text: str) -> dict[str, str]:
    """The fields of a form, their line breaks as \\n. Raises HTTPException for what is no form."""
    try:
        fields = parse_qs(text, keep_blank_values=True, errors="strict", max_num_fields=16)
    except ValueError:
        raise HTTPException(400, "the form is not UTF-8, or has too many fields") from None
    return {name: values[-1].replace("\r\n", "\n") for name, values in fields.items()}


def only_key(text: str, key: str) -> Any:
    """The value of a JSON object that has one key."""
    try:
        given = json.loads(text)
    except RecursionError:
        raise HTTPException(400, "the body is nested too deeply") from None
    except ValueError as error:
        raise HTTPException(400, f"the body is no JSON: {error}") from None
    if not isinstance(given, dict) or list(given) != [key]:
        raise HTTPException(422, f'the body must be a JSON object with the key "{key}" and no other')
    return given[key]


def check(texts: list[Any], what: str, checks: Sequence[Callable[[str], None]]) -> list[str]:
    """Texts that all of `checks` take. Raises HTTPException for the first that is none, empty, or too long."""
    for number, text in enumerate(texts, 1):
        which = f"{what} {number}: " if len(texts) > 1 else ""
        if not isinstance(text, str):
            raise HTTPException(422, f"{which}a {what} must be a text")
        if not text.strip():
            raise HTTPException(422, f"{which}the {what} is empty")
        try:
            text.encode()
            for one in checks:
                one(text)
        except UnicodeEncodeError:
            raise HTTPException(400, f"{which}the {what} holds half a surrogate pair, which is no UTF-8") from None
        except InputError as error:
            raise HTTPException(422, f"{which}{error}") from None
    return texts


def messages(given: Any) -> list[Any]:
    """One message, or those of a list, as a list. Raises HTTPException for too many or none."""
    texts = given if isinstance(given, list) else [given]
    if not 1 <= len(texts) <= MOST:
        raise HTTPException(422, f"a list must have 1 to {MOST} messages, this one has {len(texts)}")
    return texts
