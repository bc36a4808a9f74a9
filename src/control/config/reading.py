"""From the file to the settings: one YAML document, every problem of it told at once, with what would be right.

Never add here: a section, or opening of sockets or databases.
"""

from __future__ import annotations

import difflib
import os
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from control.config.settings import Settings
from control.config.values import SECRET_FORM, ConfigurationError, SecretRef

__all__ = ["load", "missing"]

_HIDDEN = "(hidden)"
_SECRET_WORDS = ("pass", "secret", "token", "key", "verifier")


def load(path: str | Path) -> Settings:
    """Read and check the configuration at ``path``. Raises ``ConfigurationError`` with every problem found."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigurationError([f"{path}: {reason}: a readable YAML file; `pgleash init` writes one to start from"]) from None
    try:
        document = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        raise ConfigurationError([f"{path}:{where}: not YAML: {getattr(error, 'problem', None) or 'cannot be parsed'}"]) from None
    if not isinstance(document, Mapping):
        raise ConfigurationError([f"{path}: value {_shown(document)}: a mapping with listen, api, identity and databases"])
    try:
        return Settings.model_validate(document, context={"directory": path.resolve().parent})
    except ValidationError as error:
        raise ConfigurationError([_problem(document, details) for details in _causes(error.errors())]) from None


def missing(settings: Settings) -> tuple[str, ...]:
    """What the configuration points at and isn't there: files and secrets, one line each. Empty when all is well."""
    problems: list[str] = []

    def look(value: Any, path: str) -> None:
        if isinstance(value, SecretRef):
            try:
                value.resolve()
            except ConfigurationError as error:
                problems.append(f"{path}: {error}")
        elif isinstance(value, BaseModel):
            for name in type(value).model_fields:
                look(getattr(value, name), f"{path}.{name}" if path else name)
        elif isinstance(value, dict):
            for name, entry in value.items():
                look(entry, f"{path}.{name}")
        elif isinstance(value, Path) and path.rpartition(".")[2] in {"certificate", "key", "ca", "file"} and not os.access(value, os.R_OK):
            problems.append(f"{path}: value {value}: an existing, readable file")

    look(settings, "")
    return tuple(problems)


def _causes(errors: Sequence[Any]) -> list[Any]:
    # A list whose only item is wrong is also reported as too short: that is no second problem.
    deeper = [tuple(details["loc"]) for details in errors]
    return [
        details
        for details in errors
        if details["type"] != "too_short"
        or not any(len(loc) > len(details["loc"]) and loc[: len(details["loc"])] == details["loc"] for loc in deeper)
    ]


def _problem(document: Any, details: Any) -> str:
    loc = [part for index, part in enumerate(details["loc"]) if not _is_tag(details["loc"], index)]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")
    right = _what_would_be_right(details, loc)
    if details["type"] == "missing":
        return f"{path}: value missing: {right}"
    shown = _HIDDEN if right == SECRET_FORM or _is_secret_name(loc) else _shown(_value_at(document, loc))
    return f"{path or 'configuration'}: value {shown}: {right}"


def _is_tag(loc: Sequence[str | int], index: int) -> bool:
    # pydantic puts the discriminator's value into the path: databases.shop.credentials.minted.user
    return index > 0 and loc[index - 1] == "credentials" and loc[index] in {"minted", "vault", "static"} and loc[0] == "databases"


def _is_secret_name(loc: Sequence[str | int]) -> bool:
    # An unknown key may hold a misspelled secret ("pasword: hunter2"): under credentials no value is shown.
    return "credentials" in loc or any(word in str(part).lower() for part in loc[-1:] for word in _SECRET_WORDS)


def _value_at(document: Any, loc: Sequence[str | int]) -> Any:
    value = document
    for part in loc:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _shown(value: Any) -> str:
    text = "a section" if isinstance(value, Mapping) else "null" if value is None else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _what_would_be_right(details: Any, loc: Sequence[str | int]) -> str:
    kind, context = details["type"], details.get("ctx", {})
    if kind == "extra_forbidden":
        known = sorted(_known_keys(loc[:-1]))
        near = difflib.get_close_matches(str(loc[-1]), known, n=1)
        return f"unknown key, did you mean {near[0]}?" if near else f"unknown key; known here: {', '.join(known)}"
    if kind == "missing":
        return f"this key is required{_section_hint(loc)}"
    if kind == "value_error":
        return str(context["error"])
    if kind in {"union_tag_not_found", "union_tag_invalid"}:
        return "kind must be minted, vault or static"
    if kind == "literal_error":
        return f"one of {context['expected']}".replace("'", "")
    message = str(details["msg"])
    return message.removeprefix("Input should be ").removeprefix("Value error, ")


def _section_hint(loc: Sequence[str | int]) -> str:
    keys = sorted(_known_keys(loc))
    return f" (a section with {', '.join(keys)})" if keys else ""


def _known_keys(loc: Sequence[str | int]) -> set[str]:
    """The keys that the section at ``loc`` may have; empty when it is not a section."""
    kinds: list[Any] = [Settings]
    for part in loc:
        found: list[Any] = []
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                if part in kind.model_fields:
                    found += _alternatives(kind.model_fields[str(part)].annotation)
            else:
                found += [inner for argument in typing.get_args(kind)[-1:] for inner in _alternatives(argument)]
                if typing.get_origin(kind) is tuple:
                    found = [inner for inner in _alternatives(typing.get_args(kind)[0])]
        kinds = found
    return {name for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel) for name in kind.model_fields}


def _alternatives(annotation: Any) -> list[Any]:
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _alternatives(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [inner for argument in typing.get_args(annotation) for inner in _alternatives(argument)]
    return [annotation]
