"""The model card of an ensemble, ``model_card.md``, written for its users."""

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from tuner.ensemble.choosing import BY_CLASS
from tuner.ensemble.plan import Plan
from tuner.ensemble.request import SOUPS, EnsembleRequest
from tuner.ensemble.result import EnsembleResult
from tuner.ensemble.students import Contender, TeacherComparison
from tuner.metrics.figures import Interval, Intervals
from tuner.metrics.goal import name_of, spelt
from tuner.metrics.intervals import LEVEL, wilson
from tuner.metrics.predict import Scores
from tuner.run.ensemble_record import DataRecord, EnsembleRecord, single_called
from tuner.run.layout import TEST_READINGS
from tuner.run.resuming import storage_words
from tuner.run.run_record import RunRecord
from tuner.schema import plural
from tuner.storage.paths import read_text

MOST_CLASSES = 50
"""Maximum number of class names listed."""
HARDEST = 3
"""Maximum number of classes, and of confusions, named as limits."""
SCORES = ("", "accuracy", "balanced", "macro F1", "worst class", "top-3", "NLL", "Brier", "ECE")


def model_card(result: EnsembleResult, plan: Plan, record: EnsembleRecord) -> str:
    """Return the card as Markdown.

    Args:
        result: Figures of the ensemble.
        plan: The plan that it was made from.
        record: The content of ``ensemble.json``.
    """
    place = f"{result.run}/{result.name}"
    assert record.data is not None, "it is made together with the ensemble"
    prepared = record.preprocessing
    channels, height, width = prepared.image_shape
    kind = "grey" if channels == 1 else "colour"
    scaled = ""
    if prepared.white is not None:
        values = f"{prepared.black:g} to {prepared.white:g}"
        scaled = f" (values {values} of images deeper than 8 bits become 0 to 255)"
    sections = {
        "Data": _data(result, plan, record.data),
        "Members": _members(result, plan.splits.num_folds),
        "Figures": _figures(result, plan),
        **({"Teacher": _teacher(result.teacher)} if result.teacher else {}),
        "Calibration": _calibration(result, plan),
        "Limits": _limits(result),
        "Use": f"""\
    cifar-tune predict photo.jpg --ensemble FOLDER

```python
import tuner

ensemble = tuner.load_ensemble("FOLDER")
# (N, {len(result.classes)}), in the order of ensemble.classes
probs = ensemble.predict(["photo.jpg"])
```

FOLDER is the folder of this card, here or as a URI, and all that is needed. Files are checked by \
their hashes, and the networks by `probe.safetensors`, when it is loaded.""",
        "Made by": _recipe(plan),
    }
    head = f"""\
# {_text(place)}

{_kind(result)}. It takes an image of any size, prepared as {height} x {width} {kind} \
pixels{scaled}, and returns the probabilities of {len(result.classes)} classes. \
Made by {record.made_by}, {record.made[:10]}.
"""
    return head + "".join(f"\n## {title}\n\n{text}\n" for title, text in sections.items())


def _kind(result: EnsembleResult) -> str:
    count = len(result.members)
    if result.method in SOUPS:
        return f"The averaged weights of {count} image classifiers ({result.method})"
    if count == 1:
        return f"One image classifier ({result.method})"
    return f"{count} image classifiers that vote ({result.method})"


def _data(result: EnsembleResult, plan: Plan, data: DataRecord) -> str:
    names = ", ".join(map(_text, result.classes[:MOST_CLASSES]))
    more = len(result.classes) - MOST_CLASSES
    rows = [
        # For a folder on somebody's disk, the name says enough.
        ("source", _text(Path(data.source).name)),
        ("training images", data.train_images),
        (_validated(plan), data.val_images),
        (f"{result.tested_on} images, for the figures below", data.test_images),
        ("fingerprint, training and validation", f"`{data.fingerprint}`"),
        ("fingerprint, test", f"`{data.test_fingerprint}`" if result.has_test else "none"),
        ("classes", names + (f" and {more} more" if more > 0 else "")),
    ]
    seen = (
        "\n\nThe networks were trained on the validation images, too: figures on them say nothing."
        if result.is_val_seen
        else ""
    )
    return _table(("", ""), rows) + seen


def _validated(plan: Plan) -> str:
    if plan.splits.is_val_seen:
        return "validation images, which are among the training images"
    if not plan.splits.num_folds:
        return "validation images, for choosing"
    return (
        f"the same, validated in {plan.splits.num_folds} folds, for choosing: each by the networks "
        "that were not trained on it"
    )


