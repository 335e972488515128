"""The Python interface: the commands as functions, for programs and notebooks.

Like the commands, each function imports what it needs when it is called: ``load_ensemble`` works
where Ray and Optuna are not installed.
"""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import yaml

from tuner.config import (
    AUTO,
    IMAGE_SIZES,
    SPACE_KEYS,
    AskedMethod,
    CompileMode,
    Diverse,
    Metric,
    Resize,
    Target,
    Tta,
)
from tuner.errors import SpaceError, UsageError
from tuner.run.layout import SPACE
from tuner.schema import Bounds, Scalar, parse_duration
from tuner.storage.paths import AnyPath, expanded, to_path

if TYPE_CHECKING:
    from tuner.console import Console
    from tuner.deploy.predictor import Ensemble
    from tuner.run.run import Run
    from tuner.space import SearchSpace
    from tuner.tuning.request import SearchRequest

Place = str | os.PathLike[str]
"""A local folder or file; a string may also be a URI such as ``s3://BUCKET/runs``."""
_AT_LEAST_1 = Scalar(kind=int, bounds=Bounds(ge=1))
_ABOVE_0 = Scalar(kind=float, bounds=Bounds(gt=0))
_FROM_0 = Scalar(kind=float, bounds=Bounds(ge=0))
_NUMBERS = {
    **dict.fromkeys(("keep", "concurrent", "top", "seeds", "epochs", "pool"), _AT_LEAST_1),
    **dict.fromkeys(("max_parameters", "train_limit"), _AT_LEAST_1),
    "image_size": Scalar(kind=int, bounds=IMAGE_SIZES),
    **dict.fromkeys(("time_budget", "gpu_hours", "cpus_per_trial", "max_latency_ms"), _ABOVE_0),
    **dict.fromkeys(("gpus_per_trial", "save_seconds"), _FROM_0),
    **dict.fromkeys(("max_failures", "seed"), Scalar(kind=int, bounds=Bounds(ge=0))),
}
"""Numeric arguments and their allowed values."""


def load_space(
    space: "Place | Mapping[str, Any] | SearchSpace",
    overrides: Sequence[str] = (),
    *,
    storage: Place = "runs",
) -> "SearchSpace":
    """Load a search space.

    Args:
        space: A YAML file, the name of a shipped space, the content of a space file as a mapping,
            or a loaded space. Files named in a mapping are relative to the working directory.
        overrides: ``KEY=VALUE`` each, such as ``space.batch_size=256``.
        storage: Folder of the runs that ``pretrained`` models start from.

    Raises:
        SpaceError: If it cannot be read.
    """
    return _load_space(space, _several(overrides), _place(storage))


def open_run(run: "Place | AnyPath | None" = None, *, storage: Place = "runs") -> "Run":
    """Open a run by its name or folder, or the newest run in ``storage``.

    Raises:
        UsageError: If there is no such run.
    """
    from tuner.run.run import find_run

    found = find_run(_place(storage), None if run is None else _text(run))
    # The program may change its working directory.
    found.path = found.path.absolute()
    return found


