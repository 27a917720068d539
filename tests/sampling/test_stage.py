"""The sampling stage as a process of one rank and of two, on a tiny checkpoint on disk."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rest_em.errors import SamplingError
from rest_em.sampling.policy import choose_dtype, load_policy
from rest_em.sampling.stage import main
from rest_em.sampling.units import unit_path
from rest_em.storage import read_json, read_solutions, request_to_json, write_json
from rest_em.types import DrawRequest, Problem, SamplingParams
from rest_em.usage import joint_usage

MODEL = {"dtype": "float32", "attn_implementation": "auto", "trust_remote_code": False, "revision": None}


def draw_request(name="iteration-01/samples"):
    problems = tuple(Problem(id=f"p{n}", prompt=f"{n} + {n} =", reference=None) for n in range(10))
    params = SamplingParams(num_samples=3, max_new_tokens=12, temperature=1.0, top_k=50, stop_strings=("\n",))
    return DrawRequest(name, problems, params, iteration=1, seed=0, unit_size=6, max_rows=4)


def write_spec(folder, policy, requests, units=range(5)):
    draws = []
    for request in requests:
        place = folder / request.name
        write_json(place / "request.json", request_to_json(request))
        draws.append({"policy": str(policy), "folder": str(place), "units": list(units)})
    spec = {"model": MODEL, "draws": draws, "progress": str(folder / "progress")}
    write_json(folder / "spec.json", spec)
    return spec


def contents(folder, request, units=range(5)):
    return [read_solutions(unit_path(folder / request.name, number)) for number in units]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start_rank(spec: Path, rank: int, port: int):
    environment = {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    code = (
        "import json, pathlib, sys; from rest_em.sampling.stage import main; "
        "main(json.loads(pathlib.Path(sys.argv[1]).read_text()))"
    )
    return subprocess.Popen([sys.executable, "-c", code, str(spec)], env=environment)


def test_a_prompt_that_is_too_long_is_told_before_anything_is_drawn(tmp_path, tiny_model_folder):
    fits, late = draw_request(), draw_request("iteration-00/evals")
    long = Problem(id="long", prompt="x" * 600, reference=None)
    late = replace(late, problems=(*late.problems[:9], long))
    with pytest.raises(SamplingError, match="problem long: its prompt has 601 tokens"):
        main(write_spec(tmp_path, tiny_model_folder, [fits, late]))
    assert not list(tmp_path.glob("**/*.parquet"))


def test_all_units_of_all_draws_are_written_in_order(tmp_path, tiny_model_folder):
    requests = [draw_request(), draw_request("iteration-00/evals")]
    main(write_spec(tmp_path, tiny_model_folder, requests))
    for request in requests:
        solutions = [one for unit in contents(tmp_path, request) for one in unit]
        assert [(one.problem_id, one.index) for one in solutions] == [
            (f"p{problem}", index) for problem in range(10) for index in range(3)
        ]
        assert {one.iteration for one in solutions} == {1}


def test_progress_counts_what_this_rank_finished(tmp_path, tiny_model_folder):
    request = draw_request()
    main(write_spec(tmp_path, tiny_model_folder, [request], units=[1, 4]))
    assert read_json(tmp_path / "progress" / "0.json") == {"done": 12}


def num_tokens(folder, request, units=range(5)):
    return sum(len(one.token_ids) for unit in contents(folder, request, units) for one in unit)


def test_each_draw_keeps_what_it_took_and_goes_on_with_it(tmp_path, tiny_model_folder):
    requests = [draw_request(), draw_request("iteration-00/evals")]
    main(write_spec(tmp_path, tiny_model_folder, requests, units=[1, 4]))
    main(write_spec(tmp_path, tiny_model_folder, requests[:1], units=[0]))
    for request, units in zip(requests, ([0, 1, 4], [1, 4]), strict=True):
        usage = joint_usage(tmp_path / request.name)
        assert (usage.num_ranks, usage.device, usage.num_steps) == (1, "cpu", 0)
        assert usage.num_tokens == num_tokens(tmp_path, request, units)
        assert usage.peak_bytes >= usage.resident_bytes_at_start > 0
        assert 0 < usage.work_seconds < usage.seconds


def test_a_unit_does_not_depend_on_which_others_are_done(tmp_path, tiny_model_folder):
    request = draw_request()
    main(write_spec(tmp_path / "all", tiny_model_folder, [request]))
    main(write_spec(tmp_path / "two", tiny_model_folder, [request], units=[3, 1]))
    assert contents(tmp_path / "two", request, [1, 3]) == contents(tmp_path / "all", request, [1, 3])
    assert not unit_path(tmp_path / "two" / request.name, 0).exists()


def test_two_ranks_share_the_units_and_write_what_one_writes(tmp_path, tiny_model_folder):
    requests = [draw_request(), draw_request("iteration-00/evals")]
    main(write_spec(tmp_path / "one", tiny_model_folder, requests))
    write_spec(tmp_path / "two", tiny_model_folder, requests)
    port = free_port()
    ranks = [start_rank(tmp_path / "two" / "spec.json", rank, port) for rank in (1, 0)]
    try:
        assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    for request in requests:
        assert contents(tmp_path / "two", request) == contents(tmp_path / "one", request)
        usage = joint_usage(tmp_path / "two" / request.name)
        ranks = {path.name[0] for path in (tmp_path / "two" / request.name / "usage").iterdir()}
        assert usage.num_tokens == num_tokens(tmp_path / "one", request)
        assert usage.num_ranks == len(ranks)
    done = [
        json.loads((tmp_path / "two" / "progress" / f"{rank}.json").read_text())["done"] for rank in (0, 1)
    ]
    assert sum(done) == 60


def test_auto_is_bfloat16_only_where_the_processor_multiplies_in_it(monkeypatch):
    for native, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr("rest_em.devices._cpu_has_bfloat16", lambda native=native: native)
        assert choose_dtype("auto", torch.device("cpu")) == dtype
    assert choose_dtype("float16", torch.device("cpu")) == torch.float16


def test_a_folder_is_loaded_without_the_hub(tiny_model_folder, monkeypatch):
    def refuse(*_):
        pytest.fail("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    policy = load_policy(str(tiny_model_folder), dtype="bfloat16", device=torch.device("cpu"))
    assert policy.model.dtype == torch.bfloat16
    assert not policy.model.training
    assert (policy.eos_token_ids, policy.max_positions) == (frozenset([2]), 512)
