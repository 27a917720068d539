"""START HERE: Algorithm 1 of "Beyond Human Data" (arXiv 2312.06585), ReST^EM.

A policy samples solutions to problems that can be checked; the correct ones are what the base model is
tuned on; the tuned model is the next policy. Every function below is one box of the algorithm and returns
at once if the ledger says that it is done, so a run that was interrupted anywhere goes on.
How solutions are drawn and judged is in `drawing`, `sampling` and `rewards`; how a model is tuned in
`training`; what the figures mean in `evaluation`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rest_em.drawing import Draw, draw_and_judge, plan_draw
from rest_em.errors import RewardError, RunFolderError
from rest_em.evaluation import is_shown, paired_gain, sign_test
from rest_em.human_solutions import rejected_solutions, rejection_lines
from rest_em.ledger import NotDoneError, Stage
from rest_em.measuring import (
    Measurement,
    finish_measurement,
    greedy_params,
    measurement_of,
    plan_measurement,
    sampled_params,
)
from rest_em.points import Steps
from rest_em.run import PromptedPolicy, Run
from rest_em.samples import Decoding
from rest_em.selection import select
from rest_em.storage import content_hash, read_json, write_examples
from rest_em.training.saved import NOTE, last_saved, remove_saved
from rest_em.types import GradedSolution, Policy, SamplingParams, Verdict
from rest_em.usage import joint_usage, usage_entry

SPEED_SETTINGS = (
    "activation_checkpointing", "dataloader_", "ddp_", "gradient_checkpointing", "logging_", "packing",
    "prefix_sharing", "torch_empty_cache",
)  # fmt: skip
"""What settings that begin so change is how an M-step goes, and not what comes of it."""
NO_SETTINGS_OF_THE_WEIGHTS = (
    "checkpoint_choice", "debug", "include_num_input_tokens_seen", "log_level", "log_level_replica",
    "log_on_each_node", "per_device_train_batch_size", "save_seconds", "skip_memory_metrics", "train_from",
)  # fmt: skip
"""Nor do these; whether `train_from` does depends on the iteration, see `_start_inputs`."""


def rest_em(run: Run) -> Policy:
    """Run Algorithm 1 to its end and return the policy that is best on D_val.

    Raises:
        RestEMError: whatever stopped it; the same command goes on from there.
        RunInterruptedError: it was asked to leave; so does it then.
    """
    base = choose_base_prompt(run)
    policy = best = base
    for i in range(1, run.recipe.num_iterations + 1):
        # Generate (E-step): draw N solutions y ~ p_theta(y | x) to each problem, judge each by r(x, y).
        # The same sampling process first measures the policy on the test problems.
        graded, verdicts = generate(run, policy, iteration=i)
        # D_i: correct, finished, distinct, at most K solutions a problem.
        dataset = select_dataset(run, graded, verdicts, iteration=i)
        # Improve (M-step): tune the base model on D_i, while the reward improves on D_val.
        policy = improve(run, start_of(run, base, policy), dataset, iteration=i)
        if is_worse(run, policy, best):
            break
        best = policy if pass_rate(policy) > pass_rate(best) else best
    measure(run, policy, last=True)
    measure(run, best, best=True)
    return best.policy


def survey(run: Run) -> None:
    """Walk over what is done with a ledger that is a survey: it notes what a changed recipe concerns."""
    assert run.ledger.is_survey
    with contextlib.suppress(NotDoneError):
        rest_em(run)


def choose_base_prompt(run: Run) -> PromptedPolicy:
    """Return the base with the prompt that serves it best on D_val (greedy pass@1; the first of equals)."""
    base = Policy(run.recipe.model.name_or_path, iteration=0)
    candidates = [PromptedPolicy(base, variant) for variant in run.base_prompts]
    names = [str(candidate.prompt.name) for candidate in candidates]
    draws = [_validation_draw(run, one, name) for one, name in zip(candidates, names, strict=True)]
    judged = draw_and_judge(run.place, draws)
    stage = Stage("iteration-00/prompt", {"candidates": names}, after=tuple(draw.verdicts for draw in draws))
    result = run.ledger.result(stage)
    if result is None:
        scores = _scores(draws, judged)
        chosen = scores.index(max(scores))
        result = {
            "chosen": names[chosen],
            "validation": dict(zip(names, scores, strict=True)),
            "verdicts": _verdicts(judged[chosen]),
        }
        run.ledger.append(stage, result, seconds=0.0)
    if result["chosen"] not in names:  # a survey's: the recipe has other candidates now
        raise NotDoneError(stage.name)
    place = names.index(result["chosen"])
    return dataclasses.replace(
        candidates[place], validated_by=(draws[place].verdicts,), validation=result["verdicts"]
    )


def generate(
    run: Run, policy: PromptedPolicy, *, iteration: int
) -> tuple[list[GradedSolution], tuple[Stage, ...]]:
    """E-step: return N judged solutions to every training problem, and the stage that judged them.

    They are the policy's, or a teacher's where the recipe names one. Where D_i is of human solutions alone
    nothing is drawn, and there is no stage.
    """
    sampling = run.recipe.sampling
    if run.recipe.selection.human_solutions == "only":
        measure(run, policy)
        return [], ()
    sampler = policy
    if sampling.model is not None:
        prompt = run.teacher_prompt or policy.prompt
        sampler = PromptedPolicy(Policy(sampling.model.name_or_path, iteration=0), prompt)
    params = SamplingParams(
        num_samples=sampling.num_samples,
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        stop_strings=sampling.stop_strings,
    )
    problems = run.problems.rendered("train", sampler.prompt)
    asked = run.asked(sampler.prompt)
    draw = plan_draw(
        run.place,
        f"iteration-{iteration:02d}",
        sampler,
        problems,
        params,
        asked=asked if sampling.model is None else dataclasses.replace(asked, model=sampling.model),
        title=f"E-step {iteration}",
        iteration=iteration,
    )
    measure(run, policy, then=draw if sampler is policy else None)  # a process has one model's settings
    (graded,) = draw_and_judge(run.place, [draw])
    return graded, (draw.verdicts,)


def select_dataset(
    run: Run, graded: Sequence[GradedSolution], judged: tuple[Stage, ...], *, iteration: int
) -> tuple[Path, Stage]:
    """Write D_i; return its file and the stage that made it."""
    recipe = run.recipe
    variant = run.training_prompt
    human = run.problems.human_solutions
    inputs: dict[str, Any] = {
        "selection": recipe.selection.model_dump(mode="json"),
        "prompt": run.prompt_inputs(variant),
    }
    if human:
        inputs["human_solutions"] = content_hash(dict(human))
    if not judged:
        rendered = run.problems.rendered("train", variant)
        inputs["problems"] = content_hash([[one.id, one.prompt] for one in rendered])
    stage = Stage(f"iteration-{iteration:02d}/dataset", inputs, after=judged)
    path = run.folder / f"{stage.name}.parquet"
    if run.ledger.result(stage) is None:
        started = time.monotonic()
        prompts = {problem.id: problem for problem in run.problems.rendered("train", variant)}
        selection = select(graded, prompts, recipe.selection, human)
        rejected = rejected_solutions(run.place, recipe.reward, prompts, human)
        write_examples(path, selection.examples)
        result = selection.counts() | {"num_human_rejected": len(rejected)}
        run.ledger.append(stage, result, seconds=time.monotonic() - started)
        for line in rejection_lines(rejected, len(human)):
            run.place.progress.say(line)
    return path, stage


def start_of(run: Run, base: PromptedPolicy, policy: PromptedPolicy) -> PromptedPolicy:
    """Return what an M-step tunes: the base, or with `training.train_from: previous` the present policy."""
    return policy if run.recipe.training.train_from == "previous" else base


def improve(
    run: Run, start: PromptedPolicy, dataset: tuple[Path, Stage], *, iteration: int
) -> PromptedPolicy:
    """M-step: tune a model on D_i; return the checkpoint that D_val chooses, the untrained one among them."""
    name = f"iteration-{iteration:02d}"
    needs_checkpoints = not run.ledger.is_done(f"{name}/policy") and not run.ledger.is_survey
    trained, checkpoints = _train(
        run, start, dataset, iteration=iteration, needs_checkpoints=needs_checkpoints
    )
    tuned = run.tuned_prompt
    candidates = [
        PromptedPolicy(Policy(str(path), iteration), tuned, made_by=(trained,)) for path in checkpoints
    ]
    draws = [_validation_draw(run, one, Path(one.policy.path).name) for one in candidates]
    rule = run.recipe.training.checkpoint_choice
    judged_by = (*start.validated_by, *(draw.verdicts for draw in draws))
    choice = Stage(f"{name}/policy", {"checkpoint_choice": rule}, after=judged_by)
    result = run.ledger.result(choice)
    if result is None:
        judged = draw_and_judge(run.place, draws)
        scores = [pass_rate(start), *_scores(draws, judged)]
        chosen = walk_forward(scores, rule)
        verdicts = _verdicts(judged[chosen - 1]) if chosen else dict(start.validation)
        result = {"chosen": chosen, "validation": scores, "verdicts": verdicts}
        run.ledger.append(choice, result, seconds=0.0)
    if not run.ledger.is_survey:
        _keep_chosen(run.folder / name, result["chosen"])
    is_untrained = result["chosen"] == 0
    return PromptedPolicy(
        Policy(start.policy.path if is_untrained else str(run.folder / name / "policy"), iteration),
        start.prompt if is_untrained else tuned,
        made_by=(choice,),
        validated_by=(choice,),
        validation=result["verdicts"],
    )


def walk_forward(scores: Sequence[float], rule: str) -> int:
    """Return which checkpoint serves, 0 being the untrained model.

    Args:
        scores: pass@1 on D_val of the untrained model and of each epoch's checkpoint.
        rule: `first_drop` goes on while the score does not fall, `best` takes the highest (the first of
            equals), `last` the last.

    >>> walk_forward([0.2, 0.5, 0.5, 0.4, 0.6], "first_drop"), walk_forward([0.2, 0.5, 0.4, 0.6], "best")
    (2, 3)
    """
    if rule == "last":
        return len(scores) - 1
    if rule == "best":
        return scores.index(max(scores))
    drops = [k for k in range(1, len(scores)) if scores[k] < scores[k - 1]]
    return drops[0] - 1 if drops else len(scores) - 1


def is_worse(run: Run, policy: PromptedPolicy, best: PromptedPolicy) -> bool:
    """Say whether a policy's pass@1 on D_val falls below the best one's, beyond the difference's interval.

    Always no where `evaluation.stop_on` is `never`; a fall that is not shown (`evaluation.is_shown`) is none.
    """
    asked = run.recipe.evaluation
    if asked.stop_on == "never":
        return False
    name = f"iteration-{policy.policy.iteration:02d}/stop"
    inputs = {
        "stop_on": asked.stop_on,
        "confidence": asked.confidence,
        "verdicts": content_hash([policy.validation, best.validation]),
    }
    stage = Stage(name, inputs, after=(*policy.made_by, *best.made_by))
    result = run.ledger.result(stage)
    if result is None:
        ids = list(best.validation)
        verdicts, of_best = ([each.validation[key] for key in ids] for each in (policy, best))
        fall = paired_gain(verdicts, of_best, confidence=asked.confidence)
        is_fall = is_shown(fall, sign_test(verdicts, of_best), asked.confidence)
        result = {
            "is_worse": is_fall and fall is not None and fall.value < 0,
            "than": best.policy.iteration,
            "gain": fall and dataclasses.asdict(fall),
        }
        run.ledger.append(stage, result, seconds=0.0)
    return bool(result["is_worse"])


def pass_rate(policy: PromptedPolicy) -> float:
    """Return a policy's greedy pass@1 on D_val."""
    judged = [is_correct for is_correct in policy.validation.values() if is_correct is not None]
    return sum(judged) / len(judged)


