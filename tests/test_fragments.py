"""Joining pairs and methods, and keeping data on the device."""

import copy

import pytest
from mmengine.config import Config, ConfigDict

from crd_plugin.fragments import join, keep_on_device, seeds
from tests.config_files import BASE, parsed

PAIR = ConfigDict(
    architecture=dict(type='Net', head=dict(type='Head', loss=dict(type='Loss'))),
    teacher=dict(type='Net'),
    teacher_ckpt='teacher.pth',
)


def fragment(name, file=None):
    """A method as it stands in ``configs/_base_/distillers``."""
    return parsed(BASE / 'distillers' / f'{file or name}.py')[name]


def fragments(*names):
    return [fragment(name) for name in names]


def weights(model):
    """Weights of the student's own loss and of the distiller's."""
    losses = model.distiller.distill_losses
    own = model.architecture.head.loss.loss_weight
    return {'student': own, **{name[5:]: loss.loss_weight for name, loss in losses.items()}}


def refused(match, pair, *methods):
    with pytest.raises(ValueError, match=match):
        join(pair, *methods)


def test_one_method():
    crd = fragment('crd')
    assert join(PAIR, crd) == dict(
        type='crd_plugin.FrozenTeacherDistill',
        architecture=dict(
            type='Net', head=dict(type='Head', loss=dict(type='Loss', loss_weight=1.0))
        ),
        teacher=dict(type='Net'),
        teacher_ckpt='teacher.pth',
        distiller=crd.distiller,
    )


def test_what_is_joined_is_not_changed():
    methods = fragments('kd', 'at', 'ab')
    before = copy.deepcopy([PAIR, *methods])
    model = join(PAIR, *methods)
    model.distiller.student_recorders.stages.source = 'neck'
    model.architecture.head.loss.loss_weight = 2.0
    join(PAIR, methods[0])
    assert [PAIR, *methods] == before


@pytest.mark.parametrize(
    'methods, algorithm, expected',
    [
        # HobbitLong/RepDistiller, scripts/run_cifar_distill.sh: alone and beside CRD.
        ('kd', 'FrozenTeacher', dict(student=0.1, kd=0.9)),
        ('crd kd', 'FrozenTeacher', dict(student=1.0, crd=0.8, kd=1.0)),
        ('crd', 'FrozenTeacher', dict(student=1.0, crd=0.8)),
        ('crd at', 'FrozenTeacher', dict(student=1.0, crd=0.8, at=1000)),
        ('at sp', 'FrozenTeacher', dict(student=1.0, at=1000, sp=3000)),
        ('cktf crd', 'FrozenTeacher', dict(student=1.0, cktf=1.0, crd=0.8)),
        ('cktf kd', 'FrozenTeacher', dict(student=1.0, cktf=1.0, kd=1.0)),
        ('cocord kd', 'CoCoRD', dict(student=1.0, cocord=1.0, kd=1.0)),
        ('cocord crd', 'CoCoRD', dict(student=1.0, cocord=1.0, crd=0.8)),
        ('fitnet crd', 'FrozenTeacher', dict(student=1.0, fitnet=100, crd=0.8)),
        ('dkd', 'FrozenTeacher', dict(student=1.0, dkd=1.0)),
        ('crd dkd', 'FrozenTeacher', dict(student=1.0, crd=0.8, dkd=1.0)),
        ('lskd', 'FrozenTeacher', dict(student=0.1, lskd=9.0)),
        ('crd lskd', 'FrozenTeacher', dict(student=1.0, crd=0.8, lskd=9.0)),
        ('rrd kd', 'FrozenTeacher', dict(student=1.0, rrd=1.0, kd=1.0)),
        ('ab crd', 'Staged', dict(student=1.0, ab=1.0, crd=0.8)),
        ('ab crd kd', 'Staged', dict(student=1.0, ab=1.0, crd=0.8, kd=1.0)),
    ],
)
def test_weights_and_algorithm(methods, algorithm, expected):
    given = fragments(*methods.split())
    model = join(PAIR, *given)
    assert weights(model) == expected
    assert model.type == f'crd_plugin.{algorithm}Distill'
    assert 'alone' not in model and 'student_loss_weight' not in model
    # The order matters only to the order of the losses.
    assert join(PAIR, *reversed(given)) == model
    for part in ('student_recorders', 'teacher_recorders', 'connectors', 'loss_forward_mappings'):
        found = model.distiller.get(part, {})
        assert found == {
            name: value for one in given for name, value in one.distiller.get(part, {}).items()
        }