def search(
    space: "Place | Mapping[str, Any] | SearchSpace | None" = None,
    *,
    data: Place | None = None,
    trials: int | None = None,
    epochs: int | None = None,
    sampler: str | None = None,
    scheduler: str | None = None,
    metric: Metric | None = None,
    patience: float | None = None,
    purpose: str | None = None,
    seed: int | None = None,
    overrides: Sequence[str] = (),
    time_budget: float | str | None = None,
    gpu_hours: float | None = None,
    name: str | None = None,
    storage: Place = "runs",
    resume: bool = False,
    warm_start: "Place | Run | Sequence[Place | Run] | None" = None,
    study_storage: str | None = None,
    data_dir: Place | None = None,
    image_size: int | None = None,
    resize: Resize | None = None,
    val_fraction: float | None = None,
    folds: int | None = None,
    skip_broken: bool | None = None,
    train_limit: int | None = None,
    keep: int | None = None,
    cpus_per_trial: float | None = None,
    gpus_per_trial: float | None = None,
    concurrent: int | None = None,
    address: str | None = None,
    compile_mode: CompileMode | None = None,
    max_failures: int | None = None,
    save_seconds: float | None = None,
    log: Sequence[Target] = (),
    trust_code: bool = False,
    progress: bool = True,
) -> "Run":
    """Search a space in a new run folder, like ``cifar-tune search``.

    An argument that is ``None`` takes its value from the space, from the resumed run, or from its
    default. In the main thread, Ctrl-C ends the search after the running epochs; a second Ctrl-C
    ends it at once. The run's status is then ``interrupted``, and ``resume=True`` resumes it.

    Args:
        space: As in ``load_space``. With ``resume`` it may be omitted to use the run's own space.
            ``auto``, or ``data`` without a space, makes one for the images, machine and time.
        data: ``cifar10``, ``cifar100``, ``digits``, ``noisy-digits``, or a folder, an archive or a
            manifest.
        trials: Number of configurations to try.
        epochs: Maximum number of epochs of a trial.
        sampler: ``tpe``, ``random``, ``gp``, ``cmaes`` or ``grid``.
        scheduler: ``asha``, ``asha-stop``, ``hyperband``, ``median`` or ``none``.
        metric: Metric that ranks, stops and keeps trials: ``accuracy``, ``balanced_accuracy``,
            ``macro_f1``, ``nll`` or ``worst_class``.
        patience: End the search when the next quarter of its budget is expected to improve the best
            trial by fewer points than this; 0 never does.
        purpose: What trials are promoted for: ``best``, the best trial, or ``ensemble``, which also
            promotes for a vote in the last third of the budget.
        seed: Seed of the sampler and, together with its number, of each trial.
        overrides: ``KEY=VALUE`` each, for the space; the arguments above take precedence.
        time_budget: Search time in seconds, or a text such as ``30m``. Once it is spent, the search
            ends as if no trials were left.
        gpu_hours: Likewise, the budget in GPU hours.
        name: Name of the run; ``None`` makes one from the space and the time.
        storage: Folder of the runs.
        resume: Resume the run ``name``, or the newest run.
        warm_start: One or more earlier runs. Their best configurations, compared by rank, are tried
            first. A single run also teaches a sampler that learns.
        study_storage: Journal file or database for watching the search with optuna-dashboard. With
            ``resume``, give it again, unless it is a file in ``storage``.
        data_dir: Where downloaded and decoded images are kept; by default in
            ``~/.cache/cifar-tune``.
        image_size: Side in pixels to which images are resized.
        resize: How images become square: ``squash``, ``crop``, ``pad``, or ``auto``, which crops if
            most images are far from square.
        val_fraction: Share of the images to validate on, if the data set has no validation images.
        folds: Number of folds for cross-validation: a trial trains one network per fold, each on
            all images except its fold.
        skip_broken: Skip files that cannot be read, and list them.
        train_limit: Number of training images to use, as a stratified part of all.
        keep: Number of checkpoints that stay on disk, the best ones; by default 20.
        cpus_per_trial: CPUs of each trial.
        gpus_per_trial: GPUs of each trial; may be a fraction.
        concurrent: Number of trials at once; by default as many as fit.
        address: Address of a Ray cluster, ``auto`` or ``HOST:PORT``; an open session is used as is.
        compile_mode: When to compile networks: ``auto``, the default, ``always`` or ``never``.
        max_failures: Number of workers that a trial may lose; by default 3.
        save_seconds: Seconds of training that a trial may lose with its worker; by default 10.
        log: ``wandb`` and ``mlflow``, where trials are also recorded.
        trust_code: Run code that came with a run even if it was never searched with here.
        progress: Show progress on stderr.

    Raises:
        UsageError: On what cannot be searched, or not so.
        UntrustedCodeError: If code that came with a run is neither known nor trusted.
        ClusterError: On a cluster that does not answer, or is too small.
        NoUsableTrials: If no trial left a model.
        TunerError: If the first three trials failed in the same way.
    """
    from tuner.run.run import check_name_free
    from tuner.space import load_run_space
    from tuner.space.source import word_of
    from tuner.tuning.planning.make_space import making_space
    from tuner.tuning.request import load_searched, make_search_request
    from tuner.tuning.session import search as run_search

    running = _running(
        time_budget=time_budget,
        gpu_hours=gpu_hours,
        compile_mode=compile_mode,
        log=log,
        address=address,
        keep=keep,
        concurrent=concurrent,
        max_failures=max_failures,
        save_seconds=save_seconds,
        trust_code=trust_code,
    )
    shares = _numbers(cpus_per_trial=cpus_per_trial, gpus_per_trial=gpus_per_trial)
    sizes = _numbers(image_size=image_size, train_limit=train_limit)
    resumed = open_run(name, storage=storage) if resume else None
    if resumed and resumed.record.refit:
        raise UsageError(
            f"resume: {resumed.path} is a refit; resume it with tuner.refit(resume=True)"
        )
    if space is None and data is None and not resume:
        raise UsageError(
            "space: is missing; name one, such as 'cnn_small', or data to make one for, or resume "
            "a run"
        )
    if name is not None and not resume:
        check_name_free(_place(storage), name)
    settings = {
        "trials": trials,
        "epochs": epochs,
        "sampler": sampler,
        "scheduler": scheduler,
        "metric": metric,
        "patience": patience,
        "purpose": purpose,
        "seed": seed,
        "data": None if data is None else os.fspath(data),
        **shares,
    }
    given = {key: _plain(value) for key, value in settings.items() if value is not None}
    home = resumed.path.parent if resumed else _place(storage)
    earlier = _as_runs(warm_start, storage)
    changes = _several(overrides)
    words = [word_of(SPACE_KEYS[key], value) for key, value in given.items()]
    named = os.fspath(space) if isinstance(space, str | os.PathLike) else None
    if space is None and not resumed:
        named = AUTO

    def make(found: "SearchSpace") -> "SearchRequest":
        return make_search_request(
            found,
            space_name=named or "space",
            stem=Path(named or "space").stem,
            storage=home,
            name=name,
            resumed=resumed,
            data_settings={
                "resize": resize,
                "val_fraction": _plain(val_fraction),
                "folds": _plain(folds),
                "skip_broken": skip_broken,
                **sizes,
            },
            data_dir=None if data_dir is None else expanded(data_dir),
            warm_start=earlier,
            study_storage=study_storage,
            command=_call("search", named, given),
            **running,
        )

    console = _console(progress)
    if named == AUTO and not resumed:
        with making_space(make, [*changes, *words], console) as request:
            return run_search(request, console)

    def load(words: Sequence[str]) -> "SearchSpace":
        if resumed and (space is None or named == AUTO):
            return load_run_space(resumed.path / SPACE, words, home)
        return _load_space(space, words, home)

    return run_search(make(load_searched(load, [*changes, *words], resumed)), console)


