"""Checks of arguments that are numbers."""

import math
from numbers import Integral, Real
from typing import Any


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
    check_number(name, value)
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
    check_number(name, value)
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f'{name} is {value}, expected a positive number (published: {published}).')
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


def check_number(name: str, value: Any) -> None:
    """Say which argument is no number.

    Args:
        name (str): Argument, for the message.
        value (Any): Its value.

    Raises:
        TypeError: If it is no number.
    """
    if not isinstance(value, Real):
        raise TypeError(f'{name} is {value!r}, expected a number.')
