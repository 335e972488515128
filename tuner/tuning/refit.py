"""``refit()``: train the best configurations of a run again, longer and with several seeds.

Members that differ in both configuration and seed vote better than members that differ in only one
of the two: hyper-deep ensembles (Wenzel et al. 2020).
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from tuner.config import REFIT_SEEDS, REFIT_TOP, Metric, RefitConfig, Resources, TrialConfig
from tuner.data.splits import located
from tuner.errors import NoUsableTrials, UsageError
from tuner.models.defaults import usual_defaults
from tuner.models.trust import code_of
from tuner.monitor.terminal import tell
from tuner.run.check import check_records
from tuner.run.layout import SPACE, TEACHER, why_not_name
from tuner.run.resuming import leaderboard_command
from tuner.run.run import Run, free_name
from tuner.run.teacher_probs import copy_teacher_probs, read_teacher_probs
from tuner.run.trial import USABLE, TrialRecord
from tuner.schema import plural
from tuner.space import load_resources
from tuner.storage.paths import lies_in, on_disk, read_text
from tuner.storage.records import explaining_damage
from tuner.training.initial_weights import load_all_initial_weights, notes_on_seen_images
from tuner.training.run_images import ranked_by, with_teacher_probs
from tuner.tuning.distill import note_best_student
from tuner.tuning.proposers import FixedProposer
from tuner.tuning.ray_backend.driver import (
    check_trusted,
    connected_run,
    require_usable_trial,
    run_trials,
)
from tuner.tuning.ray_backend.payload import pack, pack_initial_weights
from tuner.tuning.request import RunRequest, as_before, data_dir_of, read_splits
from tuner.tuning.sampling.sampler import trial_seed


@dataclass(frozen=True, kw_only=True, slots=True)
class RefitRequest(RunRequest):
    """A user's request for a refit."""

    plan: RefitConfig
    source: Run | None
    """The run to refit; ``None`` for a resumed refit, which no longer needs it."""
    space: str
    """The text of that run's ``space.yaml``."""
    resources: Resources
    """Resources of the trials, from that space."""

    @property
    def space_text(self) -> str:
        """See ``RunRequest``."""
        return self.space

    @property
    def record_entries(self) -> dict[str, Any]:
        """See ``RunRequest``."""
        teacher = {"teacher": self.source.record.teacher} if self.source else {}
        return {"refit": self.plan, **teacher}


def make_refit_request(
    run: Run,
    *,
    resume: bool = False,
    source: str | None = None,
    top: int | None = None,
    seeds: int | None = None,
    epochs: int | None = None,
    all_data: bool = False,
    seed: int | None = None,
    metric: Metric | None = None,
    name: str | None = None,
    data: str | None = None,
    data_dir: Path | None = None,
    **asked: Any,
) -> RefitRequest:
    """Make a request from the user's options and what is already known.

    Args:
        run: The run to refit or, with ``resume``, the refit to resume.
        resume: Whether to resume a refit; the options that define its trials must then be
            unchanged, except ``seeds``, which may be more.
        source: With ``resume``, the run that the user gives as its source, by name or folder.
        top: Number of configurations.
        seeds: Number of trials per configuration.
        epochs: Epochs of each trial; ``None`` for those of the trials of ``run``.
        all_data: Whether to train on the validation images, too.
        seed: Seed of the refit; ``None`` for that of ``run`` plus 1.
        metric: Metric that chooses the configurations and ranks the new trials; ``None`` for that
            of ``run``.
        name: Name of the new run.
        data: Where the run's images are now; ``None`` if they have not moved.
        data_dir: Likewise, for downloads and decoded images.
        asked: Other fields of ``RunRequest``; see ``as_before``. All checkpoints are kept unless
            ``keep`` is given.

    Raises:
        NoUsableTrials: If no trial of ``run`` ended well.
        UsageError: If there are too few, or a refit would go on as another one.
    """
    if resume:
        assert run.record.refit is not None, "a search cannot be resumed as a refit"
        settled = {
            "RUN": (source and Path(source).name, run.record.refit.run),
            "--top": (top, len(run.record.refit.configs)),
            "--epochs": (epochs, run.record.search.epochs),
            "--seed": (seed, run.record.search.seed),
            "--metric": (metric, run.record.search.metric),
            "--all-data": (all_data or None, run.record.data.all_data),
        }
        for option, (wanted, was) in settled.items():
            if wanted is not None and wanted != was:
                raise UsageError(
                    f"--resume: {option} was fixed when {run.path} began; leave it out, or start "
                    "a new refit"
                )
        was = run.record.refit.seeds
        if seeds is not None and seeds < was:
            raise UsageError(
                f"--resume: --seeds {seeds}: {run.path} has {was}, and a refit grows only; leave "
                f"it out, or give more than {was}"
            )
        plan = replace(run.record.refit, seeds=seeds or was)
        if asked.get("keep") is None and run.record.keep in (None, run.record.refit.num_trials):
            # Keep all checkpoints; there may be more of them now.
            asked["keep"] = plan.num_trials
        request = resume_refit(run, plan, **as_before(run, asked))
        return _moved(request, data, data_dir)
    if all_data and run.record.teacher is not None:
        raise UsageError(
            f"--all-data: the teacher of {run.path} has said nothing of the validation images; "
            "leave it out"
        )
    run = ranked_by(run, metric, data=data, data_dir=data_dir)
    if name is None:
        name = free_name(run.path.parent, f"{run.path.name}-refit")
    plan = plan_refit(
        run,
        top=top or REFIT_TOP,
        seeds=seeds or REFIT_SEEDS,
        epochs=epochs,
    )
    request = begin_refit(
        run,
        plan,
        name=name,
        all_data=all_data,
        seed=run.record.search.seed + 1 if seed is None else seed,
        **as_before(None, asked, keep=plan.num_trials),
    )
    return _moved(request, data, data_dir)