def refit(
    run: "Place | Run | None" = None,
    *,
    top: int | None = None,
    seeds: int | None = None,
    epochs: int | None = None,
    all_data: bool = False,
    seed: int | None = None,
    metric: Metric | None = None,
    data: Place | None = None,
    data_dir: Place | None = None,
    time_budget: float | str | None = None,
    gpu_hours: float | None = None,
    name: str | None = None,
    storage: Place = "runs",
    resume: bool = False,
    keep: int | None = None,
    cpus_per_trial: float | None = None,
    gpus_per_trial: float | None = None,
    concurrent: int | None = None,
    address: str | None = None,
    compile_mode: CompileMode | None = None,
    max_failures: int | None = None,
    save_seconds: float | None = None,
    log: Sequence[Target] = (),
    trust_code: bool = False,
    progress: bool = True,
) -> "Run":
    """Train the best configurations of a run again, like ``cifar-tune refit``.

    Args:
        run: A run, its name or its folder; ``None`` for the newest. With ``resume`` and without
            ``name``, the refit.
        top: Number of configurations; ``None`` for 5.
        seeds: Number of trials of each configuration; ``None`` for 3. With ``resume``, not fewer.
        epochs: Epochs of each trial; ``None`` for those of the run's trials.
        all_data: Train on the validation images, too.
        seed: Seed of the refit; ``None`` for that of the run plus 1.
        metric: Metric that chooses the configurations and ranks the new trials; ``None`` for that
            of the run.
        data: Where the run's images are now; ``None`` if they have not moved.
        data_dir: Likewise, for downloads and decoded images.
        time_budget: See ``search``.
        gpu_hours: See ``search``.
        name: Name of the new run; ``None`` appends ``-refit`` to that of the run. With ``resume``,
            the refit.
        storage: Folder of the runs.
        resume: Resume the refit ``name``, or ``run``, or the newest run.
        keep: Number of checkpoints that stay on disk; ``None`` for all.
        cpus_per_trial: See ``search``.
        gpus_per_trial: See ``search``.
        concurrent: See ``search``.
        address: See ``search``.
        compile_mode: See ``search``.
        max_failures: See ``search``.
        save_seconds: See ``search``.
        log: See ``search``.
        trust_code: See ``search``.
        progress: Show progress on stderr.

    Raises:
        UntrustedCodeError: As ``search``.
        UsageError: If the run has too few trials, or a refit would go on as another one.
        ClusterError: On a cluster that does not answer, or is too small.
        NoUsableTrials: If no trial has ended well, or none left a model.
        TunerError: If the first three trials failed in the same way.
    """
    from tuner.tuning.refit import make_refit_request
    from tuner.tuning.refit import refit as run_refit

    running = _running(
        time_budget=time_budget,
        gpu_hours=gpu_hours,
        compile_mode=compile_mode,
        log=log,
        address=address,
        keep=keep,
        cpus_per_trial=cpus_per_trial,
        gpus_per_trial=gpus_per_trial,
        concurrent=concurrent,
        max_failures=max_failures,
        save_seconds=save_seconds,
        trust_code=trust_code,
    )
    plan = _numbers(top=top, seeds=seeds, epochs=epochs, seed=seed)
    if resume and name is not None:
        found = open_run(name, storage=storage)
        source = None if run is None else _text(run)
    else:
        found, source = _as_run(run, storage), None
    if resume and found.record.refit is None:
        raise UsageError(
            f"resume: {found.path} is a search; resume it with tuner.search(resume=True)"
        )
    if metric is not None:
        _expect("metric", metric, get_args(Metric))
    settings = {**plan, "metric": metric}
    given = {key: value for key, value in settings.items() if value is not None}
    request = make_refit_request(
        found,
        resume=resume,
        source=source,
        **plan,
        all_data=all_data,
        metric=metric,
        name=name,
        data=None if data is None else os.fspath(data),
        data_dir=None if data_dir is None else expanded(data_dir),
        command=_call("refit", found.path.name, given),
        **running,
    )
    return run_refit(request, _console(progress))


