"""What a search goes by: which direction of a metric is better, and who is ahead by it."""

from tuner.config import Metric

LOWER_IS_BETTER: frozenset[Metric] = frozenset({"nll"})


def score(value: float, metric: Metric) -> float:
    """Return a value of ``metric`` as a figure of which more is better; its inverse is itself."""
    return -value if metric in LOWER_IS_BETTER else value


def order(metric: Metric, value: float, *, accuracy: float, nll: float) -> tuple[float, float]:
    """Return a key by which the best comes first in ascending order.

    Between equals by ``metric`` the lower NLL is ahead and, where that is the metric, the higher
    accuracy.

    Args:
        metric: What counts.
        value: Of the metric.
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
    """Return a value as people read it: a share in percent, or an NLL in nats."""
    return f"{value:.4f}" if metric == "nll" else f"{value:.2%}"
