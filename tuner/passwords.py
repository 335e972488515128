"""Passwords in URLs, which are neither shown nor stored."""

import re

HIDDEN = "***"
_USERS = re.compile(r"(://[^:/@\s]*:)(?:[^/?#\s]+|[^@\s]+)@")
_QUERIES = re.compile(r"([?&][\w.-]*(?:pass|pwd|secret|token)[\w.-]*=)[^&\s'\"]+", re.IGNORECASE)


def hide_passwords(text: str) -> str:
    """Return the text with ``***`` for the password of each URL in it."""
    if "://" not in text:
        return text
    return _QUERIES.sub(rf"\1{HIDDEN}", _USERS.sub(rf"\1{HIDDEN}@", text))