def distill(
    ensemble: "Place | Ensemble | Run | None" = None,
    *,
    into: Place,
    data: Place | None = None,
    trials: int | None = None,
    epochs: int | None = None,
    sampler: str | None = None,
    scheduler: str | None = None,
    metric: Metric | None = None,
    patience: float | None = None,
    purpose: str | None = None,
    seed: int | None = None,
    overrides: Sequence[str] = (),
    time_budget: float | str | None = None,
    gpu_hours: float | None = None,
    name: str | None = None,
    storage: Place = "runs",
    data_dir: Place | None = None,
    image_size: int | None = None,
    resize: Resize | None = None,
    keep: int | None = None,
    cpus_per_trial: float | None = None,
    gpus_per_trial: float | None = None,
    concurrent: int | None = None,
    address: str | None = None,
    compile_mode: CompileMode | None = None,
    max_failures: int | None = None,
    save_seconds: float | None = None,
    log: Sequence[Target] = (),
    trust_code: bool = False,
    progress: bool = True,
) -> "Run":
    """Search for a small network that an ensemble teaches, like ``cifar-tune distill``.

    ``tuner.search(resume=True)`` resumes the run.

    Args:
        ensemble: The teacher: an ensemble, its folder or URI, ``RUN/NAME``, or a run, which means
            its newest ensemble; ``None`` for the newest ensemble of the newest run that has one.
        into: A family of networks, such as ``cnn``, whose small networks are searched, or a space:
            its file, or the name of a shipped one.
        data: Where the ensemble's images are now; ``None`` if they have not moved.
        trials: See ``search``.
        epochs: See ``search``.
        sampler: See ``search``.
        scheduler: See ``search``.
        metric: See ``search``.
        patience: See ``search``.
        purpose: See ``search``.
        seed: See ``search``.
        overrides: See ``search``.
        time_budget: See ``search``.
        gpu_hours: See ``search``.
        name: Name of the run; ``None`` appends ``-student`` to that of the ensemble's run.
        storage: Folder of the runs.
        data_dir: Like ``data``, for downloads and decoded images.
        image_size: Side in pixels to which the students' images are resized; ``None`` for the
            value in the space, or the ensemble's.
        resize: How the students' images become square; ``None`` likewise.
        keep: See ``search``.
        cpus_per_trial: See ``search``.
        gpus_per_trial: See ``search``.
        concurrent: See ``search``.
        address: See ``search``.
        compile_mode: See ``search``.
        max_failures: See ``search``.
        save_seconds: See ``search``.
        log: See ``search``.
        trust_code: See ``search``.
        progress: Show progress on stderr.

    Raises:
        UsageError: If there is no such ensemble, or it cannot teach, and as ``search``.
        DataError: If the images are not those of the ensemble.
        UntrustedCodeError: As ``search``.
        ClusterError: As ``search``.
        NoUsableTrials: As ``search``.
        TunerError: If a file of the ensemble is damaged, and as ``search``.
    """
    from tuner.deploy.predictor import Ensemble
    from tuner.space.source import word_of
    from tuner.tuning.distill import make_distill_request
    from tuner.tuning.session import search as run_search

    running = _running(
        time_budget=time_budget,
        gpu_hours=gpu_hours,
        compile_mode=compile_mode,
        log=log,
        address=address,
        keep=keep,
        concurrent=concurrent,
        max_failures=max_failures,
        save_seconds=save_seconds,
        trust_code=trust_code,
    )
    shares = _numbers(cpus_per_trial=cpus_per_trial, gpus_per_trial=gpus_per_trial)
    size = _numbers(image_size=image_size)
    settings = {
        "trials": trials,
        "epochs": epochs,
        "sampler": sampler,
        "scheduler": scheduler,
        "metric": metric,
        "patience": patience,
        "purpose": purpose,
        "seed": seed,
        **shares,
    }
    given = {key: _plain(value) for key, value in settings.items() if value is not None}
    folder = (
        ensemble.path
        if isinstance(ensemble, Ensemble)
        else _find_ensemble("ensemble", ensemble, storage)
    )
    request = make_distill_request(
        folder,
        into=os.fspath(into),
        overrides=[
            *_several(overrides),
            *(word_of(SPACE_KEYS[key], value) for key, value in given.items()),
        ],
        storage=_place(storage),
        name=name,
        data=None if data is None else os.fspath(data),
        data_dir=None if data_dir is None else expanded(data_dir),
        resize=resize,
        **size,
        command=_call("distill", str(folder), {"into": into, **given}),
        **running,
    )
    return run_search(request, _console(progress))


