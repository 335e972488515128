"""The pages of the web application: one to drop images on, and one that documents it.

They are plain HTML with their own style sheet and script, and load nothing from other servers.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from tuner.deploy.predictor import Ensemble
from tuner.deploy.uploads import FIELD, Limits
from tuner.run.ensemble_record import images_called

PAGE_HEADERS = {
    # Image previews are blobs.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_KINDS = {"page.css": "text/css", "drop.js": "text/javascript", "icon.svg": "image/svg+xml"}
ASSETS = {
    name: (kind, (files("tuner.deploy") / "assets" / name).read_bytes())
    for name, kind in _KINDS.items()
}
"""Content type and content of each file of the pages, by name."""


def render_drop_page(ensemble: Ensemble, reject: float | None, limits: Limits) -> str:
    """Return the page to drop images on."""
    figures = ensemble.metrics["ensemble"]["test"]
    return _rendered(
        "drop.html",
        name=ensemble.path.name,
        classes=ensemble.classes,
        num_members=len(ensemble.members),
        accuracy=figures["accuracy"],
        images=images_called(
            has_test=ensemble.metrics.get("has_test", True),
            is_val_seen=ensemble.metrics.get("is_val_seen", False),
        ),
        reject=reject,
        megabytes=limits.body_bytes / 2**20,
        megapixels=limits.pixels / 1e6,
    )


def render_docs(openapi: Mapping[str, Any], base: str) -> str:
    """Return the page that shows an OpenAPI document.

    Args:
        openapi: The document.
        base: URL of the server, without a trailing slash.
    """
    schemas = openapi["components"]["schemas"]
    return _rendered(
        "docs.html",
        info=openapi["info"],
        base=base,
        field=FIELD,
        operations=[
            (method, path, operation)
            for path, methods in openapi["paths"].items()
            for method, operation in methods.items()
        ],
        schemas={name: list(_fields(schema)) for name, schema in schemas.items()},
        about={name: schema.get("description", "") for name, schema in schemas.items()},
        schema_of=_schema_of,
    )


def _fields(schema: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield the name, type and description of each property."""
    for name, entry in schema["properties"].items():
        yield name, _type_of(entry), entry.get("description", "")


def _type_of(schema: Mapping[str, Any]) -> str:
    """Describe the type of a value in words."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(map(_type_of, schema["anyOf"]))
    if schema.get("type") == "array":
        return f"list of {_type_of(schema['items'])}"
    if isinstance(values := schema.get("additionalProperties"), Mapping):
        return f"object of {_type_of(values)}"
    kind = str(schema.get("type", "any"))
    if "minimum" in schema and "maximum" in schema:
        return f"{kind} from {schema['minimum']:g} to {schema['maximum']:g}"
    return "file" if schema.get("format") == "binary" else kind


def _schema_of(content: Mapping[str, Any]) -> str:
    """Return the name of a response's schema."""
    (entry,) = content.values()
    return _type_of(entry["schema"])


def _rendered(template: str, **context: Any) -> str:
    return _environment().get_template(template).render(**context)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("tuner.deploy", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda share: f"{100 * share:.1f}\N{NO-BREAK SPACE}%"
    environment.filters["type"] = _type_of
    return environment
