"""Read files that anybody may have written: bounded in size, checked in type."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Bytes, far more than any of them has.
_MOST = 1 << 28
_NAMES = {type(None): 'null', list: 'list of texts'}


def read_text(path: str | Path) -> str:
    """Read a text file.

    Args:
        path (str | Path): The file.

    Returns:
        str: Its text.

    Raises:
        ValueError: If it is not a file of text, or too large.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f'{path} is not a file.')
    if path.stat().st_size > _MOST:
        raise ValueError(
            f'{path} has {path.stat().st_size} bytes, expected at most {_MOST}: it is another file.'
        )
    try:
        return path.read_text(encoding='utf-8')
    except UnicodeDecodeError as error:
        raise ValueError(f'{path} is not a text: {error.reason} at byte {error.start}.') from error


def parse_json(text: str, place: str, kinds: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    """Parse an object of JSON.

    Args:
        text (str): The text.
        place (str): File and line, for messages.
        kinds (dict): Types by key, see :func:`check_kinds`.

    Returns:
        dict: The object.

    Raises:
        ValueError: If it is not JSON, not an object, or a value is of another type.
    """
    try:
        with _bounded_nesting():
            content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{place} is not JSON: {error}') from error
    return check_kinds(content, place, kinds)


def check_kinds(
    content: Any, place: str, kinds: Mapping[str, tuple[type, ...]] = {}
) -> dict[str, Any]:
    """Check that a value is a dict whose values are of some types.

    Args:
        content (Any): The value.
        place (str): Where it stands, for messages.
        kinds (dict): Allowed types by key; keys may be missing. Numbers must be
            finite, items of lists texts.

    Returns:
        dict: The value.

    Raises:
        ValueError: If anything is of another type.
    """
    if not isinstance(content, dict):
        raise ValueError(f'{place} is {_shorten(content)}, expected names and values.')
    for key, allowed in kinds.items():
        value = content.get(key)
        fits = isinstance(value, allowed) and (bool in allowed or not isinstance(value, bool))
        if isinstance(value, float) and not math.isfinite(value):
            fits = False
        if isinstance(value, list) and not all(isinstance(item, str) for item in value):
            fits = False
        if key in content and not fits:
            names = ' or '.join(_NAMES.get(kind, kind.__name__) for kind in allowed)
            raise ValueError(f'{place}: {key} is {_shorten(value)}, expected {names}.')
    return content


@contextmanager
def _bounded_nesting() -> Iterator[None]:
    """Set the usual limit of recursion: with that of some packages, Python itself crashes."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(min(limit, 1000))
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


def _shorten(value: Any) -> str:
    """Write a value in a few characters."""
    text = repr(value) if isinstance(value, (str, int, float, type(None))) else type(value).__name__
    return text if len(text) <= 40 else f'{text[:36]} ...'