def combine(
    run: "Place | Run | None" = None,
    *,
    top: int = 5,
    method: AskedMethod = "vote",
    metric: Metric | None = None,
    calibrate: bool = False,
    tta: Tta = "none",
    pool: int | None = None,
    diverse: Diverse | None = None,
    max_parameters: int | None = None,
    max_latency_ms: float | None = None,
    front: bool = False,
    frontier: bool = False,
    compare: bool = False,
    duplicates: Place | None = None,
    skip_damaged: bool = False,
    data: Place | None = None,
    data_dir: Place | None = None,
    name: str | None = None,
    storage: Place = "runs",
    device: str = "auto",
    trust_code: bool = False,
    progress: bool = True,
) -> "Ensemble":
    """Combine the best trials of a run and read the test images once.

    Works like ``cifar-tune ensemble``. The ensemble is stored in the run's folder
    ``ensembles/NAME`` and replaces one of the same name.

    Args:
        run: A run, its name or its folder; ``None`` for the newest.
        top: Number of members: exact for a vote, the maximum otherwise.
        method: ``vote``, ``greedy``, ``weighted``, ``soup``, ``greedy-soup``, or ``auto``, which
            follows cross-fitted validation figures and may take the best trial alone.
        metric: Metric to choose by, as in ``search``; ``None`` for that of the run.
        calibrate: Fit one temperature to the vote.
        tta: Views of an image that each member averages: ``none``, ``flip``, ``flip+shift``.
        pool: Number of best trials to choose from; ``None`` for 50, or ``top`` if that is more.
        diverse: Take only the best trial of each ``family``, ``config`` or ``seed``.
        max_parameters: Maximum number of parameters of all members together.
        max_latency_ms: Maximum milliseconds of all members together on one image, measured here.
        front: Take the trials on the front of the space's objectives, whatever ``top`` is.
        frontier: Find the members that are best for their time.
        compare: Score all methods with the same reading of the test images.
        duplicates: CSV of test images that have near-duplicates in the training data.
        skip_damaged: Leave out trials whose files are damaged, or are not those that were recorded.
        data: Where the run's images are now; ``None`` if they have not moved.
        data_dir: Likewise, for downloads and decoded images.
        name: Name of the ensemble; ``None`` derives it from the method.
        storage: Folder of the runs.
        device: Where to compute: ``auto``, ``cpu``, ``cuda``, ``cuda:1``.
        trust_code: Run code that came with the run even if it was never searched with here.
        progress: Report slow steps on stderr.

    Raises:
        NoUsableTrials: If the run has no usable trial.
        UsageError: If it has too few for what is asked.
        UntrustedCodeError: If code would be run that is neither known nor trusted.
        DataError: If images cannot be read, or have changed since.
        TunerError: If a candidate's files are damaged, each in a line.
    """
    from tuner.ensemble import make_ensemble, planning
    from tuner.ensemble.request import ASKED_METHODS, EnsembleRequest
    from tuner.models.defaults import usual_defaults
    from tuner.training.device import find_devices

    numbers = _numbers(
        top=top, pool=pool, max_parameters=max_parameters, max_latency_ms=max_latency_ms
    )
    _expect("method", method, ASKED_METHODS)
    _expect("tta", tta, get_args(Tta))
    if metric is not None:
        _expect("metric", metric, get_args(Metric))
    if diverse is not None:
        _expect("diverse", diverse, get_args(Diverse))
    request = EnsembleRequest(
        **numbers,
        method=method,
        metric=metric,
        calibrate=calibrate,
        tta=tta,
        diverse=diverse,
        front=front,
        frontier=frontier,
        compare=compare,
        duplicates=None if duplicates is None else expanded(duplicates),
        skip_damaged=skip_damaged,
        data=None if data is None else os.fspath(data),
        data_dir=None if data_dir is None else expanded(data_dir),
        trust_code=trust_code,
        name=name,
    )
    console = _console(progress)

    def say(message: str) -> None:
        console.print(message, markup=False)

    found = _as_run(run, storage)
    with (
        usual_defaults(),
        planning(found, request, devices=find_devices(device), say=say) as plan,
    ):
        result = make_ensemble(plan, say=say)
    return load_ensemble(result.path, device=device, trust_code=trust_code)


