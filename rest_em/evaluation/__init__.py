"""What judged samples say of a policy, and of two. docs/evaluation.md defines every figure.

`estimators` and `votes` are figures of one problem, `spread` and `intervals` means over problems, `pairs` the
difference of two, `columns` the samples as arrays, `summary` all figures of a policy, `comparison` two
policies on the same problems.
"""

from rest_em.evaluation.columns import CODES, Columns, ColumnsBuilder, columns_of, columns_of_table
from rest_em.evaluation.comparison import Comparison, Difference, Side, compare
from rest_em.evaluation.estimators import best_at_k, pass_at_k
from rest_em.evaluation.intervals import Estimate, Figure, estimate
from rest_em.evaluation.pairs import SignTest, is_shown, paired_gain, sign_test, unpaired_gain
from rest_em.evaluation.summary import (
    BUCKETS,
    Evaluation,
    Figures,
    Metrics,
    Shares,
    by_difficulty,
    gain,
    shares,
    summarize,
)
from rest_em.evaluation.votes import SameAnswer, VoteClass, majority_at_k, vote_classes

__all__ = [
    "BUCKETS",
    "CODES",
    "Columns",
    "ColumnsBuilder",
    "Comparison",
    "Difference",
    "Estimate",
    "Evaluation",
    "Figure",
    "Figures",
    "Metrics",
    "SameAnswer",
    "Shares",
    "Side",
    "SignTest",
    "VoteClass",
    "best_at_k",
    "by_difficulty",
    "columns_of",
    "columns_of_table",
    "compare",
    "estimate",
    "gain",
    "is_shown",
    "majority_at_k",
    "paired_gain",
    "pass_at_k",
    "shares",
    "sign_test",
    "summarize",
    "unpaired_gain",
    "vote_classes",
]