def measure(
    run: Run, policy: PromptedPolicy, *, then: Draw | None = None, last: bool = False, best: bool = False
) -> None:
    """Measure a policy on the test problems, on some training problems and on the recipe's evals.

    Args:
        run: the run.
        policy: whose solutions.
        then: what the same sampling process draws afterwards.
        last: the policy is the last one, and so measured on the evals for it.
        best: the policy is the best on D_val, and so measured on the evals for it.
    """
    wanted = {"every"} | ({"last"} if last else set()) | ({"best"} if best else set())
    if policy.policy.iteration == 0:  # what all others are compared with
        wanted = {"every", "last", "best"}
    measurements = [_test_problems(run, policy), *_train_problems(run, policy)]
    measurements += [
        measurement_of(
            one.spec,
            one.benchmark,
            one.name,
            model=run.recipe.model,
            seed=run.recipe.seed,
            limit=one.choice.limit,
        )
        for one in run.problems.evals
        if one.choice.when in wanted
    ]
    planned = [plan_measurement(run.place, policy, one) for one in measurements]
    draws = [draw for one in planned for draw in one.draws.values()]
    judged = iter(draw_and_judge(run.place, [*draws, then] if then else draws))
    for one in planned:
        finish_measurement(run.place, one, {decoding: next(judged) for decoding in one.draws})


