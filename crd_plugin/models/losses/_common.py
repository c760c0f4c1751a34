"""Checks that the losses share."""

from typing import Optional, Sequence, Tuple, Union

from crd_plugin.models._numbers import count, finite, positive

__all__ = ['Widths', 'check_given', 'count', 'finite', 'not_inferred', 'positive', 'widths']

Widths = Union[int, Sequence[int]]


def widths(name: str, value: Optional[Widths]) -> Optional[Tuple[int, ...]]:
    """Numbers of channels, one a layer.

    Args:
        name (str): Argument, for the message.
        value (int | Sequence[int], optional): One or several.

    Returns:
        tuple[int, ...]: One a layer; None for None.

    Raises:
        ValueError: If one is not a positive integer, or there are none.
    """
    if value is None:
        return None
    several = tuple(value) if isinstance(value, Sequence) else (value,)
    if not several or not all(
        isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in several
    ):
        raise ValueError(
            f'{name} is {value!r}, expected a positive number of '
            'channels, or a list with one for each layer.'
        )
    return several


def check_given(name: str, given: Optional[Tuple[int, ...]], found: Tuple[int, ...]) -> None:
    """What the config says against what the networks give.

    Args:
        name (str): Argument, for the message.
        given (tuple[int, ...], optional): Of the config; None: left out.
        found (tuple[int, ...]): Of the features.

    Raises:
        ValueError: If they differ.
    """
    if given is not None and given != found:
        raise ValueError(
            f'{name} is {_short(given)}, but the recorded features have '
            f'{_short(found)}; set {name}={_short(found)}, or leave it out '
            'to infer it.'
        )


def not_inferred(loss: str, arguments: str) -> ValueError:
    """The error for a loss whose layers were never made.

    Args:
        loss (str): Class of the loss.
        arguments (str): What is missing.

    Returns:
        ValueError: To be raised.
    """
    return ValueError(
        f'{arguments} of {loss} are not known: give them in the config, or '
        'use crd_plugin.FrozenTeacherDistill, which infers them when the '
        'model is built.'
    )


def _short(numbers: Tuple[int, ...]) -> str:
    """One number without brackets."""
    return str(numbers[0]) if len(numbers) == 1 else str(numbers)
