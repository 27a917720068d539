"""What stands beside figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rest_em.report.settings import Settings

DRAWN = Settings(
    data={"path": "test.jsonl"},
    limit=None,
    confidence=0.95,
    reward="number",
    model="models/SmolLM2-135M",
    dtype="float32",
    seed=0,
    num_shots=5,
    chat_template=False,
    greedy=True,
    num_samples=8,
    temperature=1.0,
    top_k=0,
    top_p=0.95,
    max_new_tokens=256,
    stop_strings=("\n",),
    rest_em="1.0",
)


def test_the_line_says_how_solutions_were_drawn() -> None:
    assert DRAWN.line() == (
        "greedy; 8 samples at T 1.0, top-p 0.95, seed 0; at most 256 tokens; 5 shots; float32; "
        "data test.jsonl; 95 % intervals; rest_em 1.0"
    )


def test_what_does_not_apply_is_left_out_of_the_line() -> None:
    greedy = replace(DRAWN, num_samples=0, temperature=None, top_k=None, top_p=None, seed=3)
    assert greedy.line().startswith("greedy; at most 256 tokens; ")
    one = replace(DRAWN, greedy=False, num_samples=1, top_p=1.0, top_k=40, num_shots=1, chat_template=True)
    assert one.line().startswith(
        "1 sample at T 1.0, top-k 40, seed 0; at most 256 tokens; 1 shot, chat template;"
    )
    assert "; shots of the data; " in replace(DRAWN, num_shots=None).line()


def test_a_data_set_of_the_hub_is_named_with_its_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = {"path": "openai/gsm8k", "name": "main", "split": "test"}
    assert "; data openai/gsm8k main test, limit 50; " in replace(DRAWN, data=hub, limit=50).line()
    monkeypatch.chdir(tmp_path)
    assert "; data here.jsonl; " in replace(DRAWN, data={"path": str(tmp_path / "here.jsonl")}).line()


def test_settings_are_read_back() -> None:
    assert Settings.from_json(DRAWN.to_json()) == DRAWN