def _members(result: EnsembleResult, num_folds: int) -> str:
    rows = [
        (
            f"trial {member.trial}",
            _text(member.family) + (f", {num_folds} networks" if num_folds else ""),
            f"{member.weight:.3f}",
            f"{member.temperature:.3f}",
            spelt(member.val.value(result.metric), result.metric),
            spelt(member.test.value(result.metric), result.metric),
        )
        for member in result.members
    ]
    table = _table(("", "model", "weight", "temperature", "validation", result.tested_on), rows)
    if result.is_val_seen:
        by = ". Nothing was chosen by it: the members are the first trials of the run"
    elif result.method in ("greedy", "weighted"):
        nll = "class-balanced NLL" if result.metric in BY_CLASS else "NLL"
        by = f", which candidates were ranked by; members were chosen by the {nll} of their vote"
    else:
        by = ", which they were chosen by"
    told = f"By {name_of(result.metric)}{by}.\n\n{table}"
    if not num_folds:
        return told
    return (
        f"{told}\n\nA member is the {num_folds} networks of a trial, one for each fold, whose "
        "probabilities are averaged. Its validation figures are of single networks: each image "
        "is seen by the one that was not trained on it."
    )


def _figures(result: EnsembleResult, plan: Plan) -> str:
    low, high = wilson(result.ensemble.test.accuracy, result.test_images)
    single, gain = result.best_single_figures.test, result.gain
    called = single_called(is_val_seen=result.is_val_seen)

    def row(name: str, scores: Scores, interval: str) -> tuple[str, ...]:
        figures = (scores.nll, scores.brier, scores.ece)
        return (
            name,
            f"{scores.accuracy:.2%}{interval}",
            f"{scores.balanced_accuracy:.2%}",
            f"{scores.macro_f1:.2%}",
            f"{scores.worst_class:.2%}",
            f"{scores.top3:.2%}",
            *(f"{figure:.4f}" for figure in figures),
        )

    rows = [
        row("ensemble", result.ensemble.test, f" ({low:.2%} to {high:.2%})"),
        row(f"{called}, trial {result.best_single}", single, ""),
        row("mean member", result.mean_member["test"], ""),
    ]
    return f"""\
On the {result.test_images} {result.tested_on} images; in brackets the {LEVEL:.0%} interval.

{_table(SCORES, rows)}

Of the ensemble, with {LEVEL:.0%} intervals by the bootstrap: {_intervals(result.intervals)}.

Gain in accuracy over the {called} network {_interval(gain.over_best_single)} points (McNemar \
p = {gain.mcnemar_p:.2g}), over the mean member {_interval(gain.over_mean_member)}. At least one \
member is right on {result.oracle:.2%}. {_readings(result, plan)}"""


def _intervals(found: Intervals) -> str:
    shares = {
        "balanced accuracy": found.balanced_accuracy,
        "macro F1": found.macro_f1,
        "hardest class": found.worst_class,
    }
    numbers = {"NLL": found.nll, "ECE": found.ece}
    return ", ".join(
        [
            *(f"{name} {e.value:.2%} ({e.low:.2%} to {e.high:.2%})" for name, e in shares.items()),
            *(f"{name} {e.value:.4f} ({e.low:.4f} to {e.high:.4f})" for name, e in numbers.items()),
        ]
    )


def _readings(result: EnsembleResult, plan: Plan) -> str:
    if not result.has_test and result.is_val_seen:
        return "There are no test images, and these were trained on: the figures say nothing."
    if not result.has_test:
        auto = " The method (auto) was chosen on all of them." * (plan.request.method == "auto")
        return (
            "There are no test images: held out are validation images, each voted on by a choice "
            "of members and weights made without it; the networks by themselves stand as they were "
            f"chosen on them, which flatters them.{auto}"
        )
    readings = len(read_text(plan.run.path / TEST_READINGS).splitlines())
    times = "once" if readings == 1 else f"{readings} times"
    return f"This run has read its test images {times}."


def _teacher(comparison: TeacherComparison) -> str:
    has_test = comparison.test_gain is not None
    images = "test" if has_test else "validation"

    def row(name: str, contender: Contender) -> tuple[str, ...]:
        scores = contender.test or contender.val
        return (
            f"{name}: {_text(contender.name)}",
            f"{scores.accuracy:.2%}",
            f"{scores.nll:.4f}",
            f"{contender.num_parameters:,}",
            f"{contender.latency.one_ms:.2f}" if contender.latency else "-",
            f"{contender.latency.batch_ms:.1f}" if contender.latency else "-",
        )

    rows = [row("teacher", comparison.teacher), row("this one", comparison.student)]
    head = ("", "accuracy", "NLL", "parameters", "ms, 1 image", "ms, 256 images")
    gain = comparison.test_gain or comparison.val_gain
    return f"""\
The members learned from the labels and an ensemble's probabilities (Hinton et al. 2015). \
On the {images} images, timed on {comparison.device}:

{_table(head, rows)}

Accuracy minus the teacher's: {_interval(gain)} points."""


