"""What failures of devices cost a run, and how often it pays to save.

rest_em itself saves each sampling unit of the E-step, and the M-step every `training.save_seconds`: a crash
undoes at most one unit a rank, or the M-step since it was last saved.
"""

from __future__ import annotations

from dataclasses import dataclass

from rest_em.errors import PlanError
from rest_em.planner import textbook
from rest_em.planner.hardware import Cluster

DEVICE_MTBF_SECONDS = 50_000 * 3600.0
"""One failure a device in 5.7 years, as of the 16,384 H100 of Llama 3: 419 in 54 days are 50,700 hours each.

Source: Llama Team 2024, The Llama 3 herd of models, section 3.3.4.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailurePlan:
    """What failures do to one stage of a run."""

    mtbf_seconds: float
    """Mean time between failures of any device of the cluster."""
    expected_failures: float
    """In the run's time, repetitions not counted."""
    checkpoint_seconds: float
    """To write one checkpoint; 0.0: none are written."""
    checkpoint_interval_seconds: float | None
    """Between two checkpoints, as asked or where least is lost (Young, Daly); None: none are written."""
    lost_seconds: float
    """Work that one failure undoes, on average."""
    recovery_seconds: float
    """From a failure until work goes on."""
    expected_loss: float
    """Share of the time that failures and checkpoints take, in [0, 1]; 1.0: the work does not end."""


def plan_failures(
    cluster: Cluster,
    run_seconds: float,
    *,
    recovery_seconds: float,
    lost_seconds: float | None = None,
    checkpoint_bytes: int = 0,
    interval_seconds: float | None = None,
    device_mtbf_seconds: float = DEVICE_MTBF_SECONDS,
) -> FailurePlan:
    """Return what failures cost a stage.

    Args:
        run_seconds: of the stage without failures.
        lost_seconds: work that a failure undoes, on average: half a sampling unit of the E-step. None: half
            the interval between checkpoints, or half of the run without any.
        checkpoint_bytes: that each node writes to its disk, all else waiting; 0: there are no checkpoints.
        interval_seconds: between two checkpoints; a shorter run has none. None: where least is lost.

    Raises:
        PlanError: a time is not what it can be.
    """
    times = {"run_seconds": run_seconds, "device_mtbf_seconds": device_mtbf_seconds}
    at_least_0 = {"recovery_seconds": recovery_seconds, "lost_seconds": lost_seconds or 0.0}
    for name, value in (times | at_least_0).items():
        if not value >= 0 or (name in times and value == 0):
            wanted = "above 0" if name in times else "of at least 0"
            raise PlanError(f"{name} is {value}; a number {wanted} is wanted")
    mtbf = textbook.cluster_mtbf_seconds(device_mtbf_seconds, cluster.num_devices)
    if interval_seconds is not None and interval_seconds >= run_seconds:
        checkpoint_bytes = 0
    checkpoint_seconds = checkpoint_bytes / cluster.disk_bandwidth
    interval = _interval(checkpoint_seconds, mtbf, run_seconds)
    if interval is not None and interval_seconds is not None:
        interval = interval_seconds + checkpoint_seconds  # a run counts from when the last one was written
    if lost_seconds is None:
        lost_seconds = (run_seconds if interval is None else interval) / 2
    loss = textbook.lost_fraction(
        mtbf,
        lost_seconds=lost_seconds,
        recovery_seconds=recovery_seconds,
        checkpoint_seconds=checkpoint_seconds,
        interval_seconds=run_seconds if interval is None else interval,
    )
    return FailurePlan(
        mtbf_seconds=mtbf,
        expected_failures=run_seconds / mtbf,
        checkpoint_seconds=checkpoint_seconds,
        checkpoint_interval_seconds=interval,
        lost_seconds=lost_seconds,
        recovery_seconds=recovery_seconds,
        expected_loss=loss,
    )


def _interval(checkpoint_seconds: float, mtbf_seconds: float, run_seconds: float) -> float | None:
    """Return the interval that loses least, at most the run; None without checkpoints."""
    if checkpoint_seconds == 0:
        return None
    return min(textbook.checkpoint_interval_seconds(checkpoint_seconds, mtbf_seconds), run_seconds)