def _test_problems(run: Run, policy: PromptedPolicy) -> Measurement:
    """Return how the recipe's test problems are measured: greedily, and by samples unless it wants none."""
    asked, sampling = run.recipe.evaluation, run.recipe.sampling
    params: dict[Decoding, SamplingParams] = {"greedy": greedy_params(sampling)}
    if asked.num_samples:
        params["sampled"] = sampled_params(asked, sampling)
    return Measurement(
        name="test",
        title="test problems",
        source=run.recipe.problems.test,
        problems=run.problems.rendered("test", policy.prompt),
        prompt=policy.prompt,
        asked=run.asked(policy.prompt),
        params=params,
        pass_at=asked.pass_at,
        majority_at=asked.majority_at,
        confidence=asked.confidence,
        format=asked.format,
    )


def _train_problems(run: Run, policy: PromptedPolicy) -> list[Measurement]:
    """Return how the first training problems are measured, greedily: nothing where the recipe wants none."""
    asked = run.recipe.evaluation
    if not asked.num_train_problems:
        return []
    return [
        Measurement(
            name="train",
            title="training problems",
            source=run.recipe.problems.train,
            problems=run.problems.rendered("train", policy.prompt)[: asked.num_train_problems],
            prompt=policy.prompt,
            asked=run.asked(policy.prompt),
            params={"greedy": greedy_params(run.recipe.sampling)},
            pass_at=(1,),
            limit=asked.num_train_problems,
            confidence=asked.confidence,
            format=asked.format,
        )
    ]


