"""Check arguments that are numbers; each function returns the value."""

import math
from numbers import Integral, Real
from typing import Any


def not_negative(name: str, value: float) -> float:
    """Require a finite number that is not negative: a TypeError or ValueError names it."""
    check_number(name, value)
    if not 0 <= value < math.inf:
        raise ValueError(f'{name} is {value}, expected a finite number that is not negative.')
    return value


def positive(name: str, value: float, published: float) -> float:
    """Require a finite number above zero; the message gives the published value."""
    check_number(name, value)
    if not 0 < value < math.inf:
        raise ValueError(f'{name} is {value}, expected a positive number (published: {published}).')
    return value


def count(name: str, value: int, hint: str = '') -> int:
    """Require an integer of at least one; the message ends with the hint."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise ValueError(f'{name} is {value!r}, expected an integer{hint}.')
    if value < 1:
        raise ValueError(f'{name} is {value}, expected at least 1{hint}.')
    return value


def check_number(name: str, value: Any) -> None:
    """Require a number: a TypeError names the argument."""
    if not isinstance(value, Real):
        raise TypeError(f'{name} is {value!r}, expected a number.')
