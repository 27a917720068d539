"""The command line: verbs only. It builds the parts of a run and calls the loop of `algorithm`."""

from __future__ import annotations

import gc
import importlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core
from rich.console import Console
from rich.text import Text

from rest_em import __version__
from rest_em.cli_evaluate import WithNumbers, compare, evaluate, export, whole_numbers
from rest_em.cli_plan import plan
from rest_em.errors import (
    ProblemError,
    RecipeError,
    RestEMError,
    RewardError,
    RunInterruptedError,
    TrainingError,
)
from rest_em.report.cells import console
from rest_em.stages import Ranks, Supervisor, enter_stage, follow, interruptible, leave_stage
from rest_em.status import message_of, status_of
from rest_em.types import Messages

if TYPE_CHECKING:
    from rest_em.ledger import Ledger
    from rest_em.problem_sets import ProblemSets
    from rest_em.recipe import Recipe
    from rest_em.run_plan import RunPlan

STAGES = {"sample": "rest_em.sampling.stage", "train": "rest_em.training.stage"}
"""What `_stage NAME` runs: the `main` of these modules."""
EXIT_FAILED = 1
EXIT_INTERRUPTED = 75
"""EX_TEMPFAIL of sysexits.h: the same command goes on later."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
recipes_app = typer.Typer(help="The recipes that come with rest_em.", no_args_is_help=True)
app.add_typer(recipes_app, name="recipes")
evals_app = typer.Typer(help="The evals that come with rest_em.", no_args_is_help=True)
app.add_typer(evals_app, name="evals")

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe's YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key: --set sampling.num_samples=8."),
]


def main() -> None:
    """Run the command line; print an error that a user can mend as one message, without a traceback."""
    try:
        app()
    except (RestEMError, RunInterruptedError, OSError) as error:
        message = message_of(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED if isinstance(error, RunInterruptedError) else EXIT_FAILED)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print(f"rest_em {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """ReST^EM self-training for language models as one restartable command."""


@app.command()
def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    from_stage: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STAGE",
            help="Do a finished stage and all that came of it again; a name such as iteration-01/dataset, "
            "or a pattern such as '*/evals/*'.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Check the recipe, say what is done and what --from-stage would forget."
        ),
    ] = False,
    forced: Annotated[
        bool, typer.Option("--force", help="Start even where the plan says that memory cannot suffice.")
    ] = False,
) -> None:
    """Run a recipe to its end, or go on where it was interrupted.

    The run's folder is runs/<run name> in the working directory. Start it on several processes with
    `accelerate launch --config_file launch/ddp_cpu.yaml -m rest_em run RECIPE`. To stop it gracefully, create
    a file named stop in the run's folder.
    """
    ranks = Ranks.from_environment(os.environ)
    with interruptible():
        if dry_run:  # nobody has anything to wait for
            if ranks.is_leader:
                _say_what_is_done(ranks, recipe, overrides or [], from_stage or [], forced=forced)
            return
        if not ranks.is_leader:
            with suppress(RunInterruptedError):  # rank 0 tells it
                follow(ranks)
            return
        _lead(ranks, recipe, overrides or [], from_stage or [], forced=forced)


def _say_what_is_done(
    ranks: Ranks, path: Path, overrides: list[str], from_stages: list[str], *, forced: bool
) -> None:
    """Check the recipe and read the ledger; nothing is written."""
    from rest_em.ledger import Ledger
    from rest_em.recipe import load_recipe, run_name_of
    from rest_em.report.progress import Progress

    recipe = load_recipe(path, overrides)
    problems = _check(recipe, num_ranks=ranks.world_size)
    folder, progress = Path("runs") / run_name_of(path, recipe), Progress()
    _refuse_changes(recipe, folder, problems, from_stages)
    ledger = Ledger(folder)
    _plan(ranks, recipe, problems, _left(ledger, from_stages), forced=forced)
    if from_stages:
        forgotten = ledger.meant_by(*from_stages) or from_stages
        progress.say(f"--from-stage would do again: {', '.join(forgotten)}")
    progress.say(f"{folder}: {len(ledger.records)} stages are done; --dry-run goes no further")


def _lead(ranks: Ranks, path: Path, overrides: list[str], from_stages: list[str], *, forced: bool) -> None:
    """Rank 0: build the parts of the run and call the loop."""
    from rest_em.algorithm import rest_em
    from rest_em.ledger import Ledger
    from rest_em.nvme import prepare_nvme
    from rest_em.points import FinishedStages
    from rest_em.recipe import dump_recipe, load_recipe, run_name_of
    from rest_em.report.progress import Progress
    from rest_em.report.table import print_summary, summarize_run
    from rest_em.run import Judges, Run, Workplace
    from rest_em.storage import FolderLock, remove_leftovers, write_text
    from rest_em.tracking import Tracking

    recipe = load_recipe(path, overrides)
    folder = Path("runs") / run_name_of(path, recipe)
    progress = Progress()
    with ExitStack() as stack:
        lock = FolderLock(folder)
        stack.callback(lock.release)
        (folder / "stop").unlink(missing_ok=True)  # it was meant for a run that has ended
        remove_leftovers(folder)
        tracking = stack.enter_context(Tracking(folder, progress.say))  # the status waits for no tracker
        work = stack.enter_context(status_of(folder))
        finished = FinishedStages(folder)
        ledger = Ledger(folder, tell=finished.write)
        ledger.finish_reset()
        problems = _check(recipe, num_ranks=ranks.world_size)
        prepare_nvme(os.environ, ranks.world_size, progress.say)
        _refuse_changes(recipe, folder, problems, from_stages)
        planned = _plan(ranks, recipe, problems, _left(ledger, from_stages), forced=forced)
        work.has_begun = True
        if from_stages:
            progress.say(f"done again: {', '.join(ledger.reset(*from_stages) or from_stages)}")
            progress.say("after an interruption leave --from-stage out")
        write_text(folder / "recipe.yaml", dump_recipe(recipe))
        planned.keep(folder, ledger)
        finished.catch_up(ledger.records)
        asked = recipe.tracking
        tracking.start(asked.report_to, project=asked.project, recipe=recipe.model_dump(mode="json"))
        stack.callback(_keep_measured, planned, folder, ledger)
        for line in _overlap_lines(recipe, problems):
            progress.say(line)
        judges = stack.enter_context(Judges(folder / "logs" / "graders.log"))
        supervisor = stack.enter_context(Supervisor(ranks, folder))
        num_done = len(ledger.records)
        rest_em(Run(recipe, Workplace(folder, ledger, supervisor, judges, progress), problems))
        if len(ledger.records) == num_done:
            progress.say(f"{folder}: finished already, nothing to do")
    print_summary(summarize_run(folder), console())


def _left(ledger: Ledger, from_stages: list[str]) -> list[str]:
    """Return the finished stages that --from-stage leaves alone."""
    forgotten = set(ledger.meant_by(*from_stages))
    return [record["stage"] for record in ledger.records if record["stage"] not in forgotten]


def _plan(ranks: Ranks, recipe: Recipe, problems: ProblemSets, done: list[str], *, forced: bool) -> RunPlan:
    """Say what a run will take, and refuse one that certainly runs out of memory; return its plan."""
    from rest_em.report.progress import Progress
    from rest_em.run_plan import plan_run, refuse_impossible

    refuse_impossible(recipe, os.environ)
    progress = Progress()
    planned = plan_run(recipe, problems, ranks, os.environ)
    for line in planned.lines:
        progress.say(line)
    if not forced:
        planned.refuse(done)
    for phase, failure in planned.certain_failures(done).items():
        progress.say(f"--force: {phase} is started all the same: {failure}")
    return planned


def _keep_measured(planned: RunPlan, folder: Path, ledger: Ledger) -> None:
    """Put what the stages took beside the plan, whatever has become of the run."""
    from rest_em.report.progress import Progress

    try:
        planned.keep(folder, ledger)
    except OSError as error:  # the run's own end is told; the ledger has what was measured
        Progress().say(f"{folder / 'plan.json'}: cannot be written: {error}")


def _refuse_changes(recipe: Recipe, folder: Path, problems: ProblemSets, from_stages: list[str]) -> None:
    """Refuse a recipe with which finished work does not agree, but for what is to be done again."""
    from rest_em.algorithm import survey
    from rest_em.ledger import Ledger
    from rest_em.report.progress import Progress
    from rest_em.run import Judges, Run, Workplace

    ledger = Ledger(folder, is_survey=True)
    # Nothing is started: a survey ends where work would begin.
    place = Workplace(folder, ledger, Supervisor(Ranks(), folder), Judges(), Progress())
    survey(Run(recipe, place, problems))
    ledger.refuse_conflicts(*from_stages)


def _check(recipe: Recipe, *, num_ranks: int) -> ProblemSets:
    """Try everything that can be tried without loading a model; return the problems."""
    from rest_em.batches import divide_global_batch
    from rest_em.problem_sets import ProblemSets
    from rest_em.problems import every_variant, tuned_variant
    from rest_em.recipe import check_files, check_library_keys, check_trackers
    from rest_em.report.progress import Progress
    from rest_em.rewards.graders import canary

    mistakes = []
    for tell in (check_files, check_library_keys, check_trackers):
        try:
            tell(recipe)
        except RecipeError as error:
            mistakes.append(str(error))
    if mistakes:
        raise RecipeError("\n".join(mistakes))
    training, prompt, problems = recipe.training, recipe.prompt, ProblemSets(recipe)
    with _told_with_place(recipe):
        divide_global_batch(training.global_batch_size, num_ranks, training.per_device_train_batch_size)
        for variant in every_variant(prompt):
            problems.check(variant)
        _ = problems.human_solutions  # that each training problem has one, where they are wanted
        canary(recipe.reward, problems.rendered("train", tuned_variant(prompt))[0], Progress().say)
    for one in problems.evals:
        if one.spec.reward is not None:
            canary(one.spec.reward, one.benchmark.problems[0], Progress().say)
    return problems


def _overlap_lines(recipe: Recipe, problems: ProblemSets) -> list[str]:
    """Return what is to be told of training problems that overlap with what is measured on."""
    from rest_em.problems import tuned_variant
    from rest_em.problems.overlap import overlap_report

    asked = recipe.evaluation
    if asked.contamination == "ignore":
        return []
    left_out = {one.problem_id for one in problems.overlaps} if asked.contamination == "exclude" else set()
    num_train = len(problems.rendered("train", tuned_variant(recipe.prompt))) + len(left_out)
    names = ("test", *(one.name for one in problems.evals))
    lines = overlap_report(problems.overlaps, num_train, names)
    told = [f"contamination: {line}" for line in lines]
    if left_out:
        told.append(f"contamination: {len(left_out):,} training problems are left out")
    return told


@contextmanager
def _told_with_place(recipe: Recipe) -> Iterator[None]:
    """Put the recipe's file and line before an error whose message begins with a key of the recipe."""
    try:
        yield
    except (ProblemError, RewardError, TrainingError) as error:
        begin = re.match(r"([a-z]+)\.([a-z_]+)(\[\d+\]\.[a-z_]+)?", str(error))
        section = getattr(recipe, begin[1], None) if begin and begin[1] in type(recipe).model_fields else None
        if begin is None or not hasattr(section, begin[2]):
            raise
        raise type(error)(f"{recipe.place(begin[0])}: {error}") from error


