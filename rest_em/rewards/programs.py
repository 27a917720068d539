"""The program in a solution's text: where it begins and ends. Nothing is run or parsed here."""

from __future__ import annotations

import re

_FENCE = re.compile(r"^(?P<indent>[ \t]*)(?P<mark>`{3,}|~{3,})(?P<info>[^\n`]*)$", re.MULTILINE)
WAYS = ("block", "text", "completion")
"""What `reward.options.program` can name."""


def extract_program(text: str, way: str, *, prompt: str = "") -> str:
    """Return the program of a solution.

    A byte-order mark at the begin goes, and CR LF becomes LF; NUL and half surrogates stay, and Python
    refuses them when it compiles.

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
    """Return the content of the last fenced block that is closed, by a fence of no fewer marks.

    A fence that is further in than the one that opened the block is a part of it, as in a docstring.
    """
    last, opened = None, None
    for fence in _FENCE.finditer(text):
        if opened is None:
            opened = fence
        elif _width(fence) > _width(opened) + 3:
            continue
        elif fence["mark"].startswith(opened["mark"]):
            if fence["info"].strip():  # a block that was left open, and another one
                opened = fence
            else:
                last, opened = _unindented(text[opened.end() + 1 : fence.start()], opened["indent"]), None
    return last


def _width(fence: re.Match[str]) -> int:
    return len(fence["indent"].expandtabs(4))


def _unindented(block: str, indent: str) -> str:
    """Take a fence's own indentation, as of a list's item, off its block."""
    return (
        block
        if not indent
        else "".join(line.removeprefix(indent) for line in block.splitlines(keepends=True))
    )
