"""A student next to its teacher on the terminal."""

from typing import TYPE_CHECKING

from tuner.cli.output import interval_text, make_console, make_table, print_stripped, spelt_scores
from tuner.config import Metric
from tuner.metrics.goal import name_of
from tuner.monitor.terminal import tell

if TYPE_CHECKING:
    from tuner.ensemble.students import TeacherComparison
    from tuner.report.ensembles import TeacherComparison as ReadComparison


def print_student(comparison: "TeacherComparison | ReadComparison", metric: Metric) -> None:
    """Print the scores of student and teacher, by the metric of the search, and their costs."""
    console = make_console()
    both = (("Teacher", comparison.teacher), ("Student", comparison.student))
    console.print()
    for what, contender in both:
        tell(console, f"{what}: {contender.name}")
    gains = {"validation": comparison.val_gain}
    if comparison.test_gain is not None:
        gains["test"] = comparison.test_gain
    images = "test" if comparison.test_gain else "validation"
    headings = ("", "val", "test", "NLL", "parameters", "ms, 1 image", "ms, 256")
    table = make_table("", headings, 1)
    for what, contender in both:
        table.add_row(
            what.lower(),
            spelt_scores(contender.val, metric),
            spelt_scores(contender.test, metric),
            f"{(contender.test or contender.val).nll:.4f}",
            f"{contender.num_parameters:,}",
            f"{contender.latency.one_ms:.2f}" if contender.latency else "-",
            f"{contender.latency.batch_ms:.1f}" if contender.latency else "-",
        )
    console.print()
    print_stripped(console, table)
    if metric != "accuracy":
        console.print(f"\nval, test: {name_of(metric)}.")
    console.print(
        f"\nThe student's accuracy less the teacher's, {comparison.level:.0%} interval, in points:"
    )
    for name, gain in gains.items():
        console.print(f"  {name:11}{interval_text(gain)}", markup=False)
    console.print(
        f"\nBoth were chosen on the validation images. NLL: on the {images} images.\n"
        f"ms: from images in memory to probabilities, on {comparison.device}.",
        markup=False,
    )
