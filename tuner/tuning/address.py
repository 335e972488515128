"""Finds the dashboard to which jobs are submitted."""

import os


def find_dashboard(address: str | None) -> str | None:
    """Return the address of the dashboard where jobs are to be submitted; ``None`` without one.

    Args:
        address: As for ``search``; without one, ``RAY_ADDRESS`` counts.
    """
    place = address or os.environ.get("RAY_ADDRESS") or ""
    return place if place.startswith(("http://", "https://")) else None
