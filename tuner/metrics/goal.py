"""The metric that guides a search: which direction is better, and who is ahead by it."""

from tuner.config import Metric

LOWER_IS_BETTER: frozenset[Metric] = frozenset({"nll"})


def score(value: float, metric: Metric) -> float:
    """Return a metric's value, negated if lower is better; the function is its own inverse."""
    return -value if metric in LOWER_IS_BETTER else value


def order(metric: Metric, value: float, *, accuracy: float, nll: float) -> tuple[float, float]:
    """Return a key that sorts the best first in ascending order.

    Ties in ``metric`` go to the lower NLL or, if NLL is the metric, to the higher accuracy.

    Args:
        metric: The metric that counts.
        value: Value of the metric.
        accuracy: Share in [0, 1].
        nll: Mean negative log-likelihood.
    """
    return -score(value, metric), -accuracy if metric == "nll" else nll


def name_of(metric: Metric) -> str:
    """Return a metric's name in words, such as ``balanced accuracy``."""
    names: dict[Metric, str] = {
        "macro_f1": "macro F1",
        "nll": "NLL",
        "worst_class": "accuracy of the worst class",
    }
    return names.get(metric, metric.replace("_", " "))


def spelt(value: float, metric: Metric) -> str:
    """Format a value for people: a share in percent, or an NLL in nats."""
    return f"{value:.4f}" if metric == "nll" else f"{value:.2%}"
