"""What the reward says of the solutions that people wrote: they are trained on whatever it says.

A rejected one is a broken reference, or has not the form that the reward reads, and a model that learns it
cannot be measured by that reward; so it is told. How they are rendered is in `problems`, what becomes of them
in `selection`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rest_em.recipe import RewardSection
from rest_em.run import Workplace
from rest_em.types import GradedSolution, Problem, Solution, Verdict

WAIT_SECONDS = 0.5
"""How often it is looked whether the run is asked to leave."""
NUM_SHOWN = 3


def rejected_solutions(
    place: Workplace, section: RewardSection, problems: Mapping[str, Problem], texts: Mapping[str, str]
) -> list[GradedSolution]:
    """Return the solutions of `texts`, by problem, that the reward does not find correct, in their order.

    Raises:
        RewardError: the reward cannot be imported, or its file has changed.
        RunInterruptedError: the run was asked to leave.
    """
    graders = place.judges.of(section)
    for key, text in texts.items():
        graders.submit(problems[key], Solution(key, 0, 0, text, token_ids=(), finish_reason="eos"))
    rejected: list[GradedSolution] = []
    while graders.num_pending:
        place.leave_if_asked()
        judged = graders.collect(timeout_seconds=WAIT_SECONDS)
        rejected += [one for one in judged if one.verdict is not Verdict.CORRECT]
    order = {key: number for number, key in enumerate(texts)}
    return sorted(rejected, key=lambda one: order[one.solution.problem_id])


def rejection_lines(rejected: Sequence[GradedSolution], num_solutions: int) -> list[str]:
    """Return what is to be told of human solutions that the reward rejects."""
    if not rejected:
        return []
    head = (
        f"{len(rejected):,} of {num_solutions:,} human solutions are not correct by the reward, which "
        "leaves none of them out; look at problems.solution and the references:"
    )
    shown = rejected[:NUM_SHOWN]
    return [head, *(f"  {one.solution.problem_id}: {one.reason or one.verdict.value}" for one in shown)]
