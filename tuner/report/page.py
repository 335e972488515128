"""Render one self-contained HTML page: templates, styles, scripts and the plotting library.

Apache ECharts 6.1 draws the plots (Apache License 2.0; its licence and notice are next to it in
``assets``): one file of 1.1 MB with parallel coordinates that have log axes and brushes, for which
plotly.js needs 4.8 MB, and which Bokeh and Vega-Lite lack.
"""

from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from tuner.config import Metric
from tuner.metrics.goal import name_of
from tuner.run.run import clock

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)
"""Content policy: a browser only runs what is in the page itself."""
LIVE_POLICY = f"{POLICY}; connect-src 'self'"
"""The same for a page that polls its own server for a newer version."""


def render(
    template: str,
    scripts: tuple[str, ...],
    facts: dict[str, Any],
    *,
    is_live: bool = False,
    **context: Any,
) -> str:
    """Fill a template.

    Args:
        template: Name of the template in ``assets``.
        scripts: Names of the page's scripts in ``assets``, in order.
        facts: Data that the scripts draw, as plain values without NaN.
        is_live: Whether the page is served and refreshes itself.
        context: Variables of the template.
    """
    page = _environment().get_template(template)
    html = page.render(
        style=Markup(_asset("page.css")),
        scripts=[Markup(_asset(name)) for name in ("echarts.min.js", "charts.js", *scripts)],
        facts=htmlsafe_json_dumps(facts, allow_nan=False, separators=(",", ":")),
        policy=Markup(LIVE_POLICY if is_live else POLICY),
        **context,
    )
    # Folder names may contain bytes that are not UTF-8; a page shows them as escapes.
    return html.encode(errors="backslashreplace").decode()


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("tuner.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": lambda share: f"{100 * share:.1f}\N{NO-BREAK SPACE}%",
        "points": points,
        "figure": figure,
        "clock": clock,
        "thousands": lambda number: f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}"),
        "amount": amount,
        "last_name": lambda path: path.rstrip("/").rpartition("/")[2],
        "digits": lambda number: f"{number:.0f}" if number >= 100 else f"{number:.3g}",
        "words": lambda text: text.replace("_", " "),
    }
    return environment


def amount(number: float) -> str:
    """Format a number of any size with at least three digits."""
    if number < 1000:
        return f"{number:.3g}"
    return f"{number:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def points(share: float | None) -> str:
    """Format a difference of two shares in percentage points."""
    return "\N{EN DASH}" if share is None else f"{100 * share:+.1f}".replace("-", "\N{MINUS SIGN}")


def figure(value: float | None, metric: Metric) -> str:
    """Format a metric for a table cell: a share in percent, without the sign, or an NLL."""
    if value is None:
        return "\N{EN DASH}"
    return f"{value:.4f}" if metric == "nll" else f"{100 * value:.2f}"


def in_words(value: float, metric: Metric, digits: int = 1) -> str:
    """Format a metric's value for a sentence, a share with ``digits`` decimals."""
    return f"{value:.4f}" if metric == "nll" else f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def metric_facts(metric: Metric) -> dict[str, Any]:
    """Return what a script needs to know about a metric."""
    return {"key": metric, "name": name_of(metric), "is_share": metric != "nll"}


def _asset(name: str) -> str:
    return (files("tuner.report") / "assets" / name).read_text(encoding="utf-8")