def _validation_draw(run: Run, prompted: PromptedPolicy, name: str) -> Draw:
    problems = run.problems.rendered("validation", prompted.prompt)
    iteration = prompted.policy.iteration
    folder = f"iteration-{iteration:02d}/validation/{name}"
    title = f"validation {iteration}"
    return plan_draw(
        run.place,
        folder,
        prompted,
        problems,
        greedy_params(run.recipe.sampling),
        asked=run.asked(prompted.prompt),
        title=title,
        iteration=iteration,
    )


def _scores(draws: Sequence[Draw], judged: Sequence[Sequence[GradedSolution]]) -> list[float]:
    """Return each draw's share of correct solutions among those that could be judged.

    Raises:
        RewardError: none of a draw could be, so there is nothing to choose by.
    """
    scores = []
    for draw, graded in zip(draws, judged, strict=True):
        verdicts = [one.verdict for one in graded if one.verdict is not Verdict.UNSCORABLE]
        if not verdicts:
            raise RewardError(
                f"{draw.name}: none of its {len(graded)} solutions could be judged, so no model can be "
                "chosen by them; mend the reward or its references, and judge again with "
                "--from-stage '*/verdicts'"
            )
        scores.append(sum(verdict is Verdict.CORRECT for verdict in verdicts) / len(verdicts))
    return scores


def _verdicts(graded: Sequence[GradedSolution]) -> dict[str, bool | None]:
    """Return by problem whether its greedy solution is correct; None where it could not be judged."""
    return {
        one.solution.problem_id: None if one.verdict is Verdict.UNSCORABLE else one.verdict is Verdict.CORRECT
        for one in graded
    }


def _train(
    run: Run,
    start: PromptedPolicy,
    dataset: tuple[Path, Stage],
    *,
    iteration: int,
    needs_checkpoints: bool,
) -> tuple[Stage, list[Path]]:
    """Tune a model on D_i; return the stage and one checkpoint an epoch.

    What an attempt with the same inputs left is gone on from. What another left is removed, but where it has
    a checkpoint to go on from it is refused.

    Args:
        start: what is tuned; the stages that made it are before this one.
        needs_checkpoints: train again if one is gone. All but the chosen one go with the choice, and a
            choice that was reset has to be made anew.
    """
    recipe = run.recipe
    path, selected = dataset
    inputs = {
        "model": recipe.model.model_dump(mode="json", include={"name_or_path", "revision"}),
        "training": _what_matters(recipe.training.model_dump(mode="json")) | _start_inputs(start),
        "lora": recipe.lora,
        "seed": recipe.seed,
    }
    if recipe.quantization is not None:
        inputs["quantization"] = recipe.quantization
    stage = Stage(f"iteration-{iteration:02d}/training", inputs, after=(selected, *start.made_by))
    output = run.folder / stage.name
    result = run.ledger.result(stage)
    if result is not None and needs_checkpoints and _is_any_gone(output, result["checkpoints"]):
        run.ledger.reset(stage.name)  # with it go the draws of the checkpoints that are gone
        result = None
    if result is None:
        started = time.monotonic()
        if last_saved(output) is not None:  # hours of work, which a slip must not cost
            run.ledger.begin(stage)
        for change in run.ledger.begin_anew(stage):
            run.place.progress.say(f"{stage.name}: begins again: {change}")
        earlier = joint_usage(output)
        if not _is_trained(output):
            _run_training(run, start, path, stage, iteration=iteration)
        trained = read_json(output / "training.json") | usage_entry(output)
        remove_saved(output)
        seconds = time.monotonic() - started + (earlier.seconds if earlier else 0.0)
        result = run.ledger.append(stage, trained, seconds=seconds)
    return stage, [output / name for name in result["checkpoints"]]