def test_settings_of_networks_and_algorithm_are_joined():
    model = join(dict(PAIR, input_shape=(3, 16, 16)), *fragments('ab'))
    assert model.architecture.backbone == model.teacher.backbone == dict(pre_activation=True)
    assert model.stages == fragment('ab').stages
    assert model.input_shape == (3, 16, 16)


def test_what_was_published_for_a_pair_counts_with_its_method_alone():
    published = dict(
        loss_kd=dict(alone=dict(student_loss_weight=0.5)),
        loss_crd=dict(distiller=dict(distill_losses=dict(loss_crd=dict(embed_dim=256)))),
    )
    pair = dict(PAIR, published=published)
    assert weights(join(pair, fragment('kd'))) == dict(student=0.5, kd=0.9)
    both = join(dict(pair), *(one.to_dict() for one in fragments('crd', 'kd')))  # plain dicts
    assert weights(both) == dict(student=1.0, crd=0.8, kd=1.0)
    assert both.distiller.distill_losses.loss_crd.embed_dim == 256
    assert join(pair, fragment('at')) == join(PAIR, fragment('at'))


def test_recorders_with_one_name_must_be_equal():
    cc, at = copy.deepcopy(fragments('cc', 'at'))
    cc.distiller.teacher_recorders.feat.source = 'backbone'
    refused(
        r'^loss_crd \+ loss_kd and loss_cc cannot be joined: both have feat in '
        r"distiller.teacher_recorders, \{.*Feature'\} and \{.*'source': 'backbone'\}; "
        'give one of them another name',
        PAIR,
        *fragments('crd', 'kd'),
        cc,
    )
    at.distiller.student_recorders.stages.stem = True  # a setting more
    refused('both have stages in distiller.student_recorders', PAIR, fragment('sp'), at)


def test_other_parts_belong_to_one_method():
    refused('both have loss_at in distiller.distill_losses', PAIR, *fragments('at', 'at'))
    crd = copy.deepcopy(fragment('crd'))
    for part in ('distill_losses', 'loss_forward_mappings'):
        crd.distiller[part].loss_other = crd.distiller[part].pop('loss_crd')
    refused('both have crd_student in distiller.connectors', PAIR, fragment('crd'), crd)


def test_disagreement_is_refused():
    refused(
        r'loss_ab and loss_cocord cannot be joined: one needs the algorithm '
        r'crd_plugin.StagedDistill, the other crd_plugin.CoCoRDDistill',
        PAIR,
        *fragments('ab', 'cocord'),
    )
    refused(
        r"loss_ab and loss_ft cannot be joined: stages is \[\{'name': 'init'",
        PAIR,
        *fragments('ab', 'ft'),
    )
    pair = copy.deepcopy(PAIR)
    pair.teacher.backbone = dict(pre_activation=False)
    refused(
        'the pair and loss_ab cannot be joined: teacher.backbone.pre_activation is False in one, '
        'True in the other',
        pair,
        fragment('ab'),
    )


def test_what_is_not_a_fragment_is_refused():
    crd = fragment('crd')
    refused(r"first argument of join has the keys \['type', 'distiller'\]", crd, PAIR)
    refused('a pair but no method', PAIR)
    refused(r"keys \['num_negatives'\], expected a fragment", PAIR, crd, dict(num_negatives=32))


def test_weight_of_the_student_loss():
    kd, crd = copy.deepcopy(fragments('kd', 'crd'))
    # Not written out: 1 is the default of MMPretrain's heads; another weight needs a place.
    pair = copy.deepcopy(PAIR)
    del pair.architecture.head['loss']
    assert 'loss' not in join(pair, crd).architecture.head
    refused('weighs .* by 0.1, but the pair has no architecture.head.loss', pair, kd)
    # A network without head, as MMPretrain's TimmClassifier.
    pair.architecture = dict(type='Net', loss=dict(type='Loss'))
    assert join(pair, kd).architecture.loss == dict(type='Loss', loss_weight=0.1)
    # Two methods must agree on it.
    kd.student_loss_weight = crd.student_loss_weight = 0.5
    assert weights(join(PAIR, kd, crd))['student'] == 0.5
    crd.student_loss_weight = 0.4
    refused('student_loss_weight is 0.5 in one, 0.4 in the other', PAIR, kd, crd)
    # One owner of the weight.
    pair = copy.deepcopy(PAIR)
    pair.architecture.head.loss.loss_weight = 0.5
    refused('architecture.head.loss.loss_weight of the pair is 0.5', pair, crd)


