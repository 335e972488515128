"""Everything that is decided about an ensemble before a test image is read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tuner.config import Method, ModelConfig
from tuner.data.splits import Splits, located
from tuner.ensemble.candidates import damage_of_network
from tuner.ensemble.choosing import (
    Choice,
    Chooser,
    best_single,
    choose,
    soups,
    voters,
    within_latency,
)
from tuner.ensemble.latency import measure_latency
from tuner.ensemble.members import Network, Predict, predict_validation
from tuner.ensemble.pool import (
    Pool,
    of_front,
    read_pool,
    require_enough,
    without_damaged,
)
from tuner.ensemble.request import METHODS, SOUPS, EnsembleRequest
from tuner.ensemble.soup import SoupMaker
from tuner.ensemble.verdict import VOTES, Verdict, judge
from tuner.errors import UsageError
from tuner.metrics.predict import score
from tuner.models.trust import check_code_trusted, code_of
from tuner.run.digests import Damage
from tuner.run.ensemble_record import Excluded, Skipped
from tuner.run.run import Run
from tuner.schema import to_plain
from tuner.storage.paths import AnyPath
from tuner.training.run_images import load_run_splits
from tuner.voting.weighted import NoWeightsError

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Choices made on validation images alone."""

    run: Run
    request: EnsembleRequest
    splits: Splits
    pool: Pool
    soup_maker: SoupMaker
    choice: Choice
    """The requested choice."""
    single: Choice
    """The best single candidate."""
    others: tuple[Choice, ...]
    """For comparison: the calibrated best single, then each method, plain and calibrated."""
    skipped: tuple[Skipped, ...]
    verdict: Verdict | None
    """``None`` if the validation images were trained on and therefore prove nothing."""

    @property
    def predict(self) -> Predict:
        """Computes networks."""
        return self.soup_maker.predict

    @property
    def device(self) -> torch.device:
        """Where networks are timed and checked."""
        return self.soup_maker.device

    @property
    def folder(self) -> AnyPath:
        """Temporary folder of soups and copies."""
        return self.soup_maker.folder

    @property
    def candidates(self) -> list[int]:
        """Positions of the candidates whose networks predict the test images."""
        choices = (self.single, self.choice, *self.others)
        return list(dict.fromkeys(i for choice in choices for i in choice.members))

    def damage_of_files(self) -> list[Damage]:
        """Return what is wrong with the candidates' networks, without running their own code.

        A network whose file has no digest, or is newer than it, is computed to see whether it still
        gives the recorded probabilities, unless that would run code.
        """
        everyone = self.candidates
        return [entry for i in everyone for entry in self.damage_of_network(i, is_quick=True)]

    def damage_of_network(
        self, position: int, *, file: AnyPath | None = None, is_quick: bool = False
    ) -> list[Damage]:
        """Return what is wrong with a candidate's network; see ``candidates.damage_of_network``."""
        recorded = self.pool.candidates[position]
        trial = recorded.trial
        damage = damage_of_network(
            recorded,
            self.splits,
            self.device,
            file=file,
            is_quick=is_quick,
        )
        if damage and not self.run.reread(trial).is_usable:
            problem = "was removed, or its trial was resumed, since it was chosen; try again"
            return [Damage(file=str(trial.checkpoint), problem=problem, trial=trial.number)]
        return damage

    def without(self, damage: Sequence[Damage]) -> "Plan":
        """Choose again without the trials of damaged files.

        Raises:
            DamagedError: If the request does not leave them out, or no candidate is left.
            UsageError: If too few are left for a vote.
        """
        pool = without_damaged(self.pool, damage, self.request)
        require_enough(self.run, len(pool), damage, self.request)
        soup_maker = replace(self.soup_maker, pool=pool)
        return _choose_all(self.run, self.request, self.splits, soup_maker)

    @property
    def left_out(self) -> tuple[Excluded, ...]:
        """Trials that are not members, and why."""
        return (*self.choice.left_out, *self.pool.left_out)

    @property
    def data_dir(self) -> Path:
        """Where downloads and decoded images are kept."""
        record = self.run.record
        return located(record.data, record.data_dir, self.request.data, self.request.data_dir)[1]

    def networks(self, choice: Choice) -> dict[tuple[int, ...], Network]:
        """Return the networks of a choice, by the positions of the candidates in them."""
        if choice.method in SOUPS:
            return {choice.members: self.soup_maker.network(choice.members)}
        return {(i,): self.pool.network(i) for i in choice.members}

    def models(self) -> list[ModelConfig]:
        """Return the models of all networks that predict the test images."""
        return [self.pool.trials[i].config.model for i in sorted(self.candidates)]

    def to_plain(self) -> dict[str, Any]:
        """Return the choices with their figures on validation images, for ``--dry-run``."""
        return {
            "run": self.run.record.name,
            "name": self.request.folder_name,
            "metric": self.pool.metric,
            "is_val_seen": self.splits.is_val_seen,
            "verdict": to_plain(self.verdict) if self.verdict else None,
            "val_images": len(self.pool.labels),
            "choices": [
                self._described(choice) for choice in (self.choice, self.single, *self.others)
            ],
            "left_out": to_plain(self.left_out),
            "skipped": to_plain(self.skipped),
        }

    def _described(self, choice: Choice) -> dict[str, Any]:
        trials = [self.pool.trials[i] for i in choice.members]
        return {
            "method": choice.label,
            "calibrated": choice.is_calibrated,
            "temperature": choice.temperature,
            "members": [
                {
                    "trial": trial.number,
                    "family": trial.config.model.family,
                    "weight": weight,
                    "temperature": temperature,
                }
                for trial, weight, temperature in zip(
                    trials, choice.weights.tolist(), choice.temperatures, strict=True
                )
            ],
            "val": to_plain(score(choice.val, self.pool.labels)),
            "crossfit": to_plain(score(choice.crossfit, self.pool.labels)),
        }


