"""Each network sees images as it was trained on; what would have no effect is refused."""

import copy

import pytest
import torch
from mmengine.registry import DefaultScope
from mmpretrain.models.utils import ClsDataPreprocessor

from crd_plugin.models.algorithms.teacher_images import teacher_images
from crd_plugin.registry import MODELS
from tests import small_runs

OWN = dict(mean=[120.0, 110.0, 100.0], std=[60.0, 50.0, 40.0])
OTHER = dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0])


def build(**changes):
    """A distillation whose networks have no data preprocessor but those given."""
    cfg = small_runs.model(num_samples=20, exclude='instance')
    for role in ('architecture', 'teacher'):
        cfg[role] = {**cfg[role], 'data_preprocessor': None, **changes.pop(role, {})}
    cfg.update(changes)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(copy.deepcopy(cfg))  # MMPretrain writes into it


def preprocessor(**settings):
    return dict(type='mmpretrain.ClsDataPreprocessor', **settings)


@pytest.mark.parametrize('own', [{}, OWN, dict(OWN, to_rgb=True)])
@pytest.mark.parametrize('theirs', [OTHER, dict(OTHER, to_rgb=True), dict(mean=[7.0], std=[8.0])])
def test_images_are_those_that_the_teacher_would_make(own, theirs):
    raw = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    student, teacher = ClsDataPreprocessor(**own), ClsDataPreprocessor(**theirs)
    network = torch.nn.Module()
    network.data_preprocessor = teacher
    change = teacher_images(network, student)
    given = student(dict(inputs=raw))['inputs']
    expected = teacher(dict(inputs=raw))['inputs']
    torch.testing.assert_close(change(given), expected, rtol=1e-5, atol=1e-4)
    assert not change.state_dict()
    assert change(given.half()).dtype == torch.half


def test_the_teacher_of_a_distillation_gets_them():
    model = build(data_preprocessor=preprocessor(**OWN), teacher=dict(data_preprocessor=OTHER))
    seen = {}
    for role in ('teacher', 'student'):
        backbone = getattr(model, role).backbone
        backbone.register_forward_pre_hook(
            lambda module, args, role=role: seen.update({role: args[0]})
        )
    inputs, samples = small_runs.batch()
    batch = model.data_preprocessor(dict(inputs=inputs, data_samples=samples), True)
    model(**batch, mode='loss')
    raw = inputs.float()
    for role, asked in (('student', OWN), ('teacher', OTHER)):
        mean, std = (torch.tensor(asked[key]).view(3, 1, 1) for key in ('mean', 'std'))
        torch.testing.assert_close(seen[role], (raw - mean) / std, rtol=1e-4, atol=1e-3)


def test_equal_or_no_settings_change_nothing():
    for theirs in (None, preprocessor(**OWN)):
        model = build(data_preprocessor=preprocessor(**OWN), teacher=dict(data_preprocessor=theirs))
        assert isinstance(model.teacher_images, torch.nn.Identity)


def test_what_the_student_cannot_have_of_its_own_is_refused():
    own = preprocessor(**OWN)
    with pytest.raises(ValueError, match='architecture.data_preprocessor has a mean and a std'):
        build(data_preprocessor=own, architecture=dict(data_preprocessor=preprocessor(**OTHER)))
    same = build(data_preprocessor=own, architecture=dict(data_preprocessor=own))
    assert isinstance(same.teacher_images, torch.nn.Identity)
    # MMRazor takes the student's where the distillation has none.
    alone = build(architecture=dict(data_preprocessor=preprocessor(**OTHER)))
    assert alone.data_preprocessor.mean.flatten().tolist() == OTHER['mean']


def test_mixed_images_are_refused_where_they_have_no_effect():
    mixup = dict(augments=[dict(type='Mixup', alpha=0.2)])
    for changes in (
        dict(train_cfg=mixup),
        dict(data_preprocessor=preprocessor(batch_augments=mixup)),
    ):
        with pytest.raises(ValueError, match='^architecture mixes images .* of the config.$'):
            build(data_preprocessor=preprocessor(**OWN), architecture=changes)


def test_another_number_of_channels_is_refused():
    with pytest.raises(ValueError, match='has 4 channels, the data_preprocessor .* 3; both'):
        build(
            data_preprocessor=preprocessor(**OWN),
            teacher=dict(data_preprocessor=preprocessor(mean=[1.0] * 4, std=[1.0] * 4)),
        )
