"""A plan as people read it: a table of both phases, and a bar a device at the instant that binds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from rest_em.planner.hardware import Gpu
from rest_em.planner.inventory import active_parameters, weights_of
from rest_em.planner.plan import Plan
from rest_em.planner.provenance import explain
from rest_em.planner.training import Comparison
from rest_em.report.cells import ABSENT, table_of

GIB = 2**30
BAR_WIDTH = 64
COLOURS = (
    "blue",
    "green",
    "yellow",
    "magenta",
    "cyan",
    "red",
    "bright_blue",
    "bright_green",
    "bright_yellow",
)


def gib(num_bytes: float) -> str:
    """Return bytes in GiB.

    >>> gib(1.5 * 2**30)
    '1.50 GiB'
    """
    return f"{num_bytes / GIB:,.2f} GiB"


def duration(seconds: float | None) -> str:
    """Return a time in the unit that fits.

    >>> duration(5400), duration(12.3)
    ('1.5 h', '12 s')
    """
    if seconds is None:
        return ABSENT
    for size, unit in ((86400 * 2, "d"), (3600, "h"), (120, "min")):
        if seconds >= size:
            return f"{seconds / {'d': 86400, 'h': 3600, 'min': 60}[unit]:,.1f} {unit}"
    return f"{seconds:,.0f} s" if seconds >= 1 else f"{seconds:.2f} s"


def dollars(amount: float | None) -> str:
    """Return an amount of money."""
    return ABSENT if amount is None else f"${amount:,.2f}"


def print_plan(plan: Plan, console: Console) -> None:
    """Print a plan."""
    shape, cluster = plan.shape, plan.cluster
    total = weights_of(shape).num_elements
    active = f" ({active_parameters(shape) / 1e9:.3f}e9 active)" if shape.experts else ""
    console.print(
        f"{plan.model}: {shape.family}, {total / 1e9:.3f}e9 parameters{active}, on {cluster.num_devices} x "
        f"{cluster.gpu.name} ({gib(cluster.gpu.usable_bytes)} usable each)",
        soft_wrap=True,
        markup=False,
    )
    if plan.sampler != plan.model:
        told = f"the E-step is drawn by {plan.sampler}, {plan.sampling_shape.family}"
        console.print(told, soft_wrap=True, markup=False)
    if not plan.is_drawn:
        console.print("no E-step is drawn: D_1 is of human solutions; its time is not counted below")
    _print_phases(plan, console)
    sampling, memory = plan.sampling, plan.training.memory
    _print_bar(
        console,
        f"sampling, {sampling.memory.peak.instant}",
        {**sampling.components, **sampling.outside},
        sampling.usable_bytes,
    )
    _print_bar(
        console,
        f"training, {memory.peak.name}",
        {**memory.peak.components, **memory.outside},
        memory.usable_bytes,
    )
    _print_totals(plan, console)


def _print_phases(plan: Plan, console: Console) -> None:
    table = table_of("one E-step and one M-step")
    for name in (
        "phase",
        "fits",
        "peak",
        "spare",
        "binding instant",
        "batch",
        "tokens/s",
        "bound by",
        "time",
        "cost",
    ):
        table.add_column(
            name, justify="left" if name in ("phase", "binding instant", "bound by") else "right"
        )
    sampling, training = plan.sampling, plan.training
    speed, time, memory = sampling.speed, training.time, training.memory
    table.add_row(
        f"sampling, {sampling.setup.engine}",
        _yes(is_fitting=sampling.spare_bytes >= 0),
        gib(sampling.peak_bytes),
        gib(sampling.spare_bytes),
        sampling.memory.peak.instant,
        f"{sampling.setup.rows} of {sampling.max_batch}",
        ABSENT if speed is None else f"{speed.tokens_per_second:,.0f}",
        ABSENT if speed is None else speed.step.bound,
        duration(speed.total_seconds if speed else None),
        dollars(plan.dollars(speed.total_seconds if speed else None)),
    )
    table.add_row(
        f"training, {training.setup.method} {training.setup.strategy} {training.setup.precision}",
        _yes(is_fitting=memory.spare_bytes >= 0),
        gib(memory.peak.total_bytes),
        gib(memory.spare_bytes),
        memory.peak.name,
        f"{training.setup.num_rows} x {training.setup.longest}",
        ABSENT if time is None else f"{time.num_tokens / time.seconds:,.0f}",
        ABSENT if time is None else time.step.bound_by,
        duration(time.seconds if time else None),
        dollars(plan.dollars(time.seconds if time else None)),
    )
    console.print(table)


def _add_columns(table: Table, names: str) -> None:
    """Add columns; those whose name ends with a bar are texts."""
    for name in names.split():
        table.add_column(
            name.rstrip("|").replace("_", " "), justify="left" if name.endswith("|") else "right"
        )


def _yes(*, is_fitting: bool) -> Text:
    return Text("yes", style="green") if is_fitting else Text("NO", style="bold red")


def _print_bar(console: Console, title: str, parts: Mapping[str, int], usable_bytes: int) -> None:
    """Draw what a device holds against what it has; what is too much is drawn beyond the edge."""
    total = sum(parts.values())
    scale = BAR_WIDTH / max(usable_bytes, total)
    edge = round(usable_bytes * scale)
    bar, place, legend = Text(), 0.0, []
    chosen = sorted(((size, name) for name, size in parts.items() if size), reverse=True)
    for number, (size, name) in enumerate(chosen):
        style, before = COLOURS[number % len(COLOURS)], round(place)
        place += size * scale
        bar.append("█" * (round(place) - before), style=style)
        legend.append((name, size, style))
    bar.append("·" * max(0, edge - len(bar)))
    line = Text(f"{title}: {gib(total)} of {gib(usable_bytes)}\n  ")
    line.append_text(bar[:edge])
    line.append("|")
    line.append_text(bar[edge:])
    console.print(line, soft_wrap=True)
    names = Text("  ")
    for name, size, style in legend:
        if size >= total / 200:
            names.append("■ ", style=style)
            names.append(f"{name} {gib(size)}   ")
    console.print(names)


def _print_totals(plan: Plan, console: Console) -> None:
    training = plan.training
    memory = training.memory
    lines = [
        f"{plan.num_iterations} iterations with their evaluation: {duration(plan.seconds)}, "
        f"{dollars(plan.dollars(plan.seconds))}",
        f"host memory a node at the peak: {gib(memory.host_peak_bytes)} ({gib(memory.pinned_host_bytes)} "
        f"page-locked); disk of an M-step: {gib(memory.disk_bytes)}",
    ]
    speed, num_devices = plan.sampling.speed, plan.cluster.num_devices
    if speed is not None and speed.num_busy_devices < num_devices:
        size = max(1, (plan.sampling.num_solutions or 0) // num_devices)
        lines.append(
            f"{num_devices - speed.num_busy_devices} of {num_devices} devices have no solutions to draw: "
            f"sampling.unit_size {size} would share them out"
        )
    host_spare = plan.host_spare_bytes
    if host_spare is not None and host_spare < 0:
        lines.append(f"the host lacks {gib(-host_spare)} for that; offload less, or take fewer ranks a node")
    if memory.swap_bytes:
        lines.append(f"NVMe of a node while training: {gib(memory.swap_bytes)}")
    degree = plan.largest_tensor_parallel
    if degree is not None and plan.cluster.num_gpus > 1:
        worth = "does not pay" if degree < 2 else f"worth it up to {degree:.1f} devices"
        lines.append(f"tensor parallelism, for an engine of your own: {worth} over {plan.cluster.gpu.link}")
    if not plan.fits:
        lines.append("it does not fit as asked; --search names the changes with which it would")
    failures = plan.failures
    if failures is not None:
        lines.append(
            f"failures: one in {duration(failures.mtbf_seconds)}; an M-step is expected to lose "
            f"{100 * failures.expected_loss:.2g} % of its time to them"
        )
    saved = plan.checkpointed_failures
    if saved is not None and failures is not None and saved.expected_loss < failures.expected_loss:
        lines.append(
            f"with a checkpoint every {duration(saved.checkpoint_interval_seconds)} "
            f"(training.save_seconds) it would be {100 * saved.expected_loss:.2g} %"
        )
    for line in (*lines, *plan.workload.sources):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def print_explained(plan: Plan, console: Console) -> None:
    """Print where the figures of a plan come from."""
    table = table_of("where the figures come from: at the binding instants, in GiB; times in seconds")
    _add_columns(table, "phase| figure| value formula| source| confidence|")
    for one in explain(plan):
        value = ABSENT if one.value is None else f"{one.value:,.2f}"
        if one.phase != "times" and one.value is not None:
            value = f"{one.value / GIB:,.3f}"
        table.add_row(one.phase, one.name, value, escape(one.formula), escape(one.source), one.confidence)
    console.print(table)


def print_verified(comparisons: Sequence[Comparison], console: Console) -> None:
    """Print the plan of a micro-step beside a trace of it."""
    table = table_of("a traced micro-step, beyond its states")
    _add_columns(table, "phase| planned traced error")
    for one in comparisons:
        table.add_row(one.phase, gib(one.planned_bytes), gib(one.traced_bytes), f"{100 * one.error:+.2f} %")
    console.print(table)


def print_gpus(gpus: Mapping[str, Gpu], console: Console) -> None:
    """Print the table of devices."""
    table = table_of("devices; dense bf16 TFLOPS with fp32 accumulation, links one way")
    for name in (
        "name",
        "usable",
        "GB/s",
        "TFLOPS",
        "link",
        "GB/s",
        "host GB/s",
        "$/h",
        "as of",
        "confidence",
    ):
        table.add_column(name, justify="left" if name in ("name", "link", "as of", "confidence") else "right")
    for one in gpus.values():
        table.add_row(
            one.name,
            gib(one.usable_bytes),
            f"{one.bandwidth / 1e9:,.0f}",
            ABSENT if one.bf16_flops is None else f"{one.bf16_flops / 1e12:,.0f}",
            one.link,
            f"{one.link_bandwidth / 1e9:,.0f}",
            f"{one.host_link_bandwidth / 1e9:,.0f}",
            ABSENT if one.dollars_per_hour is None else f"{one.dollars_per_hour:.2f}",
            one.dollars_as_of or ABSENT,
            one.confidence,
        )
    console.print(table)
