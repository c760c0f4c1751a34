"""Every number among the arguments of these classes is checked when they are built."""

import inspect
import math

import pytest

from crd_plugin import models
from crd_plugin.models import losses
from crd_plugin.models.backbones import build_cifar_classifier_cfg

WRONG = {
    'float': (math.nan, math.inf, -1, '1'),
    'int': (0, 1.5, '1'),
    'int | Sequence[int]': (0, -2, True, []),
}
# What they need beside.
NEEDED = {
    **{name: {} for name in (*losses.__all__, 'EmbeddingConnector')},
    **{name: dict(embed_dim=4) for name in ('MemoryBank', 'KeyQueue')},
    'SegmentationHead': dict(in_channels=3, num_classes=4),
    'OnlineEnsembleDistill': dict(
        architecture=build_cifar_classifier_cfg('resnet8', 5), branch_from='backbone.layer3'
    ),
}


def numbers():
    """Classes, arguments and the values that they refuse."""
    for name, needed in NEEDED.items():
        cls = getattr(models, name)
        for argument in inspect.signature(cls.__init__).parameters.values():
            kind = inspect.formatannotation(argument.annotation).replace('collections.abc.', '')
            wrong = WRONG.get(kind.removesuffix(' | None'))
            if wrong and argument.name != 'ignore_index':
                yield pytest.param(cls, needed, argument.name, wrong, id=f'{name}-{argument.name}')


def test_they_are_found():
    assert len(list(numbers())) > 70


@pytest.mark.parametrize('cls, needed, argument, wrong', list(numbers()))
def test_numbers_out_of_range(cls, needed, argument, wrong):
    for value in wrong:
        with pytest.raises((ValueError, TypeError)) as error:
            cls(**{**needed, argument: value})
        assert str(error.value).startswith(f'{argument} is {value!r}, expected')
        is_text = wrong is WRONG['float'] and value == '1'
        assert error.type is (TypeError if is_text else ValueError)
