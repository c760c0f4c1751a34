"""Read files that anybody may have written: bounded in size, checked in type."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .arguments import UsageError

# Far more than any of them has: bytes, and brackets in a text of JSON.
_MOST, _MOST_BRACKETS = 1 << 28, 500


def read_text(path: str | Path) -> str:
    """Read a file; raise a UsageError if it is not a text, or too large."""
    path = Path(path)
    if not path.is_file():
        raise UsageError(f'{path} is not a file.')
    size = path.stat().st_size
    if size > _MOST:
        raise UsageError(f'{path} has {size} bytes, expected at most {_MOST}: it is another file.')
    try:
        return path.read_text(encoding='utf-8')
    except UnicodeDecodeError as error:
        raise UsageError(f'{path} is not a text: {error.reason} at byte {error.start}.') from error


def parse_json(text: str, place: str, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """Parse an object of JSON whose values, finite if numbers, are of given types by key."""
    try:
        # Deep nesting crashes Python itself with the recursion limit that some packages set.
        if text.count('[') + text.count('{') > _MOST_BRACKETS:
            raise ValueError(f'it has more than {_MOST_BRACKETS} brackets')
        content = json.loads(text)
    except ValueError as error:
        raise UsageError(f'{place} is not JSON: {error}') from error
    if not isinstance(content, dict):
        raise UsageError(f'{place} is {content!r:.40}, expected names and values.')
    for key in kinds.keys() & content.keys():
        value, kind = content[key], kinds[key]
        fits = isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
        if isinstance(value, float):
            fits = fits and math.isfinite(value)
        elif isinstance(value, list):
            fits = fits and all(isinstance(item, str) for item in value)
        if not fits:
            expected = 'list of texts' if kind is list else getattr(kind, '__name__', kind)
            raise UsageError(f'{place}: {key} is {value!r:.40}, expected {expected}.')
    return content