@app.command()
def check(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Check a recipe without loading a model, and show the first prompt that would be sampled from."""
    from rest_em.problems import base_variants, tuned_variant
    from rest_em.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    problems = _check(loaded, num_ranks=1)
    variants = base_variants(loaded.prompt)
    console = Console(highlight=False)
    sizes = {which: len(problems.rendered(which, variants[0])) for which in ("train", "validation", "test")}
    console.print(f"{recipe}: fine", markup=False, soft_wrap=True)
    console.print("problems: " + ", ".join(f"{size} {which}" for which, size in sizes.items()))
    is_drawn = loaded.selection.human_solutions != "only"
    console.print(f"solutions an E-step: {is_drawn * sizes['train'] * loaded.sampling.num_samples}")
    for one in problems.evals:
        console.print(
            f"eval {one.name}: {len(one.benchmark.problems)} problems, {one.choice.when}", markup=False
        )
    for line in _overlap_lines(loaded, problems):
        print(line)
    _report_references(loaded, problems)
    tuned = tuned_variant(loaded.prompt)
    for variant in (*variants, *(() if tuned in variants else (tuned,))):
        first = problems.rendered("train", variant)[0]
        console.rule(Text(f"prompt {variant.name} of problem {first.id}"))
        print(_as_sampled(loaded, first.prompt))
    for identity, text in list(problems.human_solutions.items())[:1]:
        console.rule(Text(f"human solution of problem {identity}, which follows its prompt"))
        print(text)
    console.rule()


def _report_references(recipe: Recipe, problems: ProblemSets) -> None:
    """Print which references a built-in reward cannot judge by: a run leaves their solutions unscorable."""
    from rest_em.problems import tuned_variant
    from rest_em.rewards.registry import refuse_gold

    for which in ("train", "validation", "test"):
        rendered = problems.rendered(which, tuned_variant(recipe.prompt))
        refused = {each.id: why for each in rendered if (why := refuse_gold(recipe.reward, each))}
        if refused:
            print(f"unscorable: {len(refused)} of {len(rendered)} {which} problems, whose reference fails:")
        for identity, why in list(refused.items())[:3]:
            print(f"  {identity}: {why}")


def _as_sampled(recipe: Recipe, prompt: str | Messages) -> str:
    """Return a prompt as the model reads it; of a chat the messages, where there is no tokenizer at hand."""
    folder = Path(recipe.model.name_or_path)
    if isinstance(prompt, str):
        return prompt
    messages = json.dumps(prompt, indent=2, ensure_ascii=False)
    if not folder.is_dir():
        return messages
    from transformers import AutoTokenizer

    from rest_em.tokens import encode_prompt

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=recipe.model.trust_remote_code
        )
    except (ImportError, KeyError, OSError, ValueError):  # it is read, and told of, when the run samples
        return messages
    return str(tokenizer.decode(encode_prompt(tokenizer, prompt)))


@app.command(cls=WithNumbers)
def score(
    *,
    problems: Annotated[
        Path, typer.Option(metavar="FILE", help="Problems: id, and what the reward checks against.")
    ],
    solutions: Annotated[
        Path,
        typer.Option(metavar="FILE", help="Solutions, .jsonl or .jsonl.gz: problem_id and completion."),
    ],
    reward: Annotated[
        str,
        typer.Option(metavar="NAME", help="A built-in reward, file.py:function or package.module:function."),
    ],
    output: Annotated[Path, typer.Option(metavar="FILE", help="Gets a line a solution, in their order.")],
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="The problems' column that the reward checks against; answer by default."
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(metavar="N", help="Grader processes; as --set reward.num_workers=N.")
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Limit of one call; as --set reward.timeout_seconds=SECONDS."),
    ] = None,
    k: Annotated[
        list[str] | None,
        typer.Option(
            "--k",
            metavar="K...",
            help="The k of pass@k and maj@k: --k 1 8 64. By default 1, and the number of solutions a problem "
            "where all have the same.",
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A key of the reward: --set reward.threshold=0.5."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Begin anew, whatever the output holds.")
    ] = False,
    retry_unscorable: Annotated[
        bool, typer.Option("--retry-unscorable", help="Judge again what could not be judged.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, rates in [0, 1].")] = False,
) -> None:
    """Judge stored solutions with any reward, or go on where that was interrupted.

    Lines that cannot be used are told by number, the others are judged, and the exit status is 1.
    """
    ks = whole_numbers(k)
    given = {
        key: (f"{option} {value}", value)
        for key, option, value in (
            ("num_workers", "--workers", workers),
            ("timeout_seconds", "--timeout", timeout),
        )
        if value is not None
    }
    with interruptible():
        from rest_em.recipe import load_reward_section
        from rest_em.report.progress import Progress
        from rest_em.report.score import print_score, summarize_score
        from rest_em.rewards.registry import answer_name, same_answer_of
        from rest_em.scoring import ScoreFiles, judge_stored, reference_column

        section = load_reward_section(reward, overrides or [], given)
        files = ScoreFiles(problems, solutions, output, reference_column(section, reference))
        tally = judge_stored(
            files, section, Progress(), is_overwriting=overwrite, is_retrying=retry_unscorable
        )
        summary = summarize_score(
            tally, reward, ks, same_answer=same_answer_of(section), has_votes=answer_name(section) != "none"
        )
    if as_json:
        print(json.dumps(summary.to_json(), indent=2, allow_nan=False))
    else:
        print_score(summary, console())
    if summary.num_bad_lines:
        raise typer.Exit(EXIT_FAILED)


app.command()(plan)
app.command()(evaluate)
app.command(cls=WithNumbers)(compare)
app.command()(export)


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or its name below runs/.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, rates in [0, 1].")] = False,
) -> None:
    """Show what a run has measured so far."""
    from rest_em.report.table import print_summary, summarize_run

    if not folder.exists() and (Path("runs") / folder).exists():
        folder = Path("runs") / folder
    summary = summarize_run(folder)
    if as_json:
        print(json.dumps(summary.to_json(), indent=2, allow_nan=False))
    else:
        print_summary(summary, console())


def _list(kind: str) -> None:
    """List what is shipped of a kind, with the first line of each."""
    from rest_em.recipe import shipped

    folder = shipped(kind)
    for path in sorted(folder.rglob("*.yaml")):
        first = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        print(f"{path.relative_to(folder).with_suffix('')}: {first}")


@recipes_app.command("list")
def list_recipes() -> None:
    """List the recipes that come with rest_em, with the first line of each."""
    _list("recipes")


@recipes_app.command("copy")
def copy_recipe(
    name: Annotated[str, typer.Argument(help="A name that `rest_em recipes list` prints.")],
    target: Annotated[Path, typer.Argument(help="A folder to make; the recipe's data comes along.")],
) -> None:
    """Copy a recipe and the files beside it into a folder of your own."""
    from rest_em.recipe import find_shipped

    source = find_shipped("recipes", name)
    if target.exists():
        raise RecipeError(f"{target}: exists already; name a folder that does not")
    try:
        shutil.copytree(source.parent, target, ignore=shutil.ignore_patterns("__pycache__"))
    except OSError as error:
        raise RecipeError(f"{target}: cannot be made: {error.strerror or error}") from error
    print(target / source.name)


@evals_app.command("list")
def list_evals() -> None:
    """List the evals that come with rest_em, with the first line of each."""
    _list("evals")


@evals_app.command("copy")
def copy_shipped_eval(
    name: Annotated[str, typer.Argument(help="A name that `rest_em evals list` prints.")],
    target: Annotated[Path, typer.Argument(help="A folder; it may have other evals.")],
) -> None:
    """Copy an eval and the files that it names into a folder of your own."""
    from rest_em.recipe import copy_eval

    print(copy_eval(name, target))


@app.command("_stage", hidden=True)
def stage(name: str, spec: Path) -> None:
    """Run one rank's part of a stage; `run` starts this."""
    enter_stage()
    arguments: dict[str, Any] = json.loads(spec.read_text(encoding="utf-8"))
    # Modules are no garbage: to look for some among them takes a seventh of training's start.
    gc.disable()
    module = importlib.import_module(STAGES[name])
    gc.freeze()
    gc.enable()
    module.main(arguments)
    leave_stage()
