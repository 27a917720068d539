"""Problems: rows of a file or hub data set (`rows`), their prompts (`prompts`), and both (`loading`)."""

from rest_em.problems.loading import check_disjoint, check_not_shown, load_problems, split_validation
from rest_em.problems.prompts import (
    base_variants,
    example_prompts,
    resolve_variant,
    template_columns,
    training_variant,
    tuned_variant,
)
from rest_em.problems.rows import read_rows

__all__ = [
    "base_variants",
    "check_disjoint",
    "check_not_shown",
    "example_prompts",
    "load_problems",
    "read_rows",
    "resolve_variant",
    "split_validation",
    "template_columns",
    "training_variant",
    "tuned_variant",
]
