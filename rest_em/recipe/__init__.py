"""The recipe of a run. Start in `sections`, the reference of the YAML; `loading` reads it."""

from rest_em.recipe.evals import Eval, EvalSampling, MetricsSection
from rest_em.recipe.libraries import check_files, check_library_keys
from rest_em.recipe.loading import (
    difference,
    dump_recipe,
    load_eval,
    load_model_section,
    load_recipe,
    load_reward_section,
    nearest,
    run_name_of,
)
from rest_em.recipe.owned import OWNED_LORA_KEYS, OWNED_TRAINING_KEYS
from rest_em.recipe.sections import (
    EvalChoice,
    EvaluationSection,
    ModelSection,
    ProblemSource,
    ProblemsSection,
    PromptSection,
    PromptVariant,
    Range,
    Recipe,
    RewardPart,
    RewardSection,
    SamplingSection,
    SelectionSection,
    TrackingSection,
    TrainingSection,
)
from rest_em.recipe.shipped import find_eval, shipped

__all__ = [
    "OWNED_LORA_KEYS",
    "OWNED_TRAINING_KEYS",
    "Eval",
    "EvalChoice",
    "EvalSampling",
    "EvaluationSection",
    "MetricsSection",
    "ModelSection",
    "ProblemSource",
    "ProblemsSection",
    "PromptSection",
    "PromptVariant",
    "Range",
    "Recipe",
    "RewardPart",
    "RewardSection",
    "SamplingSection",
    "SelectionSection",
    "TrackingSection",
    "TrainingSection",
    "check_files",
    "check_library_keys",
    "difference",
    "dump_recipe",
    "find_eval",
    "load_eval",
    "load_model_section",
    "load_recipe",
    "load_reward_section",
    "nearest",
    "run_name_of",
    "shipped",
]
