"""The program in a solution's text: where it begins and ends. Nothing is run or parsed here."""

from __future__ import annotations

import re

_FENCE = re.compile(r"^[ \t]*(?P<mark>`{3,}|~{3,})(?P<info>[^\n`]*)$", re.MULTILINE)
WAYS = ("block", "text", "completion")
"""What `reward.options.program` can name."""


def extract_program(text: str, way: str, *, prompt: str = "") -> str:
    """Return the program of a solution.

    A byte-order mark at the begin goes, and CR LF becomes LF; NUL and half surrogates stay, and Python refuses
    them when it compiles.

    >>> extract_program("Here it is:\\n```python\\nx = 1\\n```\\nDone.", "block")
    'x = 1\\n'

    Args:
        text: the solution.
        way: `block` is the last complete fenced block, the whole text where there is none; `text` the whole
            text; `completion` the prompt, and the text after it.
        prompt: the begin of the program, for `completion`.
    """
    text = text.replace("\r\n", "\n").removeprefix("\ufeff")
    if way == "completion":
        return prompt + text
    if way == "block":
        block = _last_block(text)
        return text if block is None else block.removeprefix("\ufeff")
    return text


def _last_block(text: str) -> str | None:
    """Return the content of the last fenced block that is closed. A fence closes with as many marks, and no more."""
    last, opened = None, None
    for fence in _FENCE.finditer(text):
        if opened is None:
            opened = fence
        elif fence["mark"].startswith(opened["mark"]) and not fence["info"].strip():
            last, opened = text[opened.end() + 1 : fence.start()], None
        elif fence["info"].strip() and fence["mark"][0] == opened["mark"][0]:
            opened = fence  # a block that is left open, and another one
    return last
