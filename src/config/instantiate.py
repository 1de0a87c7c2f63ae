"""Config sections -> objects: `_target_` is built by hydra.utils.instantiate, after its settings were checked.

A setting that the target does not take, one that is missing, or one of another type than the target's signature names
is an InputError that names the key; what a library's constructor refuses is one sentence too.
"""

import inspect
import json
import math
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Any, get_type_hints

import torch
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError

from src.errors import InputError

DIRECTIVES = {"_target_", "_partial_", "_recursive_", "_convert_", "_args_"}
REFUSALS = (ValueError, TypeError, RuntimeError, ModuleNotFoundError, MisconfigurationException)


def build(section: str, settings: Mapping[str, Any], **given: Any) -> Any:
    """The object, or with `_partial_: true` the factory, that `settings` describe; `given` are further arguments.

    Raises InputError that names the key below `section` which is wrong.
    """
    target = find(section, settings)
    check(section, target, settings, given)
    nested = {key: build_nested(f"{section}.{key}", value) for key, value in settings.items() if holds_target(value)}
    made = instantiate({**settings, **dict.fromkeys(nested), "_partial_": True}, _convert_="all")
    factory = partial(made, **nested, **given)
    return factory if settings.get("_partial_") else call(section, factory)


def call(section: str, factory: Callable[..., Any], *args: Any) -> Any:
    """What `factory` makes. Raises InputError for what it refuses."""
    try:
        return factory(*args)
    except InputError:
        raise
    except REFUSALS as error:
        raise InputError(f"{section}: {' '.join(str(error).split())}") from error


def build_nested(section: str, value: Mapping[str, Any]) -> Any:
    """What a setting describes: an object, or several by name."""
    if is_target(value):
        return build(section, value)
    return {name: build(f"{section}.{name}", one) for name, one in value.items()}


def holds_target(value: Any) -> bool:
    """Whether a setting describes an object, or several by name."""
    return is_target(value) or (isinstance(value, Mapping) and bool(value) and all(map(is_target, value.values())))


def is_target(value: Any) -> bool:
    """Whether a setting is itself the description of an object."""
    return isinstance(value, Mapping) and "_target_" in value


def find(section: str, settings: Mapping[str, Any]) -> Any:
    """What `_target_` names. Raises InputError where there is no such thing."""
    name = settings.get("_target_")
    if not isinstance(name, str):
        raise InputError(f"{section}._target_ is missing: give the dotted path of a class or function")
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{section}._target_={name} cannot be imported: {reason}") from None
    if not callable(found):
        raise InputError(f"{section}._target_={name} is no class and no function")
    return found


def check(section: str, target: Any, settings: Mapping[str, Any], given: Mapping[str, Any] = {}) -> None:
    """Raises InputError for a key that `target` does not take, one that it needs, and a value of another type."""
    parameters = inspect.signature(target).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    values = {key: value for key, value in settings.items() if key not in DIRECTIVES}
    known = [name for name in parameters if name not in given]
    if unknown := [str(key) for key in values if key not in known]:
        raise InputError(f"there is no setting {section}.{unknown[0]}: {section} takes {', '.join(known)}")
    hints = type_hints(target)
    for key, value in values.items():
        if not holds_target(value) and key in hints:
            check_type(f"{section}.{key}", value, hints[key])
    if settings.get("_partial_"):
        return
    needed = [name for name in known if parameters[name].default is inspect.Parameter.empty and name not in values]
    if needed:
        raise InputError(f"{section}.{needed[0]} is missing: give {section}.{needed[0]}=<value>")


def type_hints(target: Any) -> dict[str, Any]:
    """Parameter -> its annotation with the bounds that it may have; names under TYPE_CHECKING cannot be read."""
    called = inspect.getattr_static(target, "__init__") if inspect.isclass(target) else target
    hints: dict[str, Any] = {}
    for name, annotation in getattr(called, "__annotations__", {}).items():
        with suppress(NameError, TypeError):
            one = SimpleNamespace(__annotations__={name: annotation})
            hints |= get_type_hints(one, getattr(called, "__globals__", {}), include_extras=True)
    return hints


def check_type(key: str, value: Any, wanted: Any) -> None:
    """Raises InputError unless a plain value is of type `wanted`; types that plain values never have are left alone."""
    try:
        adapter = TypeAdapter(wanted, config=ConfigDict(arbitrary_types_allowed=True, strict=True))
        adapter.validate_json(json.dumps(value))
    except (PydanticSchemaGenerationError, TypeError):
        return
    except ValidationError as error:
        reasons = [one["msg"] for one in error.errors() if one["type"] not in ("is_instance_of", "needs_python_object")]
        if reasons:
            raise InputError(f"{key}={value}: {'; '.join(dict.fromkeys(reasons))}") from None


def check_finite(settings: Any) -> None:
    """Raises InputError for a number in a config that is infinite or not a number: no setting means anything by it."""
    for path, value in leaves(settings):
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{path}={value} must be a finite number")


def leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything below a node."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from leaves(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, (list, tuple)):
        for i, value in enumerate(node):
            yield from leaves(value, f"{key}[{i}]")
    else:
        yield key, node


def build_optimizer(settings: Mapping[str, Any], precision: Any, groups: bool = False) -> Callable[..., Any]:
    """An optimizer factory, tried once on dummy parameters (or groups of them): what training would notice is found
    before it."""
    if precision == "16-mixed":  # its GradScaler, and Lightning's clipping, need the unfused form
        settings = {key: value for key, value in settings.items() if key != "fused"}
    factory: Callable[..., Any] = build("optimizer", {**settings, "_partial_": True})
    dummies: list[Any] = [torch.nn.Parameter(torch.zeros(2, 2)), torch.nn.Parameter(torch.zeros(2))]
    call("optimizer", factory, [{"params": [dummy]} for dummy in dummies] if groups else dummies)
    return factory


def build_scheduler(settings: Mapping[str, Any]) -> Callable[..., Any]:
    """A scheduler factory, tried once on an optimizer of a dummy parameter."""
    factory: Callable[..., Any] = build("scheduler", {**settings, "_partial_": True})
    dummy = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    follows = "progress" in inspect.signature(factory).parameters
    call("scheduler", partial(factory, progress=lambda: 0.0) if follows else factory, dummy)
    return factory
