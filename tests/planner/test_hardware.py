"""The table of GPUs, a user's own over it, clusters of them, and each mistake in a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rest_em.errors import PlanError
from rest_em.planner.hardware import CONTEXT_BYTES, SHIPPED, Cluster, find_gpu, load_gpus, user_gpus_path

GIB = 2**30
MINE = """\
mine:
  memory_bytes: 16 GiB
  usable_bytes: 15.5 GiB
  bandwidth: 500 GB/s
  bf16_flops: 50 TFLOPS
  fp32_flops: null
  link: PCIe4 x16
  link_bandwidth: 32 GB/s
  has_peer_access: false
  host_link_bandwidth: 32 GB/s
  source: my own test
"""
GPUS = load_gpus(SHIPPED)


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    return tmp_path / "gpus.yaml"


def mistake(path: Path, text: str) -> str:
    """Return what is told of a file, without its name."""
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PlanError) as told:
        load_gpus(path)
    return str(told.value).replace(f"{path}:", "")


def test_every_shipped_gpu_holds_together() -> None:
    assert len(GPUS) > 20
    for name, gpu in GPUS.items():
        assert gpu.name == name
        assert gpu.usable_bytes <= gpu.memory_bytes
        assert gpu.link_bandwidth <= gpu.bandwidth
        assert gpu.source
        assert (gpu.dollars_per_hour is None) == (gpu.dollars_as_of is None)


def test_a_gpu_of_the_table_has_the_tables_figures() -> None:
    gpu = GPUS["h200"]
    assert (gpu.bf16_flops, gpu.bandwidth) == (989e12, 4.8e12)
    assert gpu.link_bandwidth == 450e9  # 900 in both directions
    assert gpu.usable_bytes == round(139.8 * GIB)
    assert GPUS["l4"].context_bytes == 226 * 2**20
    assert gpu.context_bytes == CONTEXT_BYTES


def test_a_gpu_without_native_bfloat16_computes_in_float32() -> None:
    assert (GPUS["v100_32"].bf16_flops, GPUS["v100_32"].peak_flops) == (None, 15.7e12)
    assert GPUS["h200"].peak_flops == 989e12


# A user's own file


def test_a_users_file_adds_a_gpu(mine: Path) -> None:
    mine.write_text(MINE, encoding="utf-8")
    gpu = load_gpus(mine)["mine"]
    assert (gpu.memory_bytes, gpu.usable_bytes) == (16 * GIB, round(15.5 * GIB))
    assert (gpu.aliases, gpu.gpus_per_node, gpu.confidence, gpu.dollars_per_hour) == ((), 8, "low", None)


def test_a_users_file_sets_single_keys_and_an_own_price_has_no_date_of_ours(mine: Path) -> None:
    mine.write_text("h200: {dollars_per_hour: 2}\nl4: {bandwidth: 280e9}\n", encoding="utf-8")
    gpus = load_gpus(mine)
    assert gpus["h200"] == replace(GPUS["h200"], dollars_per_hour=2, dollars_as_of=None)
    assert gpus["l4"] == replace(GPUS["l4"], bandwidth=280e9)
    assert gpus["a10"] == GPUS["a10"]


def test_a_users_file_is_looked_for_in_the_configuration_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert user_gpus_path() == tmp_path / "rest_em" / "gpus.yaml"
    assert load_gpus() == GPUS
    user_gpus_path().parent.mkdir()
    user_gpus_path().write_text("h200: {dollars_per_hour: 2}", encoding="utf-8")
    assert load_gpus()["h200"].dollars_per_hour == 2


def test_without_xdg_it_is_dot_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_gpus_path() == tmp_path / ".config" / "rest_em" / "gpus.yaml"


# Mistakes


def test_a_file_that_is_not_there_or_no_yaml_is_refused(mine: Path) -> None:
    with pytest.raises(
        PlanError, match=r"gpus\.yaml: No such file.*a file of GPUs \(a YAML file\) is wanted"
    ):
        load_gpus(mine)
    assert "this is not YAML" in mistake(mine, "h200: {")
    assert mistake(mine, "[h200]") == ("1: no section is here; names of GPUs, each with its keys, are wanted")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("h200: 3", "1: h200: 3 is here; keys as dollars_per_hour: 2.5 are wanted"),
        (
            "h200: {dollars_per_our: 3}",
            "1: h200.dollars_per_our is no key of a GPU; did you mean dollars_per_hour?",
        ),
        ("h200: {dollars_per_hour: 0}", "1: h200.dollars_per_hour is 0; a number above 0, or null is wanted"),
        ("h200: {dollars_per_hour: cheap}", "1: h200.dollars_per_hour is 'cheap'; a number above 0, or null"),
        ("h200: {dollars_per_hour: true}", "1: h200.dollars_per_hour is true; a number above 0, or null"),
        ("h200: {dollars_as_of: 2025}", "1: h200.dollars_as_of is 2025; a text in quotes, or null is wanted"),
        (
            "h200: {memory_bytes: 141}",
            "1: h200.memory_bytes is 141; bytes, at least 2**20, or a size as '24 GiB' or '24 GB' is wanted",
        ),
        ("h200: {memory_bytes: 141 TFLOPS}", "1: h200.memory_bytes is '141 TFLOPS'; bytes, at least"),
        ("h200: {memory_bytes: 1.4.1 GB}", "1: h200.memory_bytes is '1.4.1 GB'; bytes, at least"),
        ("h200: {bandwidth: 4800}", "1: h200.bandwidth is 4800; bytes a second, at least 1e6, or a rate as"),
        (
            "h200: {link_bandwidth: -1 GB/s}",
            "1: h200.link_bandwidth is '-1 GB/s'; bytes a second, at least 1e6",
        ),
        ("h200: {bf16_flops: 989}", "1: h200.bf16_flops is 989; FLOP a second, at least 1e9, or a rate as"),
        ("h200: {context_bytes: -1}", "1: h200.context_bytes is -1; bytes, at least 0, or a size as"),
        ("h200: {has_peer_access: 1}", "1: h200.has_peer_access is 1; true or false is wanted"),
        ("h200: {gpus_per_node: 2.5}", "1: h200.gpus_per_node is 2.5; a whole number above 0 is wanted"),
        ("h200: {confidence: total}", "1: h200.confidence is 'total'; high, medium or low is wanted"),
        ("h200: {confidence: [high]}", "1: h200.confidence is ['high']; high, medium or low is wanted"),
        ("h200: {aliases: H200}", "1: h200.aliases is 'H200'; a list of names is wanted"),
        ("h200: {link: ''}", "1: h200.link is ''; a text is wanted"),
        ("h200: {name: h300}", "1: h200.name is no key of a GPU;"),
        ("h200: {aliases: [NVIDIA L4]}", "1: h200.aliases: NVIDIA L4 is l4 already; another name is wanted"),
        ("h200: {usable_bytes: 200 GB}", "1: h200.usable_bytes is 200000000000; no more than memory_bytes, "),
        ("v100_32: {fp32_flops: null}", "1: v100_32.bf16_flops is null, as is fp32_flops; one of the two"),
        ("h200: {link: a}\nh200: {link: b}", "2: h200 is given twice"),
    ],
)
def test_a_mistake_is_told_with_its_place(mine: Path, text: str, told: str) -> None:
    assert mistake(mine, text).startswith(told)


def test_a_new_gpu_needs_its_keys_and_all_mistakes_are_told(mine: Path) -> None:
    lines = mistake(mine, f"h200: {{link: 3}}\n{MINE.replace('  source: my own test', '  bandwidths: 1e12')}")
    assert lines.splitlines() == [
        "1: h200.link is 3; a text is wanted",
        "2: mine: source is missing; a text is wanted",
        "12: mine.bandwidths is no key of a GPU; did you mean bandwidth?",
    ]


# Names


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("h200", "h200"),
        ("NVIDIA H200", "h200"),
        ("RTX-4090", "rtx4090"),
        ("nvidia geforce rtx 4090", "rtx4090"),
        ("NVIDIA A100-SXM4-80GB", "a100_80"),
        ("NVIDIA A100 80GB PCIe", "a100_80_pcie"),
        ("NVIDIA H100 80GB HBM3", "h100_sxm"),
    ],
)
def test_names_and_aliases_are_found(name: str, found: str) -> None:
    assert find_gpu(name, GPUS).name == found


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("rtx", "GPU rtx: which of rtx3090, rtx4090, rtx5090, rtx6000_ada, rtx_a6000?"),
        ("rtx409", "GPU rtx409: none is known by this name; did you mean rtx4090?"),
        ("H300", "GPU H300: none is known by this name; did you mean h"),
        ("abacus", "GPU abacus: none is known by this name; there are a10, a100_40, "),
        ("", "GPU : none is known by this name; there are a10, "),
    ],
)
def test_a_name_that_is_not_known_is_told_with_what_is_near(name: str, told: str) -> None:
    with pytest.raises(PlanError) as error:
        find_gpu(name, GPUS)
    assert str(error.value).startswith(told)


# Clusters


def test_the_slowest_link_is_that_between_nodes_where_there_are_several() -> None:
    assert Cluster(gpu=GPUS["h200"], num_gpus=8).slowest_link == 450e9
    two = Cluster(gpu=GPUS["h200"], num_gpus=8, num_nodes=2)
    assert (two.num_devices, two.slowest_link) == (16, 50e9)
    assert replace(two, node_bandwidth=900e9).slowest_link == 450e9
    assert replace(two, num_gpus=1, node_bandwidth=900e9).slowest_link == 900e9


def test_without_peer_access_half_of_the_link_is_left() -> None:
    assert Cluster(gpu=GPUS["rtx4090"], num_gpus=2).slowest_link == 16e9
    assert Cluster(gpu=GPUS["l4"], num_gpus=2).slowest_link == 32e9


@pytest.mark.parametrize("change", [{"num_gpus": 0}, {"num_nodes": -1}, {"host_bandwidth": 0.0}])
def test_a_cluster_of_nothing_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(PlanError, match="a number above 0 is wanted"):
        replace(Cluster(gpu=GPUS["l4"]), **change)
