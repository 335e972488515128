"""Names of classes and files: which are allowed, and how they are shown."""

import unicodedata
from collections.abc import Iterable

from tuner.errors import DataError

_UNSEEN = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Unicode categories of characters that a terminal or a UTF-8 file cannot hold unescaped."""


def shown(name: str) -> str:
    """Return a name with control characters and bytes that are not UTF-8 escaped."""
    if name.isprintable():
        return name
    return "".join(
        f"\\x{ord(c) & 0xFF:02x}" if unicodedata.category(c) in _UNSEEN else c for c in name
    )


def normal_form(name: str) -> str:
    """Return a name in Unicode's normal form C, in which an accent has one encoding."""
    return unicodedata.normalize("NFC", name)


def check_classes(names: Iterable[str], where: str) -> None:
    """Check that class names can be written anywhere and are easy to distinguish.

    Args:
        names: Names of all classes.
        where: The data set, for the message.

    Raises:
        DataError: If one is not UTF-8, is empty or holds control characters, or if two differ in
            case or in Unicode's normal form alone.
    """
    seen: dict[str, str] = {}
    for name in names:
        if any(unicodedata.category(c) == "Cs" for c in name):
            raise DataError(
                f"{where}: the class name '{shown(name)}' is not UTF-8. Rename the folder, or all "
                "of them: convmv -f latin1 -t utf8 --notest -r FOLDER"
            )
        if shown(name) != name or not name.strip():
            raise DataError(
                f"{where}: the class name '{shown(name)}' is empty or holds control characters. "
                "Rename it."
            )
        key = normal_form(name).casefold().strip()
        if other := seen.get(key):
            is_same = normal_form(name) == normal_form(other)
            what = "Unicode's normal form" if is_same else "case or spaces"
            raise DataError(
                f"{where}: the class names '{other}' and '{name}' differ in {what} alone. Merge "
                "them, or rename one."
            )
        seen[key] = name


def cut(name: str, most: int) -> str:
    """Return a name, cut to ``most`` characters with an ellipsis if it is longer."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def listed(lines: Iterable[str], most: int = 20) -> str:
    """Return lines, indented; if there are many, the first ones and the number of the others."""
    every = [f"\n  {line}" for line in lines]
    rest = f"\n  and {len(every) - most:,} more" if len(every) > most else ""
    return "".join(every[:most]) + rest