def make_plan(
    run: Run,
    request: EnsembleRequest,
    *,
    folder: AnyPath,
    predict: Predict,
    device: torch.device,
    say: Say,
) -> Plan:
    """Choose the members of an ensemble, and of those that it is compared with.

    Choosing votes needs no model, except to time it for ``max_latency_ms``, and for ``tta``: since
    the fit must match what will be computed, all candidates predict the validation images again.

    Args:
        run: The run; its search may still be running.
        request: How members are chosen and vote.
        folder: Where soups may be kept.
        predict: Computes networks.
        device: Where latencies and normalization statistics are measured.
        say: Receives messages about slow steps.

    Raises:
        NoUsableTrials: If the run has no usable trial.
        UsageError: If it has too few for what is asked, or what is asked goes by validation images
            that were trained on.
        DataError: If the images cannot be read, or have changed since.
        TunerError: If a candidate's files are damaged.
    """
    run.check_unseen_validation(*request.chosen_by_validation)
    splits = load_run_splits(run, request.data, request.data_dir)
    if request.front:
        request = of_front(run, request)
    if request.metric is not None:
        run = run.by(request.metric, lambda: splits.val.labels.numpy())
    pool = read_pool(run, splits.val.labels, splits.num_classes, request)
    if request.computes_to_choose:
        # Otherwise, candidates are only read from the folder, and none of their code is run.
        models = code_of(trial.config.model for trial in pool.trials)
        check_code_trusted(models, run.path, trust=request.trust_code)
        damage = [
            entry
            for recorded in pool.candidates
            for entry in damage_of_network(recorded, splits, device)
        ]
        pool = without_damaged(pool, damage, request)
        require_enough(run, len(pool), damage, request)
    if len(pool) < request.top and not request.front:
        say(f"candidates: {len(pool)}, fewer than --top {request.top}")
    if request.tta != "none":
        say(f"looking at the validation images with --tta {request.tta}, candidates: {len(pool)}")
        networks = [pool.network(i) for i in range(len(pool))]
        pool = pool.seen_anew(predict_validation(predict, networks, splits, request.tta))
    if request.max_latency_ms is not None:
        say(f"timing candidates on {device}: {len(pool)}")
        latencies = tuple(
            measure_latency(pool.network(i), splits.image_shape, request.tta, device)
            for i in range(len(pool))
        )
        pool = within_latency(pool, request.max_latency_ms, latencies)
    soup_maker = SoupMaker(
        pool=pool,
        folder=folder,
        train_images=splits.train.images,
        val=splits.val,
        tta=request.tta,
        predict=predict,
        device=device,
    )
    plan = _choose_all(run, request, splits, soup_maker)
    while not request.computes_to_choose and (damage := plan.damage_of_files()):
        plan = plan.without(damage)
    return plan


def _choose_all(run: Run, request: EnsembleRequest, splits: Splits, soup_maker: SoupMaker) -> Plan:
    """Choose from the candidates of ``soup_maker``; the method ``None`` is the best single one."""
    pool = soup_maker.pool

    def chooser(method: Method | None) -> Chooser:
        if method is None:
            return best_single(pool)
        if method in SOUPS:
            return soups(pool, request, method, soup_maker)
        return voters(pool, request, method)

    # Each is cross-fitted once, though both the comparison and the verdict may need it.
    made: dict[tuple[Method | None, bool], Choice] = {}

    def chosen(method: Method | None, *, calibrate: bool) -> Choice:
        if (method, calibrate) not in made:
            made[method, calibrate] = choose(pool, chooser(method), method, calibrate=calibrate)
        return made[method, calibrate]

    others: list[Choice] = []
    skipped: list[Skipped] = []
    for method in METHODS if request.compare else ():
        try:
            others += [chosen(method, calibrate=calibrate) for calibrate in (False, True)]
        except (NoWeightsError, UsageError) as error:
            if method == request.method:
                raise
            skipped.append(Skipped(method=method, reason=str(error).split("; ")[0]))
    if request.compare:
        others = [chosen(None, calibrate=True), *others]
    single = chosen(None, calibrate=False)
    alone = chosen(None, calibrate=request.calibrate)
    asked = (
        None if request.method == "auto" else chosen(request.method, calibrate=request.calibrate)
    )
    verdict = None
    if not pool.is_val_seen:
        votes = []
        for method in VOTES:
            try:
                votes.append(chosen(method, calibrate=request.calibrate))
            except NoWeightsError:
                # A method that was not requested is not advised either.
                if method == request.method:
                    raise
        trial = pool.trials[0].number
        judged = partial(
            judge,
            alone,
            votes=votes,
            labels=pool.labels,
            top=request.top,
            trial=trial,
            metric=pool.metric,
        )
        if asked is None:
            advised = judged(alone).advised.method
            # The best single candidate is a vote of one.
            asked = next((c for c in votes if c.method == advised), replace(alone, method="vote"))
        verdict = judged(asked)
    assert asked is not None, "of validation images that were trained on, auto is refused"
    return Plan(
        run=run,
        request=request,
        splits=splits,
        pool=pool,
        soup_maker=soup_maker,
        choice=asked,
        single=single,
        others=tuple(others),
        skipped=tuple(skipped),
        verdict=verdict,
    )
