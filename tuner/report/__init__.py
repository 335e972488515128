"""A run on one page: ``report.html`` in its folder, which opens anywhere and loads nothing else.

``facts`` gathers the data of the trials, ``ensembles`` that of an ensemble; ``page`` renders them
with the templates, styles and scripts in ``assets``.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuner.errors import StorageError, TunerError
from tuner.metrics.goal import name_of
from tuner.report.advice import advise_on_run
from tuner.report.best import best_trial
from tuner.report.ensembles import EnsembleFigures, read_ensemble, read_figures
from tuner.report.facts import class_facts, run_facts
from tuner.report.front import front_of
from tuner.report.page import in_words, points, render
from tuner.run.check import check_records
from tuner.run.ensembles import ensemble_folders
from tuner.run.forecast import Spread, outcomes
from tuner.run.issues import find_issues
from tuner.run.layout import LEADERBOARD, REPORT, SPACE
from tuner.run.outlook import outlook_of
from tuner.run.resuming import command_line, storage_words
from tuner.run.run import Run, leader
from tuner.run.rung_worth import rung_worths
from tuner.run.trial import TrialRecord
from tuner.run.uncertainty import val_margin
from tuner.schema import plural
from tuner.space import SearchSpace
from tuner.storage.files import write_text
from tuner.storage.paths import AnyPath, read_text

__all__ = ["Page", "make_page", "verdict", "write_report"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """The page of a run."""

    path: AnyPath
    """Where ``write_report`` writes it."""
    html: str
    verdict: str
    """First sentence of the page."""
    advice: list[str]
    """What to look at, one item per line."""


def write_report(
    run: Run,
    ranked: Sequence[TrialRecord],
    space: SearchSpace,
    importance: Mapping[str, Mapping[str, float]],
    advice: Sequence[str],
    tentative: Mapping[str, Spread] | None = None,
) -> Page:
    """Write ``report.html`` of a run; see ``make_page`` for the arguments.

    Raises:
        TunerError: If the run, its plan, its issues or its newest ensemble is damaged.
    """
    page = make_page(run, ranked, space, importance, advice, tentative)
    write_text(page.path, page.html)
    return page


def make_page(
    run: Run,
    ranked: Sequence[TrialRecord],
    space: SearchSpace,
    importance: Mapping[str, Mapping[str, float]],
    advice: Sequence[str],
    tentative: Mapping[str, Spread] | None = None,
    *,
    version: str | None = None,
) -> Page:
    """Return the page of a run.

    Args:
        run: The run.
        ranked: Its trials, the best first.
        space: Its search space.
        importance: Group of trials -> parameter -> share of the importance.
        advice: What to look at, one item per line.
        tentative: Parameter -> share of the importance, if trials are few.
        version: Version of the run's files if the page is served; then it refreshes itself.

    Raises:
        TunerError: If the run, its plan, its issues or its newest ensemble is damaged.
    """
    check_records(ranked)
    folders = ensemble_folders(run.path)
    figures = read_figures(folders[0]) if folders else None
    ensemble = read_ensemble(folders[0], figures) if figures else None
    facts = run_facts(run, space, ranked, importance, tentative or {})
    if ensemble:
        keys = ("by_size", "classes", "confusion", "per_class", "reliability", "coverage")
        drawn = {key: ensemble[key] for key in (*keys, "frontier") if ensemble.get(key)}
        if "per_class" in drawn:
            drawn["per_class"] = class_facts(drawn["per_class"])
        facts["ensemble"] = drawn
    if version:
        is_running = run.record.status == "running"
        facts["live"] = {"version": version, "run": str(run.path), "is_running": is_running}
    sentence = verdict(ranked, figures)
    best = best_trial(run, ranked, space)
    lines = [*advise_on_run(run, ranked, best, figures), *advice]
    name, where = run.path.name, storage_words(run.path.parent)
    first = leader(ranked)
    html = render(
        "report.html",
        ("trial.js", "table.js", "report.js", "ensemble.js", *(("live.js",) if version else ())),
        facts,
        is_live=version is not None,
        title=f"{run.record.name} · cifar-tune",
        verdict=sentence,
        record=run.record,
        summary=_summary(run, ranked),
        metric=run.record.search.metric,
        metric_name=name_of(run.record.search.metric),
        best=best,
        advice=lines,
        front=front_of(run, ranked),
        worths=rung_worths(run.record.search, [trial.history for trial in ranked]),
        outlook=outlook_of(run, ranked),
        planned=outcomes(run, ranked),
        issues=find_issues(run),
        ensemble=ensemble,
        figures=figures,
        others=_told(folders[1:]),
        rerun=command_line("rerun", *where, names=[name, str(first.number if first else 0)]),
        has_leaderboard=(run.path / LEADERBOARD).exists(),
        all_issues=command_line("data issues", "--csv", "issues.csv", *where, names=[name]),
        facts_of=facts,
        space=read_text(run.path / SPACE),
    )
    return Page(path=run.path / REPORT, html=html, verdict=sentence, advice=lines)


def _told(folders: Sequence[AnyPath]) -> list[str]:
    """Describe each ensemble in a few words; only name the damaged ones."""
    told = []
    for folder in folders:
        try:
            figures = read_figures(folder)
        except StorageError:
            raise
        except TunerError:
            told.append(f"{folder.name} (damaged)")
            continue
        accuracy = f"{figures.ensemble.test.accuracy:.2%}{' test' if figures.has_test else ''}"
        told.append(f"{folder.name} ({accuracy}, {plural(len(figures.members), 'member')})")
    return told


def verdict(ranked: Sequence[TrialRecord], ensemble: EnsembleFigures | None) -> str:
    """Summarize the result of a run in one sentence.

    Args:
        ranked: Its trials, the best first.
        ensemble: The figures of its newest ensemble, if it has one.
    """
    if ensemble:
        scores, metric = ensemble.ensemble.test, ensemble.metric
        text = f"Ensemble of {len(ensemble.members)}: "
        if metric != "accuracy":
            chosen_by = scores.value(metric)
            assert chosen_by is not None, "the figures of an ensemble have it"
            text += f"{name_of(metric)} {in_words(chosen_by, metric)}, accuracy "
        text += f"{in_words(scores.accuracy, 'accuracy')} {ensemble.tested_on}"
        if ensemble.gain is None:
            return text
        gain = ensemble.gain.over_best_single
        span = f"[{100 * gain.low:.1f}, {100 * gain.high:.1f}]".replace("-", "\N{MINUS SIGN}")
        single = ensemble.single_called + " trial" * ensemble.is_val_seen
        return f"{text}, {points(gain.gain)} over the {single} {span}"
    first = leader(ranked)
    if first is None or first.best is None:
        missing = "ended well" if any(trial.best for trial in ranked) else "has an accuracy"
        return f"No trial of {len(ranked)} {missing}"
    if first.is_val_seen:
        return f"{plural(len(ranked), 'trial')}, trained on the validation images, too"
    value = first.best.value(first.metric)
    assert value is not None, "it is what the best was found by"
    words = f"{in_words(value, first.metric)} validation"
    if first.metric != "accuracy":
        words += f" {name_of(first.metric)}"
    family = first.config.model.family
    return f"Best of {plural(len(ranked), 'trial')}: {words} ({family}, trial {first.number})"


def _summary(run: Run, ranked: Sequence[TrialRecord]) -> dict[str, Any]:
    first = leader(ranked)
    return {
        "trials": len(ranked),
        "states": Counter(trial.status.state for trial in ranked),
        "best": first.best.value(first.metric) if first and first.best else None,
        "margin": val_margin(run, first.best.val_accuracy) if first and first.best else "",
        "epochs": sum(len(trial.history) for trial in ranked),
        "active_seconds": run.record.active_seconds,
        "training_hours": sum(trial.seconds for trial in ranked) / 3600,
        "gpu_hours": sum(trial.gpu_hours for trial in ranked),
    }