def _calibration(result: EnsembleResult, plan: Plan) -> str:
    test = result.ensemble.test
    is_fitted = result.temperature != 1 or any(m.temperature != 1 for m in result.members)
    fitted = (
        f"Temperatures were fitted on validation images; that of the vote is "
        f"{result.temperature:.3f}."
        if is_fitted
        else "No temperature was fitted."
    )
    if is_fitted and plan.splits.num_folds:
        fitted += (
            " They were fitted to single networks, and the average of a member's networks is less "
            "confident than each of them."
        )
    half = min(result.coverage, key=lambda row: abs(row.coverage - 0.5))
    trials = [plan.pool.trials[i] for i in plan.choice.members]
    adjusted = [
        f"trial {trial.number}"
        for trial in trials
        if trial.config.class_weights != "none" or trial.config.logit_adjustment
    ]
    uneven = (
        f" Trained with class weights or logit adjustment: {', '.join(adjusted)}. They give rare "
        "classes higher probabilities than their frequency."
        if adjusted
        else ""
    )
    return (
        f"{fitted} Expected calibration error on the {result.tested_on} images {test.ece:.4f}, in "
        f"bins of equal mass {test.ece_equal_mass:.4f}; see `reliability.png`. The surest "
        f"{half.coverage:.0%} of the images are classified with an accuracy of {half.accuracy:.2%}."
        f"{uneven}"
    )


def _limits(result: EnsembleResult) -> str:
    seen = [entry for entry in result.per_class if entry.accuracy is not None]
    hardest = sorted(seen, key=lambda entry: entry.accuracy or 0)[:HARDEST]
    mistaken = result.confusion.clone().fill_diagonal_(0)
    counts, cells = mistaken.flatten().topk(min(HARDEST, mistaken.numel()))
    pairs = [
        f"{_text(result.classes[cell // len(mistaken)])} taken for "
        f"{_text(result.classes[cell % len(mistaken)])} ({count})"
        for count, cell in zip(counts.tolist(), cells.tolist(), strict=True)
        if count
    ]
    lines = [
        "An image of anything else is given one of these classes, too, and may be given it with "
        "confidence.",
        "The figures hold for images like those of the data set. `cifar-tune evaluate DATA "
        "--corrupt` shows how they fall with noise, blur and compression.",
        "Hardest classes: "
        + ", ".join(f"{_text(entry.label)} {entry.accuracy:.2%}" for entry in hardest)
        + ".",
        *([f"Most frequent mistakes: {', '.join(pairs)}."] if pairs else []),
    ]
    if note := result.duplicates:
        lines.append(
            f"{note.images} test images have near-duplicates in the training data; without them "
            f"the accuracy is {note.accuracy_of_others:.2%}."
        )
    return "\n".join(f"- {line}" for line in lines)


def _recipe(plan: Plan) -> str:
    record = plan.run.record
    versions = ", ".join(_text(f"{name} {version}") for name, version in record.versions.items())
    commit = f" at commit {_text(record.git_commit)}" if record.git_commit else ""
    return f"""\
    {" ".join(record.command.split())}
    {_command(plan.run.path.name, plan.request, storage_words(plan.run.path.parent))}

The run started on {_text(record.started[:10])}{commit}{f" with {versions}" if versions else ""}. \
With all resumes, it was asked for {_asked(record)}. \
`ensemble.json` has the SHA-256 of every network."""


def _asked(record: RunRecord) -> str:
    """Return the trials that a run was asked for; the command that began it may say fewer."""
    if (plan := record.refit) is None:
        return plural(record.search.trials, "trial")
    trials = ", ".join(map(str, plan.trials))
    return f"trials {trials} of {_text(plan.run)}, each with {plural(plan.seeds, 'seed')}"


def _command(run: str, request: EnsembleRequest, storage: Sequence[str]) -> str:
    """Return the command that combines the same members again."""
    which = ["--front"] if request.front else ["--top", str(request.top)]
    words = ["cifar-tune", "ensemble", "--run", run, *which]
    for field in ("method", "metric", "name"):
        value = getattr(request, field)
        if value is not None and value != getattr(EnsembleRequest(), field):
            words += [f"--{field}", str(value)]
    return shlex.join([*words, *request.conditions, *storage])


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _text(text: str) -> str:
    """Escape a user's text, so that it is not markup and stays on one line."""
    plain = " ".join(text.split())
    for mark in "\\`*_[]<>|#":
        plain = plain.replace(mark, f"\\{mark}")
    return plain


def _interval(interval: Interval) -> str:
    low, high = 100 * interval.low, 100 * interval.high
    return f"{100 * interval.gain:+.2f} ({low:+.2f} to {high:+.2f})"
