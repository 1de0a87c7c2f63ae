"""Typed key=value options, for the commands that take no Hydra config."""

import os
import sys
from dataclasses import MISSING, fields
from typing import Annotated, Any, TypeVar, get_type_hints

from annotated_types import Ge

from src.errors import InputError

T = TypeVar("T")
Place = Annotated[str, "a path, whose ~ is the home folder"]
AtLeast0 = Annotated[int, Ge(0)]
AtLeast1 = Annotated[int, Ge(1)]


def options(kind: type[T], arguments: list[str], usage: str) -> T:
    """Fill the dataclass `kind` from `key=value` arguments, each read as its field's type; a text is taken as it
    stands: a message may hold any character. Raises InputError that names the option."""
    if {"-h", "--help"} & set(arguments):
        print(usage)
        sys.exit(0)
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    given: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in known:
            raise InputError(f"{argument!r} is not understood: give key=value with one of {', '.join(known)}")
        given[key] = value
    for name, field in known.items():
        if field.default is MISSING and name not in given:
            raise InputError(f"{name}=... is missing\n{usage}")
    hints = get_type_hints(kind, include_extras=True)
    return kind(**{key: read(key, value, hints[key]) for key, value in given.items()})


def read(name: str, text: str, wanted: Any) -> Any:
    """An option's text as a value of its type. Raises InputError for one that is none."""
    if wanted in (str, str | None):  # whatever bytes they come from
        return text
    if wanted in (Place, Place | None):
        return os.path.expanduser(text)
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(wanted).validate_python(text)
    except ValidationError as error:
        reasons = dict.fromkeys(one["msg"] for one in error.errors() if one["type"] != "none_required")
        raise InputError(f"{name}={text}: {'; '.join(reasons)}") from None
