"""Which part of a solution is the program."""

from __future__ import annotations

import pytest

from rest_em.rewards.programs import extract_program


def test_the_last_complete_block_is_the_program() -> None:
    text = "First\n```python\na = 1\n```\nbetter:\n```\nb = 2\n```\nand\n```python\ncut off"
    assert extract_program(text, "block") == "b = 2\n"


def test_a_text_without_a_block_is_the_program_itself() -> None:
    assert extract_program("a = 1\n", "block") == "a = 1\n"
    assert extract_program("```python\ncut off", "block") == "```python\ncut off"


def test_a_block_may_hold_shorter_fences_and_be_indented() -> None:
    text = "````md\n```python\nx = 1\n```\n````\n"
    assert extract_program(text, "block") == "```python\nx = 1\n```\n"
    assert extract_program("- so:\n  ```py\n  x = 1\n  ```\n", "block") == "x = 1\n"


def test_tildes_close_with_tildes() -> None:
    assert extract_program("~~~python\ns = '''\n```\n'''\n~~~\n", "block") == "s = '''\n```\n'''\n"


def test_text_and_completion_take_fences_as_they_are() -> None:
    assert extract_program("```\na\n```", "text") == "```\na\n```"
    assert extract_program("    return 1\n", "completion", prompt="def f():\n") == "def f():\n    return 1\n"


@pytest.mark.parametrize("way", ["block", "text"])
def test_a_mark_of_the_byte_order_goes_and_lines_end_with_one_character(way: str) -> None:
    assert extract_program("\ufeffa = 1\r\nb = 2\r\n", way) == "a = 1\nb = 2\n"


def test_megabytes_of_fences_take_no_time() -> None:
    assert extract_program("```\n" * 1_000_001 + "end", "block") == ""
