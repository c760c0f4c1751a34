"""Each network sees images as it was trained on; what would have no effect is refused."""

import copy

import pytest
import torch
from mmengine.registry import DefaultScope
from mmpretrain.models.utils import ClsDataPreprocessor

from crd_plugin.models.algorithms.network_images import network_images
from crd_plugin.ops import rgb_to_lab
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
    change = network_images(network, student)
    given = student(dict(inputs=raw))['inputs']
    expected = teacher(dict(inputs=raw))['inputs']
    torch.testing.assert_close(change(given), expected, rtol=1e-5, atol=1e-4)
    assert not change.state_dict()
    assert change(given.half()).dtype == torch.half


def seen_by(model, raw, mode='loss'):
    """Raw images as the backbone of each network gets them in a step, by its role."""
    seen = {}
    for role in ('teacher', 'student'):
        backbone = getattr(model, role).backbone
        backbone.register_forward_pre_hook(
            lambda module, args, role=role: seen.update({role: args[0]})
        )
    batch = model.data_preprocessor(dict(inputs=raw, data_samples=small_runs.batch()[1]), True)
    model(**batch, mode=mode)
    return seen


def normalised(raw, mean, std):
    return (raw.float() - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)


@pytest.mark.parametrize('asked', [dict(teacher=OTHER), dict(student=OTHER), {}])
def test_the_networks_of_a_distillation_get_them(asked):
    names = dict(teacher='teacher', student='architecture')
    own = {names[role]: dict(data_preprocessor=preprocessor(**asked[role])) for role in asked}
    raw = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    seen = seen_by(build(data_preprocessor=preprocessor(**OWN), **own), raw)
    for role in names:
        expected = normalised(raw, **asked.get(role, OWN))
        torch.testing.assert_close(seen[role], expected, rtol=1e-4, atol=1e-3)


def test_equal_or_no_settings_change_nothing():
    for theirs in (None, preprocessor(**OWN)):
        model = build(data_preprocessor=preprocessor(**OWN), teacher=dict(data_preprocessor=theirs))
        assert isinstance(model.teacher_view, torch.nn.Identity)
    # MMRazor takes the student's where the distillation has none.
    alone = build(architecture=dict(data_preprocessor=preprocessor(**OTHER)))
    assert alone.data_preprocessor.mean.flatten().tolist() == OTHER['mean']
    assert isinstance(alone.student_view, torch.nn.Identity)


class Grey(torch.nn.Module):
    """A view of one's own: the mean over channels, three times."""

    def forward(self, images):
        return images.mean(1, keepdim=True).repeat(1, 3, 1, 1)


def channels(*numbers):
    return dict(type='crd_plugin.ChannelView', channels=list(numbers))


SIX = dict(mean=[1.0, 2.0, 3.0, 40.0, 50.0, 60.0], std=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])


@pytest.mark.parametrize(
    'own, theirs, mean, std',
    [
        # The network's own normalisation counts, whatever the images had before.
        (preprocessor(), OTHER, OTHER['mean'], OTHER['std']),
        (preprocessor(**SIX), OTHER, OTHER['mean'], OTHER['std']),
        (preprocessor(**SIX), None, SIX['mean'][3:], SIX['std'][3:]),
        (preprocessor(), None, [0.0] * 3, [1.0] * 3),
    ],
)
@pytest.mark.parametrize(
    'role, mode',
    [('teacher', 'loss'), ('student', 'loss'), ('student', 'predict'), ('student', 'tensor')],
)
def test_a_view_of_stacked_modalities(own, theirs, mean, std, role, mode):
    other = dict(teacher='student', student='teacher')[role]
    network = dict(teacher='teacher', student='architecture')[role]
    given = {f'{role}_view': channels(3, 4, 5), f'{other}_view': channels(0, 1, 2)}
    given[network] = dict(data_preprocessor=theirs and preprocessor(**theirs))
    raw = torch.randint(0, 256, (6, 6, 8, 8), dtype=torch.uint8)
    model = build(data_preprocessor=own, input_shape=(6, 8, 8), **given)
    seen = seen_by(model, raw, mode)
    torch.testing.assert_close(seen[role], normalised(raw[:, 3:], mean, std), rtol=1e-4, atol=1e-3)
    assert seen.get('teacher') is None or seen['teacher'].shape == (6, 3, 8, 8)
    assert not any('view' in name for name in model.state_dict())
    features = model.extract_feat(model.data_preprocessor(dict(inputs=raw))['inputs'])[0]
    assert features.shape == (6, 6)


def test_luminance_and_a_module_of_ones_own():
    """LabView is given pixels whatever the normalisation."""
    raw = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    lab = rgb_to_lab(raw.float() / 255)[:, :1]
    for own in (preprocessor(), preprocessor(**OWN)):
        luminance = dict(type='crd_plugin.LabView', channels='L')
        view = network_images(torch.nn.Module(), MODELS.build(own), luminance)
        images = MODELS.build(own)(dict(inputs=raw))['inputs'].float()
        torch.testing.assert_close(view(images), lab, atol=0.01, rtol=1e-4)
    seen = seen_by(build(data_preprocessor=preprocessor(**OWN), student_view=Grey()), raw)
    torch.testing.assert_close(seen['student'], Grey()(seen['teacher']))


@pytest.mark.parametrize('own', [preprocessor(), preprocessor(**OWN, to_rgb=True)])
def test_a_network_brings_its_view(own):
    theirs = dict(type='crd_plugin.ViewPreprocessor', **OTHER, view=channels(2, 2, 0))
    raw = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    networks = dict(architecture=dict(data_preprocessor=theirs))
    model = build(data_preprocessor=own, **networks)
    expected = MODELS.build(dict(theirs, to_rgb=own.get('to_rgb', False)))(dict(inputs=raw))
    for mode in ('loss', 'predict'):
        found = seen_by(model, raw, mode)['student']
        torch.testing.assert_close(found, expected['inputs'], rtol=1e-4, atol=1e-3)
    # A view of the config comes before it.
    model = build(data_preprocessor=own, student_view=channels(1, 1, 0), **networks)
    expected = MODELS.build(dict(theirs, view=channels(0, 0, 1), to_rgb=own.get('to_rgb', False)))
    found, expected = seen_by(model, raw)['student'], expected(dict(inputs=raw))['inputs']
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


MIXUP = dict(augments=[dict(type='Mixup', alpha=0.2)])
FOUR = dict(data_preprocessor=preprocessor(mean=[1.0] * 4, std=[1.0] * 4))


@pytest.mark.parametrize(
    'changes, message',
    [
        (
            dict(student_view=channels(0, 1), architecture=FOUR),
            'the images have 2 channels, but mean .* 4 numbers',
        ),
        (dict(teacher=FOUR), 'of the teacher has 4 channels, .* 3; .* model.teacher_view.$'),
        # Mixing would have no effect.
        (dict(architecture=dict(train_cfg=MIXUP)), '^architecture mixes images .* of the config'),
        (
            dict(architecture=dict(data_preprocessor=preprocessor(batch_augments=MIXUP))),
            '^architecture mixes images',
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build(data_preprocessor=preprocessor(**OWN), **changes)