def _moved(request: RefitRequest, data: str | None, data_dir: Path | None) -> RefitRequest:
    """Return the request with its images where the user says they are now."""
    config, folder = located(request.data, request.data_dir, data, data_dir)
    return replace(request, data=config, data_dir=folder)


def plan_refit(source: Run, *, top: int, seeds: int, epochs: int | None) -> RefitConfig:
    """Choose the best configurations of a run, which may still be searching.

    Trials that ended well count, whether or not their checkpoint was kept.

    Args:
        source: The run.
        top: Number of configurations; trials that differ only in their seed share one, as do those
            that differ in their epochs if ``epochs`` are given.
        seeds: Number of trials per configuration.
        epochs: Epochs of each trial; ``None`` for those of its configuration, which the space may
            have set or searched.

    Raises:
        NoUsableTrials: If no trial ended well.
        UsageError: If there are fewer than ``top`` configurations, or the run was trained on its
            validation images.
        DamagedError: If what was recorded of one is damaged, or not what was written.
    """
    source.check_unseen_validation("refit")
    configs: list[TrialConfig] = []
    trials: list[int] = []
    records: list[TrialRecord] = []
    duplicates: list[int] = []
    for trial in source.ranked():
        if len(configs) == top:
            break
        if trial.best is None or trial.status.state not in USABLE:
            continue
        config = replace(trial.config, epochs=epochs or trial.config.epochs, seed=0)
        if config in configs:
            duplicates.append(trial.number)
        else:
            configs.append(config)
            trials.append(trial.number)
            records.append(trial)
    if not configs:
        raise NoUsableTrials(
            f"{source.path}: no trial has ended well; '{leaderboard_command(source.path)}' says why"
        )
    if len(configs) < top:
        raise UsageError(
            f"--top {top}: {source.path} has only {plural(len(configs), 'configuration')} whose "
            "trials ended well (completed, stopped, paused or interrupted). Give --top "
            f"{len(configs)} or less."
        )
    check_records(records)
    return RefitConfig(
        run=source.path.name,
        trials=tuple(trials),
        configs=tuple(configs),
        seeds=seeds,
        duplicates=tuple(duplicates),
    )


def begin_refit(
    source: Run, plan: RefitConfig, *, name: str, all_data: bool, seed: int, **asked: Any
) -> RefitRequest:
    """Request a new refit, stored next to the run that it refits.

    Args:
        source: The run to refit.
        plan: Result of ``plan_refit``.
        name: Name of the new run.
        all_data: Whether to train on the validation images, too.
        seed: Seed from which, with its number, each trial's seed is derived. That of ``source``
            would repeat a trial that has the same number and epochs.
        asked: Other fields of ``RunRequest``.
    """
    record = source.record
    text = _space_text(source)
    if record.refit is None:
        text = (
            f"# The space that {source.path.name} searched; this run trains its best again.\n{text}"
        )
    return RefitRequest(
        plan=plan,
        source=source,
        space=text,
        resources=_resources(source),
        space_name=record.space,
        search=replace(
            record.search,
            trials=plan.num_trials,
            epochs=max(config.epochs for config in plan.configs),
            scheduler="none",
            patience=0.0,
            purpose="best",
            metric=source.metric,
            seed=seed,
        ),
        # Training on all images leaves none to validate on, in folds or otherwise.
        data=replace(record.data, all_data=all_data, folds=None if all_data else record.data.folds),
        data_dir=data_dir_of(record),
        storage=source.path.parent,
        name=name,
        **asked,
    )