def _is_trained(output: Path) -> bool:
    """Say whether an M-step has ended, and the run was killed before its ledger knew."""
    path = output / "training.json"
    return path.exists() and not _is_any_gone(output, read_json(path)["checkpoints"])


def _is_any_gone(output: Path, checkpoints: Sequence[str]) -> bool:
    return not all((output / name).exists() for name in checkpoints)


def _what_matters(training: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that change the tuned weights, beyond the order of floating-point sums."""
    return {
        key: value
        for key, value in training.items()
        if key not in NO_SETTINGS_OF_THE_WEIGHTS and not key.startswith(SPEED_SETTINGS)
    }


def _start_inputs(start: PromptedPolicy) -> dict[str, str]:
    """Return what is tuned, as settings: the first iteration's previous policy is the base."""
    return {"train_from": "previous" if start.made_by else "base"}


def _run_training(run: Run, start: PromptedPolicy, dataset: Path, stage: Stage, *, iteration: int) -> None:
    """Run the stage; where the run is asked to leave, the stage does so itself, once it has saved.

    Raises:
        RunInterruptedError: it was asked to.
    """
    recipe, progress = run.recipe, run.folder / "logs" / "progress"
    steps = Steps(run.folder, stage.name, stage.fingerprint)
    shutil.rmtree(progress, ignore_errors=True)
    is_base = start.policy.path == recipe.model.name_or_path
    teacher = recipe.sampling.model
    source = {"name_or_path", "revision", "trust_remote_code"}
    spec = {
        "model": recipe.model.model_dump(mode="json", include=source)
        | {"name_or_path": start.policy.path}
        | ({} if is_base else {"revision": None}),
        "teacher": teacher and teacher.model_dump(mode="json", include=source),
        "examples": str(dataset.resolve()),
        "output": str((run.folder / stage.name).resolve()),
        "training": recipe.training.model_dump(mode="json"),
        "lora": recipe.lora,
        "quantization": recipe.quantization,
        "seed": recipe.seed,
        "iteration": iteration,
        "progress": str(progress.resolve()),
        "stop": str(run.place.stop.resolve()),
    }
    title = f"iteration-{iteration:02d}: train"

    def show() -> None:
        steps.copy()
        if (progress / NOTE).exists():
            run.place.progress.say(f"{title}: {read_json(progress / NOTE)}")
            (progress / NOTE).unlink()
        if (progress / "0.json").exists():
            so_far = read_json(progress / "0.json")
            run.place.progress.advance_to(so_far["done"], f"loss {so_far['loss']:.3f}", total=so_far["total"])

    with run.place.progress.stage(title, 0, "steps"):
        run.place.supervisor.run("train", spec, label=f"iteration-{iteration:02d}-train", meanwhile=show)
        steps.copy()
        if not (run.folder / stage.name / "training.json").exists():
            run.place.leave()


def _keep_chosen(folder: Path, chosen: int) -> None:
    """Make the chosen checkpoint `policy/` and remove the others. Does nothing when done before.

    Raises:
        RunFolderError: somebody removed it.
    """
    policy, checkpoint = folder / "policy", folder / "training" / f"epoch-{chosen}"
    if chosen and checkpoint.exists():
        shutil.rmtree(policy, ignore_errors=True)
        checkpoint.rename(policy)
    if chosen and not policy.exists():
        raise RunFolderError(
            f"{policy}: the chosen checkpoint {checkpoint.name} is gone; train again with "
            f"--from-stage {folder.name}/training"
        )
    for other in (folder / "training").glob("epoch-*"):
        shutil.rmtree(other)
