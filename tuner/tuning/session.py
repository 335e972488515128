"""``search()``: bring the space, the data and the cluster together in a run."""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from rich.console import Console

from tuner.augment import why_not_crop
from tuner.config import TrialConfig
from tuner.data.splits import Splits
from tuner.errors import TunerError, UsageError
from tuner.models.cost import limit_violation
from tuner.models.defaults import usual_defaults
from tuner.models.trust import code_of, remember
from tuner.monitor.terminal import tell
from tuner.passwords import hide_passwords
from tuner.run.layout import PLAN, why_not_name
from tuner.run.run import Run
from tuner.space import SearchSpace
from tuner.storage.files import write_text
from tuner.storage.paths import lies_in, read_text, to_path
from tuner.training.initial_weights import load_all_initial_weights, notes_on_seen_images
from tuner.training.run_images import with_teacher_probs
from tuner.tuning.distill import note_best_student, prepare_teaching
from tuner.tuning.ray_backend.driver import (
    check_trusted,
    connected_run,
    require_usable_trial,
    run_trials,
)
from tuner.tuning.ray_backend.payload import pack, pack_initial_weights
from tuner.tuning.request import SearchRequest, absolute_place, read_splits
from tuner.tuning.sampling.sampler import Sampler
from tuner.tuning.sampling.study import check_study_fits, quiet_optuna
from tuner.tuning.sampling.study_copy import StudyCopy, StudyPlace, why_not_continued
from tuner.tuning.tuner import Tuner
from tuner.tuning.warm_start import (
    EarlierRun,
    add_earlier_trials,
    can_teach,
    read_runs,
    with_portfolio,
)


@usual_defaults()
@quiet_optuna()
def search(request: SearchRequest, console: Console) -> Run:
    """Search a space in a new run folder, or resume a run.

    Args:
        request: What to search, and on which images.
        console: Where progress is shown.

    Returns:
        The run; its status is ``interrupted`` if a signal ended it early.

    Raises:
        UntrustedCodeError: If code that came with a run is neither known here nor trusted.
        UsageError: On data or weights that cannot be read, a name that is taken, a sampler that
            cannot search this space, or a run to resume that is missing or of other data.
        ClusterError: On a cluster that does not answer, or is too small.
        NoUsableTrials: If no trial left a checkpoint.
        TunerError: If the first three trials failed in the same way.
    """
    space = request.space
    check_study_fits(space, request.search)
    for known in request.warm_start:
        known.check_unseen_validation("--warm-start")
    remember_and_check_code(request)
    _check_study_place(request, console)
    splits = read_splits(request, console)
    earlier = read_runs(request.warm_start, request.search, splits)
    # Also when resuming: the space may be given again, without the portfolio.
    space = with_portfolio(
        space,
        earlier,
        request.storage,
        console,
        limit_violation=limit_violation_of(space, splits),
    )
    request = replace(request, space=space)
    if request.resume and len(earlier) != 1:
        earlier = recorded_earlier_run(request, splits, console)
    models = space.starting_models()
    initial_weights = load_all_initial_weights(models, splits, request.storage)
    for note in notes_on_seen_images(models, splits, request.storage):
        tell(console, note)
    teaching = prepare_teaching(request, splits)
    with connected_run(request, splits, console, resources=space.resources) as (run, capacity_plan):
        run.outside_words = request.outside_words
        sampler = Sampler(space, request.search, limit_violation=limit_violation_of(space, splits))
        forecast_file = request.plan_path(splits, capacity_plan)
        if request.resume:
            # The plan was made for one whole search, not for parts of it.
            (run.path / PLAN).unlink(missing_ok=True)
        elif forecast_file.exists() and not request.warm_start:
            write_text(run.path / PLAN, read_text(forecast_file))
        if len(earlier) == 1 and can_teach(earlier[0], request.search):
            add_earlier_trials(sampler, earlier[0], console)
        if teaching is not None:
            teaching.teach(run, console)
        splits = with_teacher_probs(splits, run)
        # run_trials records the request's teacher again, which lacks what teaching has added.
        request = replace(request, teacher=run.record.teacher)
        payload = {
            "data": pack(splits),
            "initial_weights": pack_initial_weights(initial_weights),
            "epoch_seconds": space.constraints.epoch_seconds,
        }
        with contextlib.ExitStack() as stack:
            if place := study_place(request, run):
                copy = stack.enter_context(StudyCopy(sampler.study, place, partial(tell, console)))
                sampler.on_change = copy.show
            labels = splits.val.labels if request.search.purpose == "ensemble" else None
            tuner = run_trials(
                request, run, capacity_plan, sampler, payload, console, val_labels=labels
            )
    _tell_what_was_not_proposed(run, tuner, sampler, console)
    require_usable_trial(run, tuner)
    note_best_student(request, run, splits, console, is_teacher_named=not request.resume)
    return run


