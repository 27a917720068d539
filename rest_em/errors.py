"""Every error that a user can meet; those that stand for a mistake are also standard-library errors.

A message says where, what was found, what is wanted and what to do next. Anything else that escapes
is a bug of ours and keeps its traceback.
"""

from collections.abc import Sequence


class RestEMError(Exception):
    """The base of all errors that the command line prints without a traceback."""


class RecipeError(RestEMError, ValueError):
    """Raised when a recipe cannot be read or contradicts itself."""


class ProblemError(RestEMError, ValueError):
    """Raised when a file of problems or few-shot examples cannot be used, or a prompt does not render."""


class RewardError(RestEMError, ValueError):
    """Raised when a reward cannot be imported, fails its canary, or judges too few solutions."""


class UnscorableError(RestEMError, ValueError):
    """Raised *by a reward* that cannot judge a solution, through no fault of the solution.

    The solution is then neither correct nor incorrect: it is not trained on and not counted as wrong.
    """


class ScoringError(RestEMError, ValueError):
    """Raised when stored solutions cannot be read, or an output holds verdicts on something else."""


class SamplesError(RestEMError, ValueError):
    """Raised when a table of samples or another harness's log cannot be read, written or compared."""


class SamplingError(RestEMError, ValueError):
    """Raised when a model cannot be sampled with the recipe's settings."""


class SelectionError(RestEMError, ValueError):
    """Raised when nothing is left to train on."""


class TrainingError(RestEMError, ValueError):
    """Raised when the M-step's settings contradict the number of processes or the model."""


class PlanError(RestEMError, ValueError):
    """Raised when a model, a recipe or a machine cannot be planned for."""


class StageError(RestEMError, RuntimeError):
    """Raised when a stage's process fails or is killed; the message names its log."""


class RunFolderError(RestEMError, RuntimeError):
    """Raised when a run folder is locked by another run, is not shared, or lacks what a run needs of it."""


class RecipeChangedError(RunFolderError):
    """Raised when finished work was done with settings, problems or a reward that have changed since."""

    def __init__(self, message: str, stages: Sequence[str] = ()) -> None:
        """Tell it.

        Args:
            message: for people.
            stages: the names of the stages whose own inputs have changed, or that follow from such.
        """
        super().__init__(message)
        self.stages = tuple(stages)


class RunInterruptedError(BaseException):
    """Raised when a signal or a file `stop` in the run folder asks the run to leave.

    No `Exception`, as KeyboardInterrupt is none: a signal comes anywhere, also inside a library's import, and
    an `except Exception` there must not swallow it.
    """
