"""Lazy tables of components: name -> "module:attribute", imported when asked for."""

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

from infomae_stream.errors import ConfigError


def resolve(table: Mapping[str, str], name: str, where: str) -> Any:
    """Import and return the component called `name`; `where` is the dotted config path that named it.

    Raises ConfigError for an unknown name, with the nearest known one and the whole list.
    """
    if name not in table:
        near = difflib.get_close_matches(name, table, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{where}: unknown {name!r}{hint}; known: {', '.join(sorted(table))}")
    module, attribute = table[name].split(":")
    return getattr(importlib.import_module(module), attribute)