def load_ensemble(
    path: "Place | AnyPath | Run",
    *,
    storage: Place = "runs",
    device: str = "auto",
    trust_code: bool = False,
) -> "Ensemble":
    """Load an ensemble, ready to predict.

    ::

        ensemble = tuner.load_ensemble("runs/first/ensembles/top5")
        probs = ensemble.predict(["photo.jpg"])  # or Pillow's images, or uint8 (N, H, W, C)
        print(ensemble.classes[probs[0].argmax()], probs[0].max())
        print(ensemble.explain("photo.jpg")[0])

    It needs torch, numpy, pillow, safetensors, pyyaml, click and rich, and torchvision only for
    members that started from its weights. Files are checked by their hashes, and networks by
    predicting a few images whose probabilities are stored in the folder. Members that are custom
    networks contain their code, which is run if it was searched with here or is trusted.

    Args:
        path: Folder or URI of the ensemble, such as ``runs/first/ensembles/top5``; or ``RUN/NAME``,
            or a run, which means its newest ensemble.
        storage: Folder of the runs for ``RUN/NAME`` and names of runs.
        device: Where to compute: ``auto``, ``cpu``, ``cuda``, ``cuda:1``.
        trust_code: Run code that came with the ensemble even if it was never searched with here.

    Raises:
        UsageError: If there is no ensemble, or no such device.
        UntrustedCodeError: If code would be run that is neither known nor trusted.
        TunerError: If a file is damaged, or not the one that was combined.
    """
    from tuner.deploy.predictor import read_ensemble
    from tuner.training.device import find_device

    if path is None:
        raise UsageError(
            "path: None is not an ensemble; give its folder or URI, RUN/NAME, or a run, such as "
            "'runs/first'"
        )
    folder = _find_ensemble("path", path, storage)
    return read_ensemble(folder, find_device(device), trust_code=trust_code)


