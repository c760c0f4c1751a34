"""What the backbones for 32x32 images share: checks and initial weights."""

from typing import Dict, List, Sequence, Tuple


def check_out_indices(
    out_indices: Sequence[int], num_stages: int, needed: bool = True
) -> Tuple[int, ...]:
    """Check a choice of stages.

    Args:
        out_indices (Sequence[int]): Stages, counted from 0, ascending.
        num_stages (int): How many stages there are.
        needed (bool): Whether at least one must be chosen. Defaults to True.

    Returns:
        tuple[int, ...]: The same stages.

    Raises:
        ValueError: If a stage does not exist, or the order is another.
    """
    given = isinstance(out_indices, Sequence)
    indices = tuple(out_indices) if given else ()
    stages = tuple(range(num_stages))
    known = tuple(sorted(set(indices) & set(stages)))
    if not given or indices != known or (needed and not indices):
        raise ValueError(
            f'out_indices must be ascending stages out of {stages}, but got {out_indices!r}.'
        )
    return indices


def check_positive(**values: int) -> None:
    """Check that arguments are whole numbers above zero.

    Args:
        **values (int): Names and values of the arguments.

    Raises:
        ValueError: If one is anything else.
    """
    for name, value in values.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f'{name} must be a positive int, but got {value!r}.')


def kaiming_init() -> List[Dict]:
    """Initial weights of most nets of HobbitLong/RepDistiller.

    Returns:
        list[dict]: Kaiming normal by fan-out for convolutions, without bias;
        weight 1 and bias 0 for batch norm.
    """
    return [
        dict(
            type='Kaiming',
            layer='Conv2d',
            mode='fan_out',
            nonlinearity='relu',
            distribution='normal',
        ),
        dict(type='Constant', layer='_BatchNorm', val=1, bias=0),
    ]
