"""Problems: rows of a file or hub data set (`rows`), their prompts (`prompts`), and both (`loading`)."""

from rest_em.problems.loading import (
    check_disjoint,
    check_not_shown,
    human_solutions_of,
    load_problems,
    split_validation,
)
from rest_em.problems.prompts import (
    base_variants,
    every_variant,
    example_prompts,
    resolve_variant,
    teacher_variant,
    template_columns,
    training_variant,
    tuned_variant,
)
from rest_em.problems.rows import read_rows

__all__ = [
    "base_variants",
    "check_disjoint",
    "check_not_shown",
    "every_variant",
    "example_prompts",
    "human_solutions_of",
    "load_problems",
    "read_rows",
    "resolve_variant",
    "split_validation",
    "teacher_variant",
    "template_columns",
    "training_variant",
    "tuned_variant",
]
