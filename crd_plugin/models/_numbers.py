"""Check arguments, most of them numbers; each function returns the value."""

import math
from collections.abc import Collection
from numbers import Integral, Real
from typing import TypeVar

_Value = TypeVar('_Value')


def not_negative(name: str, value: float) -> float:
    """Require a finite number that is not negative: a TypeError or ValueError names it."""
    if not 0 <= check_number(name, value) < math.inf:
        raise ValueError(f'{name} is {value}, expected a finite number that is not negative.')
    return value


def positive(name: str, value: float, published: float) -> float:
    """Require a finite number above zero; the message gives the published value."""
    if not 0 < check_number(name, value) < math.inf:
        raise ValueError(f'{name} is {value}, expected a positive number (published: {published}).')
    return value


def old_weight(name: str, value: float, published: float) -> float:
    """Require the weight of the old value in a moving average, [0, 1)."""
    if not 0 <= check_number(name, value) < 1:
        raise ValueError(
            f'{name} is {value}, expected 0 <= {name} < 1: it is the weight of the old value, and '
            f'1 would never learn (published: {published}).'
        )
    return value


def count(name: str, value: int, hint: str = '') -> int:
    """Require an integer of at least one; the message ends with the hint."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise ValueError(f'{name} is {value!r}, expected an integer{hint}.')
    if value < 1:
        raise ValueError(f'{name} is {value}, expected at least 1{hint}.')
    return value


def check_number(name: str, value: float) -> float:
    """Require a number: a TypeError names the argument."""
    if not isinstance(value, Real):
        raise TypeError(f'{name} is {value!r}, expected a number.')
    return value


def one_of(name: str, value: _Value, allowed: Collection[_Value]) -> _Value:
    """Require one of the allowed values: a ValueError names them."""
    if value not in allowed:
        raise ValueError(f'{name} is {value!r}, expected one of {tuple(allowed)}.')
    return value
