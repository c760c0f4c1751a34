"""Checks that the losses share."""
import math
from numbers import Integral, Real
from typing import Any, Optional, Sequence, Tuple, Union

Widths = Union[int, Sequence[int]]


def finite(name: str, value: float) -> float:
    """A number that is finite.

    Args:
        name (str): Argument, for the message.
        value (float): Its value.

    Returns:
        float: The same.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is NaN or infinite.
    """
    _check_number(name, value)
    if not math.isfinite(value):
        raise ValueError(f'{name} is {value}, expected a finite number.')
    return value


def positive(name: str, value: float, published: float) -> float:
    """A number that is finite and above zero.

    Args:
        name (str): Argument, for the message.
        value (float): Its value.
        published (float): What the paper's runs use, for the message.

    Returns:
        float: The same.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is not positive and finite.
    """
    _check_number(name, value)
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f'{name} is {value}, expected a positive number '
                         f'(published: {published}).')
    return value


def count(name: str, value: int, hint: str = '') -> int:
    """A whole number above zero.

    Args:
        name (str): Argument, for the message.
        value (int): Its value.
        hint (str): Behind what is expected, such as ``' (published: 128)'``.
            Defaults to nothing.

    Returns:
        int: The same.

    Raises:
        ValueError: If it is no integer, or below one.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise ValueError(f'{name} is {value!r}, expected an integer{hint}.')
    if value < 1:
        raise ValueError(f'{name} is {value}, expected at least 1{hint}.')
    return value


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
    several = tuple(value) if isinstance(value, Sequence) else (value, )
    if not several or not all(
            isinstance(n, int) and not isinstance(n, bool) and n > 0
            for n in several):
        raise ValueError(f'{name} is {value!r}, expected a positive number of '
                         'channels, or a list with one for each layer.')
    return several


def check_given(name: str, given: Optional[Tuple[int, ...]],
                found: Tuple[int, ...]) -> None:
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
            'to infer it.')


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
        'model is built.')


def _check_number(name: str, value: Any) -> None:
    """Say which argument is no number."""
    if not isinstance(value, Real):
        raise TypeError(f'{name} is {value!r}, expected a number.')


def _short(numbers: Tuple[int, ...]) -> str:
    """One number without brackets."""
    return str(numbers[0]) if len(numbers) == 1 else str(numbers)
