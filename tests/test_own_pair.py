"""The configs of docs/your_own_pair.md, which it shows word for word."""

import re

import pytest
from mmengine.config import Config

from crd_plugin.cli.dry_run import run_dry
from tests import small_runs

DOCS = small_runs.REPO / 'docs'
EXAMPLES = sorted((DOCS / 'examples').glob('*.py'))
TEXT = (DOCS / 'your_own_pair.md').read_text()


def test_the_doc_shows_every_example():
    shown = re.findall(r'```python\n(.*?)```', TEXT, re.DOTALL)
    assert sorted(shown) == sorted(path.read_text() for path in EXAMPLES)
    for link in re.findall(r'\]\((?!http)([^)]+)\)', TEXT):
        assert (DOCS / link).is_file(), link
    for path in re.findall(r'(?:configs|tools|docs)/[\w./-]+\b', TEXT):
        assert (small_runs.REPO / path).exists(), path


@pytest.mark.parametrize('path', EXAMPLES, ids=lambda path: path.stem)
def test_example(path, tmp_path, monkeypatch):
    """Built at full size; one step on two images of 64x64 instead of 224."""
    assert len(path.read_text().splitlines()) <= 15
    monkeypatch.chdir(tmp_path)
    cfg = Config.fromfile(path)
    crop = cfg.train_dataloader.dataset.dataset.pipeline[1]
    assert crop.type == 'RandomResizedCrop'
    crop.scale = 64
    report = run_dry(cfg, use_teacher_ckpt=False, batch_size=2)
    assert report.problems == []
    assert '2 x 3 x 64 x 64' in report.images
    parts = {part.part: part.total for part in report.parts}
    # MMPretrain's metafiles and, for the student of timm, its model card.
    published = {
        'crd_convnext-tiny_mobilenetv3_imagenet': (5.48, 28.589),
        'crd-kd_resnet34_resnet10t_imagenet': (5.44, 21.798),
    }[path.stem]
    assert round(parts['student'] / 1e6, 2) == published[0]
    assert round(parts['teacher'] / 1e6, 3) == published[1]
    for row in report.losses:
        if row.summed:
            assert row.student > 0, row.name
