"""Problems: rows of a file or hub data set (`rows`), their prompts (`prompts`), and both (`loading`)."""

from rest_em.problems.loading import check_disjoint, load_problems, split_validation
from rest_em.problems.prompts import base_variants, resolve_variant, training_variant, tuned_variant

__all__ = [
    "base_variants",
    "check_disjoint",
    "load_problems",
    "resolve_variant",
    "split_validation",
    "training_variant",
    "tuned_variant",
]
