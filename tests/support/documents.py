"""``document`` and ``block``: the code blocks of the repository's documents, for the tests that run them."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Block:
    """A block of code in a document.

    :ivar note: of the comment before it: ``not run: why``, or ``tested by file::test``; ``None``: none.
    """

    language: str
    text: str
    note: str | None
    line: int


BLOCK = re.compile(
    r"(?:^ *<!-- (?P<note>(?:not run: |tested by )[^\n]*) -->\n)?"
    r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


def document(path: str) -> list[Block]:
    """The blocks of a document in the repository, in their order."""
    text = (ROOT / path).read_text(encoding="utf-8")
    return [
        Block(m["language"], textwrap.dedent(m["text"]), m["note"], text.count("\n", 0, m.start("language")) + 1)
        for m in BLOCK.finditer(text)
    ]


def block(language: str, part: str, path: str = "README.md") -> str:
    """The text of the one block that has this part."""
    [found] = [one.text for one in document(path) if one.language == language and part in one.text]
    return found
