"""TOML files into frozen pydantic models. An error names the file, the dotted key, what is allowed, the nearest key.

Environment variables override single keys: `INFOMAE__MQTT__HOST=broker.local` sets `mqtt.host`.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from infomae_stream.errors import ConfigError

ENV_PREFIX = "INFOMAE__"


class Settings(BaseModel):
    """Base of every configuration section: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _taken_at_its_word(cls, value: Any, info: ValidationInfo) -> Any:
        """pydantic would read "1" and true as 1, and "no" as false: a file that says so has a mistake in it."""
        wanted = cls.model_fields[str(info.field_name)].annotation
        if wanted in (int, float) and isinstance(value, bool | str):
            raise ValueError("a number is wanted")
        if wanted is bool and not isinstance(value, bool):
            raise ValueError("true or false is wanted")
        return value


S = TypeVar("S", bound=BaseModel)


def load_config(path: Path, model: type[S], environ: Mapping[str, str] = os.environ) -> S:
    """Read `path` into `model`. Raises ConfigError for a missing file, bad TOML, an unknown key or a bad value.

    A model with a field `base_dir` gets the file's folder there, so that relative paths mean "beside this file".
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise ConfigError(f"cannot read the file: {e.strerror}", where=str(path)) from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as e:
        raise ConfigError(f"not valid TOML: {e}", where=str(path)) from e
    apply_environment(raw, environ)
    if "base_dir" in model.model_fields:
        raw["base_dir"] = path.resolve().parent
    return validate(raw, model, where=str(path))


def apply_environment(raw: dict[str, Any], environ: Mapping[str, str]) -> None:
    """Write the overrides of `environ` into `raw`; values are read as TOML, or as text where they are not TOML."""
    for name, value in environ.items():
        if not name.startswith(ENV_PREFIX):
            continue
        *sections, key = name.removeprefix(ENV_PREFIX).lower().split("__")
        table = raw
        for section in sections:
            table = table.setdefault(section, {})
            if not isinstance(table, dict):
                raise ConfigError(f"{section} is not a table", where=name)
        try:
            table[key] = tomllib.loads(f"v = {value}")["v"]
        except tomllib.TOMLDecodeError:
            table[key] = value


def validate(raw: Mapping[str, Any], model: type[S], *, where: str, prefix: tuple[str, ...] = ()) -> S:
    """Check `raw` against `model`; `prefix` is the dotted path at which `raw` stands in its file."""
    try:
        return model.model_validate(dict(raw))
    except ValidationError as e:
        problems = [_explain(dict(err), model, prefix) for err in e.errors()]
        raise ConfigError("; ".join(problems), where=where) from e


def _explain(error: dict[str, Any], model: type[BaseModel], prefix: tuple[str, ...]) -> str:
    loc = tuple(str(part) for part in error["loc"])
    path = ".".join(prefix + loc)
    if error["type"] == "extra_forbidden":
        known = _known_keys(model, loc[:-1])
        near = difflib.get_close_matches(loc[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"{path}: unknown key; {hint}known: {', '.join(known)}"
    if error["type"] == "missing":
        return f"{path}: missing"
    return f"{path}: {error['msg']} (got {error['input']!r})"


def _known_keys(model: type[BaseModel], loc: tuple[str, ...]) -> list[str]:
    """The field names of the section that `loc` leads to."""
    for part in loc:
        field = model.model_fields.get(part)
        nested = _nested_model(field.annotation) if field else None
        model = nested or model
    return sorted(name for name in model.model_fields if name != "base_dir")


def _nested_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for arg in get_args(annotation):
        found = _nested_model(arg)
        if found is not None:
            return found
    return None
