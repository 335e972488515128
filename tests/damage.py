"""What may befall a file of a run: values replaced, keys gone, cut short, other bytes."""

import copy
import json
import math
from collections.abc import Iterator
from random import Random
from typing import Any

DEEP = "[" * 200_000 + "]" * 200_000
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 3, -0.5, 0.5, 1e308, 10**30, 2**62, 10**9, math.nan, math.inf),
    *("", "x", "../x", "\ud800", "\x00", "\x1b[31m", "x" * 5000, "5"),
    *([], {}, [None], ["x"], {"x": 1}, {"": None}, [[1, 2], [3]], {"cnn": {}}, {"x": {"y": [1]}}),
)
ODD_CELLS = ("", "x", "nan", "inf", "-1", "0", "1", "2", "7.5", "1e400", "9" * 5000, '"', "\0")


def damaged(name: str, content: bytes, random: Random) -> bytes:
    """Return the content of the file ``name``, damaged as its kind of file may be."""
    if random.random() < 0.25 or name.endswith(".yaml"):
        return _other_bytes(content, random)
    if name.endswith(".json"):
        return _other_json(content.decode(), random).encode()
    return _other_csv(content.decode(), random).encode()


def _other_json(text: str, random: Random) -> str:
    plain = json.loads(text)
    for _ in range(random.choice((1, 1, 2))):
        holder, key = random.choice([*_places(plain)] or [([0], 0)])
        match random.choice(("replace", "replace", "replace", "remove", "add")):
            case "replace":
                holder[key] = copy.deepcopy(random.choice(ODD_VALUES))
            case "remove":
                del holder[key]
            case "add" if isinstance(holder, dict):
                holder["colour"] = 1
            case "add":
                holder.append(copy.deepcopy(holder[key]))
    head, colon, tail = json.dumps(plain, indent=2).partition(": ")
    match random.choice(("", "", "", "", "deep", "huge", "twice")):
        case "deep":
            return f"{head}{colon}{DEEP},{tail}"
        case "huge":
            return f"{head}{colon}1e400, {head[1:]}2{colon}{tail}"
        case "twice":
            return f"{head}{colon}1, {head[1:]}{colon}{tail}"
    return f"{head}{colon}{tail}"


def _places(plain: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each place of plain values: what holds it, and its key there."""
    if isinstance(plain, dict | list):
        for key in list(plain) if isinstance(plain, dict) else range(len(plain)):
            yield plain, key
            yield from _places(plain[key])


def _other_csv(text: str, random: Random) -> str:
    rows = [line.split(",") for line in text.splitlines()]
    row = random.choice(rows)
    match random.choice(("cell", "cell", "cell", "cell", "drop", "repeat", "cut", "more")):
        case "cell":
            row[random.randrange(len(row))] = random.choice(ODD_CELLS)
        case "drop":
            rows.remove(row)
        case "repeat":
            rows.append(row)
        case "cut":
            row.pop()
        case "more":
            row.append("1")
    return "\n".join(map(",".join, rows)) + "\n"


def _other_bytes(content: bytes, random: Random) -> bytes:
    place = random.randrange(len(content) + 1)
    match random.choice(("cut", "insert", "empty", "deep", "other")):
        case "cut":
            return content[:place]
        case "insert":
            return content[:place] + random.randbytes(random.randrange(1, 5)) + content[place:]
        case "empty":
            return b""
        case "deep":
            return DEEP.encode()
        case _:
            return random.randbytes(20)
