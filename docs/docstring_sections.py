"""A Griffe extension for the API reference: it lays out the sections of our docstrings.

Examples become code blocks, and one-line sections such as "Raises: ..." get a bold title.
"""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe

_EXAMPLE = re.compile(r"^Examples?:\n(?P<code>(?:[ ]{4}.*\n?|\n)+)", re.MULTILINE)
_ONE_LINE = re.compile(r"^(?P<title>Raises|Returns|Source): ", re.MULTILINE)


class DocstringSections(griffe.Extension):
    """Changes the text of docstrings before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = laid_out(obj.docstring.value)


def laid_out(docstring: str) -> str:
    """The docstring in the form that Griffe and Markdown show well."""

    def block(match: re.Match[str]) -> str:
        code = textwrap.dedent(match["code"]).strip("\n")
        language = "pycon" if code.startswith(">>>") else "python"
        fenced = textwrap.indent(f"```{language}\n{code}\n```", "    ")
        return f"Examples:\n{fenced}\n"

    return _ONE_LINE.sub(r"\n**\g<title>:** ", _EXAMPLE.sub(block, docstring))
