"""The configs of docs/your_own_pair.md, which it shows word for word."""

import re

import pytest

from crd_plugin.cli.dry_run import dry_run_file
from tests import small_runs

DOCS = small_runs.REPO / 'docs'
EXAMPLES = sorted((DOCS / 'examples').glob('*.py'))
TEXT = (DOCS / 'your_own_pair.md').read_text()
# Millions of parameters of student and teacher, from MMPretrain's metafiles and, for the student
# of timm, its model card. With five classes, 995 x 513 parameters of each classifier are gone.
PUBLISHED = {
    'crd_convnext-tiny_mobilenetv3_imagenet': (5.48, 28.589),
    'crd-kd_resnet34_resnet10t_imagenet': (5.44, 21.798),
    'crd_resnet34_resnet18_folder': (11.69 - 0.51, 21.798 - 0.511),
}


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
    monkeypatch.chdir(tmp_path)
    report = dry_run_file(
        str(path),
        {
            'model.teacher_ckpt': None,
            'train_dataloader.batch_size': 2,
            'train_dataloader.dataset.dataset.pipeline.1.scale': 64,
        },
    )
    assert report.problems == []
    assert '2 x 3 x 64 x 64' in report.images
    parts = {part.part: part.total for part in report.parts}
    student, teacher = PUBLISHED[path.stem]
    assert parts['student'] / 1e6 == pytest.approx(student, abs=0.006)
    assert parts['teacher'] / 1e6 == pytest.approx(teacher, abs=0.0006)
    for row in report.losses:
        if row.summed:
            assert row.student > 0, row.name