def _find_ensemble(
    argument: str, ensemble: "Place | AnyPath | Run | None", storage: Place
) -> AnyPath:
    """Return the folder of the ensemble that an argument names in the same way as for commands."""
    from tuner.run.ensembles import find_ensemble
    from tuner.run.run import Run
    from tuner.storage.object_path import ObjectPath

    if ensemble is not None and not isinstance(ensemble, str | os.PathLike | ObjectPath | Run):
        raise UsageError(
            f"{argument}: {type(ensemble).__name__} is not an ensemble; give a folder or URI, "
            "RUN/NAME, or a run"
        )
    name = None if ensemble is None else _text(ensemble)
    return find_ensemble(_place(storage), name).absolute()


def _load_space(space: Any, overrides: Sequence[str], storage: AnyPath) -> "SearchSpace":
    from tuner.space import SearchSpace, find_space
    from tuner.space import load_space as read_space

    if isinstance(space, SearchSpace):
        read = read_space(Path("space"), overrides, storage, text=space.resolved())
        return replace(read, own_code={**space.own_code, **read.own_code})
    if isinstance(space, Mapping):
        try:
            text = yaml.safe_dump(dict(space), sort_keys=False)
        except yaml.YAMLError as error:
            what = " ".join(str(error).split())
            raise SpaceError(f"space: contains more than plain values: {what}") from None
        return read_space(Path("space"), overrides, storage, text=text)
    return read_space(find_space(os.fspath(space)), overrides, storage)


def _text(place: "Place | AnyPath | Run") -> str:
    """Return the text by which a command would be given a run, a folder or a URI."""
    from tuner.run.run import Run

    path = place.path if isinstance(place, Run) else place
    return str(os.fspath(path)) if isinstance(path, str | os.PathLike) else str(path)


def _as_run(run: "Place | AnyPath | Run | None", storage: Place) -> "Run":
    from tuner.run.run import Run

    return run if isinstance(run, Run) else open_run(run, storage=storage)


def _as_runs(
    runs: "Place | AnyPath | Run | Iterable[Place | AnyPath | Run] | None", storage: Place
) -> "tuple[Run, ...]":
    from tuner.run.run import Run
    from tuner.storage.object_path import ObjectPath

    if runs is None:
        return ()
    is_one = isinstance(runs, str | os.PathLike | Run | ObjectPath)
    several: list[Any] = [runs] if is_one else list(cast("Iterable[Any]", runs))
    if None in several:
        raise UsageError("warm_start: None is not a run; give names, folders or runs")
    found = [_as_run(run, storage) for run in several]
    return tuple({str(run.path): run for run in found}.values())


def _place(place: "Place | AnyPath") -> AnyPath:
    if isinstance(place, str):
        return to_path(place)
    return expanded(place) if isinstance(place, os.PathLike) else place


def _console(progress: bool) -> "Console":
    from tuner.console import Console

    # Plain lines in notebooks, too: there, each redrawn table would be appended below the last one.
    return Console(stderr=True, quiet=not progress, highlight=False, force_jupyter=False)


def _check_no_dashboard(address: str | None) -> None:
    from tuner.tuning.address import find_dashboard

    if place := find_dashboard(address):
        raise UsageError(
            f"address {place}: jobs are submitted by 'cifar-tune search' and 'cifar-tune refit'; "
            "here give auto or HOST:PORT, on a machine of the cluster"
        )


def _running(
    *,
    time_budget: float | str | None,
    gpu_hours: float | None,
    compile_mode: str | None,
    log: Sequence[str],
    address: str | None,
    **others: Any,
) -> dict[str, Any]:
    """Check the options that define how trials run, and return them as fields of ``RunRequest``."""
    _check_no_dashboard(address)
    if compile_mode is not None:
        _expect("compile_mode", compile_mode, get_args(CompileMode))
    targets = _several(log)
    for target in targets:
        _expect("log", target, get_args(Target))
    if isinstance(time_budget, str):
        time_budget = parse_duration(time_budget)
    budgets = _numbers(time_budget=time_budget, gpu_hours=gpu_hours)
    seconds, hours = (math.inf if limit is None else float(limit) for limit in budgets.values())
    return {
        "seconds": seconds,
        "gpu_hours": hours,
        "compile_mode": compile_mode,
        "log": targets,
        "address": address,
        **others,
        **_numbers(**{name: value for name, value in others.items() if name in _NUMBERS}),
    }


def _numbers(**given: float | None) -> dict[str, Any]:
    """Return numeric arguments as Python's own numbers.

    Raises:
        UsageError: If one is not allowed; see ``_NUMBERS``.
    """
    plain = {name: _plain(number) for name, number in given.items()}
    for name, number in plain.items():
        if number is not None and (problem := _NUMBERS[name].problem(number)):
            raise UsageError(f"{name}: {problem}")
    return plain


def _plain(value: Any) -> Any:
    """Return a number of NumPy's as Python's own, which can be recorded; others unchanged."""
    if isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


def _several(words: Iterable[str]) -> tuple[str, ...]:
    """Return words of which a single one need not be in a list."""
    return (words,) if isinstance(words, str) else tuple(words)


def _expect(name: str, word: str, known: Sequence[str]) -> None:
    if problem := Scalar(kind=str, choices=tuple(known)).problem(word):
        raise UsageError(f"{name}: {problem}")


def _call(function: str, first: str | None, given: Mapping[str, Any]) -> str:
    """Return a call as text, for the record of a run."""
    words = [
        repr(first) if first else "space",
        *(f"{key}={value!r}" for key, value in given.items()),
    ]
    return f"tuner.{function}({', '.join(words)})"
