"""Settings of the tests of data sets."""

import pytest
from mmengine.registry import DefaultScope

from tests import fake_data


@pytest.fixture(autouse=True)
def scope():
    """Use MMPretrain's names, as a Runner does."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


@pytest.fixture(scope='session')
def written(tmp_path_factory):
    """Write the files of all data sets; return their folder and what was written."""
    folder = tmp_path_factory.mktemp('files')
    return folder, {name: write(folder / name) for name, write in fake_data.WRITERS.items()}


@pytest.fixture
def data_files(written, monkeypatch):
    """Go where the configs find the files of all data sets; return what was written."""
    fake_data.without_md5(monkeypatch)
    monkeypatch.chdir(written[0])
    return written[1]
