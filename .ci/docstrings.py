"""An extension of griffe for mkdocs. It rewrites the roles of Sphinx in docstrings as Markdown."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`~?\.*([^`]+)`")


def markdown(text: str) -> str:
    """``:class:`X``` as code, and the colons before an indented block as one."""
    return re.sub(r"::$", ":", ROLE.sub(r"`\1`", text), flags=re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrites each docstring when its object is made."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)
