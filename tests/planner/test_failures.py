"""What failures cost, worked by hand."""

from __future__ import annotations

import pytest

from rest_em.errors import PlanError
from rest_em.planner.failures import DEVICE_MTBF_SECONDS, plan_failures
from rest_em.planner.hardware import SHIPPED, Cluster, load_gpus

CLUSTER = Cluster(gpu=load_gpus(SHIPPED)["h100_sxm"], num_gpus=8, num_nodes=10, disk_bandwidth=1e9)


def test_a_stage_without_checkpoints_loses_half_of_itself_unless_told() -> None:
    plan = plan_failures(CLUSTER, 4000, recovery_seconds=400, device_mtbf_seconds=80 * 20_000)
    assert plan.mtbf_seconds == 20_000
    assert plan.expected_failures == 0.2
    assert (plan.checkpoint_interval_seconds, plan.lost_seconds) == (None, 2000)
    assert plan.expected_loss == pytest.approx(0.12)  # (2000 + 400) / 20,000


def test_a_unit_of_the_e_step_is_all_that_a_failure_undoes() -> None:
    plan = plan_failures(
        CLUSTER, 4000, recovery_seconds=400, lost_seconds=100, device_mtbf_seconds=80 * 20_000
    )
    assert plan.expected_loss == pytest.approx(0.025)


def test_checkpoints_are_written_when_least_is_lost() -> None:
    plan = plan_failures(
        CLUSTER,
        1e6,
        recovery_seconds=400,
        checkpoint_bytes=100 * 10**9,
        device_mtbf_seconds=80 * 20_000,
    )
    assert plan.checkpoint_seconds == 100
    assert plan.checkpoint_interval_seconds == 2000  # sqrt(2 x 100 x 20,000)
    assert plan.lost_seconds == 1000
    assert plan.expected_loss == pytest.approx(0.12)  # (1000 + 400) / 20,000 + 100 / 2000


def test_checkpoints_as_often_as_asked_cost_and_save_what_that_interval_does() -> None:
    asked = {"recovery_seconds": 400, "checkpoint_bytes": 100 * 10**9, "device_mtbf_seconds": 80 * 20_000}
    plan = plan_failures(CLUSTER, 1e6, interval_seconds=900, **asked)
    assert (plan.checkpoint_interval_seconds, plan.lost_seconds) == (1000, 500)
    assert plan.expected_loss == pytest.approx(0.145)  # (500 + 400) / 20,000 + 100 / 1000
    short = plan_failures(CLUSTER, 800, interval_seconds=900, **asked)
    assert (short.checkpoint_interval_seconds, short.lost_seconds) == (None, 400)


def test_no_interval_is_longer_than_the_run() -> None:
    plan = plan_failures(CLUSTER, 50, recovery_seconds=0, checkpoint_bytes=100 * 10**9)
    assert plan.checkpoint_interval_seconds == 50


def test_a_cluster_that_fails_faster_than_it_recovers_loses_all() -> None:
    plan = plan_failures(CLUSTER, 1e6, recovery_seconds=600, device_mtbf_seconds=80 * 500)
    assert plan.expected_loss == 1.0


def test_the_default_is_what_a_run_on_16384_gpus_met() -> None:
    hours = 16_384 * 54 * 24 / 419
    assert hours * 3600 == pytest.approx(DEVICE_MTBF_SECONDS, rel=0.02)


@pytest.mark.parametrize(
    ("run", "recovery", "message"),
    [
        (0.0, 0.0, "run_seconds is 0.0; a number above 0 is wanted"),
        (1.0, -1.0, "recovery_seconds is -1.0; a number of at least 0 is wanted"),
    ],
)
def test_a_time_that_cannot_be_is_refused(run: float, recovery: float, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        plan_failures(CLUSTER, run, recovery_seconds=recovery)
