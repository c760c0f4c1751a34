"""Settings of the tests of data sets."""

import pytest
from mmengine.registry import DefaultScope


@pytest.fixture(autouse=True)
def scope():
    """Use MMPretrain's names, as a Runner does."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield
