"""Progress: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from rest_em.report import progress as module
from rest_em.report.progress import Progress


def show(console: Console) -> None:
    """Show a stage with a total, then one whose total shows up on the way."""
    progress = Progress(console)
    with progress.stage("E-step 1", 40, "solutions"):
        progress.advance_to(10)
        progress.advance_to(10)
        progress.advance_to(30, "3 with the graders")
    with progress.stage("iteration-01: train", 0, "steps"):
        progress.advance_to(3, "loss 0.500", total=12)
    progress.say("finished [already]")


def test_plain_lines_where_the_output_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PLAIN_SECONDS", 0.0)
    output = io.StringIO()
    show(Console(file=output, width=20))
    lines = [re.sub(r"[\d.]+/s, \d+ s", "R/s, L s", line) for line in output.getvalue().splitlines()]
    assert lines == [
        "E-step 1: started, 40 solutions",
        "E-step 1: 10/40 solutions",
        "E-step 1: 30/40 solutions, R/s, L s left, 3 with the graders",
        "E-step 1: done in 0 s",
        "iteration-01: train: started",
        "iteration-01: train: 3/12 steps, loss 0.500",
        "iteration-01: train: done in 0 s",
        "finished [already]",
    ]
    assert "\x1b" not in output.getvalue()


def test_a_line_number_is_no_emoji() -> None:
    output = io.StringIO()
    progress = Progress(Console(file=output))
    progress.say("s.jsonl:100: bad")
    with progress.stage(":100:", 0, "lines"):
        pass
    assert output.getvalue().startswith("s.jsonl:100: bad\n:100:: started\n")


def test_plain_lines_are_rare() -> None:
    output = io.StringIO()
    show(Console(file=output))
    assert [line for line in output.getvalue().splitlines() if "left" in line] == []


def test_a_bar_with_rate_time_and_note_on_a_terminal() -> None:
    output = io.StringIO()
    show(Console(file=output, force_terminal=True, width=160, color_system=None))
    text = output.getvalue()
    assert re.search(r"E-step 1 .*━+.* 40/40 solutions [\d.]+/s .* left .*3 with the graders", text)
    assert re.search(r"train .* 12/12 steps [\d.]+/s .* left .*loss 0.500", text)
    assert "started" not in text


def test_a_stage_that_fails_is_not_called_done_and_the_next_one_shows() -> None:
    output = io.StringIO()
    progress = Progress(Console(file=output))
    with pytest.raises(KeyboardInterrupt), progress.stage("E-step 1", 40, "solutions"):
        raise KeyboardInterrupt
    progress.advance_to(3)
    with progress.stage("E-step 2", 40, "solutions"):
        pass
    assert output.getvalue().splitlines() == [
        "E-step 1: started, 40 solutions",
        "E-step 2: started, 40 solutions",
        "E-step 2: done in 0 s",
    ]
