"""Read files that anybody may have written: bounded in size, checked in type."""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Bytes, far more than any of them has.
_MOST = 1 << 28
_NAMES = {type(None): 'null', list: 'list of texts'}


def read_text(path: str | Path) -> str:
    """Read a file; raise a ValueError if it is not a text, or too large."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f'{path} is not a file.')
    size = path.stat().st_size
    if size > _MOST:
        raise ValueError(f'{path} has {size} bytes, expected at most {_MOST}: it is another file.')
    try:
        return path.read_text(encoding='utf-8')
    except UnicodeDecodeError as error:
        raise ValueError(f'{path} is not a text: {error.reason} at byte {error.start}.') from error


def parse_json(text: str, place: str, kinds: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    """Parse an object of JSON whose values, finite if numbers, are of given types by key."""
    limit = sys.getrecursionlimit()
    # With the limit that some packages set, Python itself crashes.
    sys.setrecursionlimit(min(limit, 1000))
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{place} is not JSON: {error}') from error
    finally:
        sys.setrecursionlimit(limit)
    if not isinstance(content, dict):
        raise ValueError(f'{place} is {_shorten(content)}, expected names and values.')
    for key in kinds.keys() & content.keys():
        value, allowed = content[key], kinds[key]
        fits = isinstance(value, allowed) and (bool in allowed or not isinstance(value, bool))
        if isinstance(value, float):
            fits = fits and math.isfinite(value)
        elif isinstance(value, list):
            fits = fits and all(isinstance(item, str) for item in value)
        if not fits:
            names = ' or '.join(_NAMES.get(kind, kind.__name__) for kind in allowed)
            raise ValueError(f'{place}: {key} is {_shorten(value)}, expected {names}.')
    return content


def _shorten(value: Any) -> str:
    """Write a value in a few characters."""
    text = repr(value) if isinstance(value, (str, int, float, type(None))) else type(value).__name__
    return text if len(text) <= 40 else f'{text[:36]} ...'