def resume_refit(run: Run, plan: RefitConfig, **asked: Any) -> RefitRequest:
    """Request to resume a refit.

    Args:
        run: The refit.
        plan: Its plan; more ``seeds`` make it longer.
        asked: Other fields of ``RunRequest``.
    """
    return RefitRequest(
        plan=plan,
        source=None,
        space=_space_text(run),
        resources=_resources(run),
        space_name=run.record.space,
        search=replace(run.record.search, trials=plan.num_trials),
        data=run.record.data,
        data_dir=data_dir_of(run.record),
        storage=run.path.parent,
        name=run.path.name,
        resume=True,
        **asked,
    )


def _space_text(run: Run) -> str:
    file = run.path / SPACE
    with explaining_damage(file):
        return read_text(file)


def _resources(run: Run) -> Resources:
    with on_disk(run.path / SPACE) as file:
        return load_resources(file)


def finalists(plan: RefitConfig, seed: int) -> list[TrialConfig]:
    """Return the configuration of each trial of a refit, each with its own seed."""
    return [
        replace(plan.configs[number % len(plan.configs)], seed=trial_seed(seed, number))
        for number in range(plan.num_trials)
    ]


@usual_defaults()
def refit(request: RefitRequest, console: Console) -> Run:
    """Train the chosen configurations again in a new run folder, or resume a refit.

    Args:
        request: What to train, and on which images.
        console: Where progress is shown.

    Returns:
        The run; its status is ``interrupted`` if a signal ended it early.

    Raises:
        UsageError: On data or weights that cannot be read, a name that is taken, or a run to resume
            that is missing.
        UntrustedCodeError: If code that came with the run is neither known here nor trusted.
        DataError: If the images are not those of the run that is drawn from.
        ClusterError: On a cluster that does not answer, or is too small.
        NoUsableTrials: If no trial left a checkpoint.
        TunerError: If the first three trials failed in the same way.
    """
    plan = request.plan
    splits = read_splits(request, console)
    if request.source:
        record = request.source.record
        split = None if splits.is_val_seen else record.split_fingerprint
        splits.expect(record.data_fingerprint, split, request.source.path)
    models = [config.model for config in plan.configs]
    whose = request.source.path if request.source else request.storage / request.name
    check_trusted(request, code_of(models), whose)
    initial_weights = load_all_initial_weights(models, splits, request.storage)
    for note in notes_on_seen_images(models, splits, request.storage):
        tell(console, note)
    if (source := request.source) and source.record.teacher:
        read_teacher_probs(source.path, source.record.teacher)
    with connected_run(request, splits, console, resources=request.resources) as (
        run,
        capacity_plan,
    ):
        if source and source.record.teacher:
            copy_teacher_probs(source.path, run.path, source.record.teacher)
        elif request.resume:
            _copy_missing_teacher(run, plan)
        splits = with_teacher_probs(splits, run)
        tell(
            console,
            f"The {plural(len(models), 'best configuration')} of {plan.run}, each with "
            f"{plural(plan.seeds, 'seed')}, {_epochs_of(plan)}{_left_out(plan)}.",
        )
        if splits.is_val_seen:
            tell(
                console,
                "The validation images are trained on: accuracies mean nothing, and the last epoch "
                "of each trial is kept.",
            )
        payload = {"data": pack(splits), "initial_weights": pack_initial_weights(initial_weights)}
        proposer = FixedProposer(finalists(plan, request.search.seed))
        tuner = run_trials(request, run, capacity_plan, proposer, payload, console)
    require_usable_trial(run, tuner)
    note_best_student(request, run, splits, console)
    return run


def _copy_missing_teacher(run: Run, plan: RefitConfig) -> None:
    """Copy the probabilities of its teacher into a refit that was interrupted before it had them.

    The record of the refit leads only into its storage; a run elsewhere is left alone.

    Raises:
        TunerError: If they are damaged, or not what was written.
    """
    teacher, storage = run.record.teacher, run.path.parent
    if teacher is None or why_not_name(plan.run) or (run.path / TEACHER).exists():
        return
    source = storage / plan.run
    if lies_in(source, storage) and (source / TEACHER).exists():
        copy_teacher_probs(source, run.path, teacher)


def _epochs_of(plan: RefitConfig) -> str:
    known = sorted({config.epochs for config in plan.configs})
    least = f"{known[0]} to " if len(known) > 1 else ""
    return least + plural(known[-1], "epoch")


def _left_out(plan: RefitConfig) -> str:
    trials = plural(len(plan.duplicates), "trial")
    return f"; {trials} left out with the configuration of a better one" if plan.duplicates else ""