def _check_study_place(request: SearchRequest, console: Console) -> None:
    """Check where a copy of the study is to be kept, and tell whether a resumed run continues it.

    Raises:
        UsageError: If the storage cannot be used, or has a study of that name from another run.
    """
    if place := study_place(request):
        if not request.study_storage:
            tell(console, f"The study continues in {place}, which the run names.")
        place.check_free()
    elif request.resume and (recorded := _resumed(request).record.study_storage):
        why = why_not_continued(recorded, request.storage)
        tell(
            console,
            f"The study in {hide_passwords(recorded)} is not continued, because {why}. To continue "
            "it, give --study-storage again, or set CIFAR_TUNE_STUDY_STORAGE.",
        )


def _tell_what_was_not_proposed(run: Run, tuner: Tuner, sampler: Sampler, console: Console) -> None:
    trials = tuner.spending.budget.trials
    is_over = run.record.status == "finished" and not tuner.draining
    if is_over and tuner.num_started < trials:
        tried = f"{tuner.num_started} of {trials} trials"
        tell(console, f"The grid holds no more configurations: {tried}.")
    if refused := sampler.num_refused:
        total = refused + sampler.num_accepted
        tell(
            console,
            f"Constraints: {refused} of {total} proposals ({refused / total:.0%}) exceeded them "
            "and were drawn again.",
        )
    for index, reason in sampler.untried.items():
        tell(console, f"baseline[{index}] was not tried: {reason}")


def recorded_earlier_run(
    request: SearchRequest, splits: Splits, console: Console
) -> list[EarlierRun]:
    """Read the earlier run that taught the sampler of a resumed run, if it is in its storage."""
    place = _resumed(request).record.taught_by
    if place is None:
        return []
    try:
        path = to_path(place) if why_not_name(place) else request.storage / place
        if not lies_in(path, request.storage):
            raise UsageError(
                f"it is not in {request.storage}, and has to be given again, by --warm-start"
            )
        return read_runs([Run.open(path)], request.search, splits)
    except TunerError as error:
        tell(console, f"Continues without what {place} has taught: {error}")
        return []


def study_place(request: SearchRequest, run: Run | None = None) -> StudyPlace | None:
    """Return where a copy of the study is kept, if anywhere.

    Args:
        request: The search; a resumed run keeps a file in its storage unless a place is given.
        run: Its run, if it exists already.
    """
    if request.resume:
        run = run or _resumed(request)
    known = run.record.study_storage if run else None
    is_kept = known is not None and not why_not_continued(known, request.storage)
    place = request.study_storage or (known if is_kept else None)
    # A name may be reused; a start time is not.
    mark = f"{run.record.name} of {run.record.started}" if run else ""
    is_known = request.resume and place is not None and known in (place, absolute_place(place))
    metric = request.search.metric
    return StudyPlace(place, request.name, mark, is_ours=is_known, metric=metric) if place else None


def _resumed(request: SearchRequest) -> Run:
    return Run.open(request.storage / request.name)


def remember_and_check_code(request: SearchRequest) -> None:
    """Record the user's own code, and refuse other code that is neither known nor trusted.

    Raises:
        UntrustedCodeError: If there is any.
    """
    space = request.space
    remember(space.own_code)
    whose = request.storage / request.name if request.resume else request.space_name
    check_trusted(request, code_of(space.models_with_code()), whose)


def limit_violation_of(space: SearchSpace, splits: Splits) -> Callable[[TrialConfig], str]:
    """Return a function that describes how a configuration exceeds the space's limits.

    The function raises ``UsageError`` if a configuration does not fit the images at all.
    """

    def violation(config: TrialConfig) -> str:
        if problem := why_not_crop(config.augment.crop, *splits.image_shape[1:]):
            raise UsageError(f"space.augment.crop: {problem}")
        return limit_violation(
            config.model,
            space.constraints,
            len(splits.classes),
            splits.image_shape,
            num_networks=max(1, splits.num_folds),
        )

    return violation