def test_a_leaf_may_add_a_method_to_another_leaf(tmp_path):
    """The first leaf's weights, here those of KD alone, do not remain."""
    leaf = BASE.parent / 'kd' / 'kd_resnet14_resnet8w4_b20-100e_digits.py'
    path = tmp_path / 'leaf.py'
    path.write_text(
        f'_base_ = {[str(leaf), str(BASE / "distillers/at.py")]}\n'
        'from crd_plugin.fragments import join\n\n'
        'model = join(_base_.pair, _base_.kd, _base_.at)\n'
    )
    assert weights(parsed(leaf).model) == dict(student=0.1, kd=0.9)
    cfg = Config.fromfile(path)
    assert weights(cfg.model) == dict(student=1.0, kd=1.0, at=1000)
    # What MMEngine writes into the work directory says the same.
    cfg.dump(tmp_path / 'dumped.py')
    assert Config.fromfile(tmp_path / 'dumped.py').model == cfg.model


def test_keep_on_device(tmp_path):
    leaf = BASE.parent / 'cocord' / 'cocord_resnet14_resnet8w4_b20-100e_digits.py'
    path = tmp_path / 'leaf.py'
    path.write_text(
        f'_base_ = {str(leaf)!r}\n'
        'from crd_plugin.fragments import keep_on_device\n\n'
        'keep_on_device(_base_)\n'
        'train_dataloader = dict(batch_size=10)\n'
    )
    plain, cfg = parsed(leaf), Config.fromfile(path)
    assert cfg.data_preprocessor == {
        **plain.data_preprocessor,
        'type': 'crd_plugin.ResidentDataPreprocessor',
    }
    whole = dict(
        num_workers=0,
        persistent_workers=False,
        pin_memory=False,
        collate_fn=dict(type='crd_plugin.whole_batch'),
    )
    train = plain.train_dataloader
    dataset = dict(train.dataset, type='crd_plugin.ResidentDataset')
    assert cfg.train_dataloader == {**train, **whole, 'batch_size': 10, 'dataset': dataset}
    for name in ('val_dataloader', 'test_dataloader'):
        dataset = dict(type='crd_plugin.ResidentDataset', dataset=plain[name].dataset)
        assert cfg[name] == {**plain[name], **whole, 'dataset': dataset}
    again = copy.deepcopy(cfg)
    keep_on_device(again)
    assert again.to_dict() == cfg.to_dict()
    unlabeled = copy.deepcopy(parsed(BASE / 'settings' / 'stl10-unlabeled_b64-240e.py'))
    keep_on_device(unlabeled)
    assert unlabeled.train_dataloader.dataset.type == 'crd_plugin.ResidentDataset'
    assert unlabeled.val_dataloader is None and unlabeled.test_dataloader is None


def test_seeds_make_an_ensemble():
    pair = ConfigDict(PAIR, teacher_ckpt='work_dirs/teacher/epoch_9.pth')
    model = join(seeds(pair, 2), fragment('crd', 'crd_ensemble'))
    assert model.teacher_ckpt == [f'work_dirs/teacher/seed_{i}/epoch_9.pth' for i in range(2)]
    assert model.teacher == PAIR.teacher and pair.teacher_ckpt == 'work_dirs/teacher/epoch_9.pth'
    assert list(model.distiller.distill_losses) == ['loss_crd']
    for path in ('https://example.invalid/teacher.pth', 'teacher.pth', None):
        with pytest.raises(ValueError, match=f'teacher_ckpt is {path!r}, expected work_dirs/CONF'):
            seeds(ConfigDict(PAIR, teacher_ckpt=path), 2)
    for number in (0, 1.5):
        with pytest.raises(ValueError, match=f'seeds got {number} members'):
            seeds(pair, number)
