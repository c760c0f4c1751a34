"""Settings that nothing reads and values that cannot be meant, before anything is built."""

import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope

from crd_plugin.cli.arguments import UsageError, merge_options
from crd_plugin.cli.settings import check_settings
from tests.config_files import LEAVES, OTHER_LEAVES, parsed
from tests.small_runs import config


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


def found(**changes):
    cfg = config('work')
    cfg.merge_from_dict({key.replace('__', '.'): value for key, value in changes.items()})
    return list(check_settings(cfg.to_dict()))


def test_sound_configs():
    assert found() == []
    seen = set()
    for leaf in (*LEAVES, *OTHER_LEAVES):
        key = (leaf.parent, leaf.stem.rpartition('_')[2])
        if key not in seen:  # one per method and data set
            seen.add(key)
            assert list(check_settings(parsed(leaf).to_dict())) == [], leaf.name


@pytest.mark.parametrize(
    'name, value, message',
    [
        ('tain_cfg', {}, 'tain_cfg: the config has no such setting; the nearest is train_cfg'),
        ('load_form', 'x.pth', 'load_form: the config has no such setting; the nearest is load_'),
        ('train_cfg__max_epoch', 3, 'EpochBasedTrainLoop has no such argument; the nearest is max'),
        ('val_cfg__interval', 1, 'val_cfg.interval: ValLoop has no such argument; there are'),
        ('train_dataloader__batchsize', 3, 'DataLoader has no such argument; the nearest are b'),
        ('optim_wrapper__clip_grads', {}, 'OptimWrapper has no such argument; the nearest is clip'),
        ('randomness__sede', 1, 'randomness.sede: set_random_seed has no such argument'),
        ('train_cfg__max_epochs', 2.5, 'max_epochs is 2.5, expected an integer of at least 1.'),
        ('train_cfg__val_interval', 0, 'val_interval is 0, expected an integer of at least 1.'),
        ('train_dataloader__batch_size', 0, 'batch_size is 0, expected an integer of at least 1.'),
        ('val_dataloader__num_workers', -1, 'num_workers is -1, expected an integer of at least 0'),
        ('optim_wrapper__optimizer__lr', float('nan'), 'lr is nan, expected a finite number that'),
        ('randomness__seed', -1, 'randomness.seed is -1, expected an integer from 0 to 4294967295'),
        ('randomness__seed', 'x', "randomness.seed is 'x', expected Optional[int]"),
        ('find_unused_parameters', 'maybe', "find_unused_parameters is 'maybe', expected bool."),
        ('resume', 'maybe', "resume is 'maybe', expected bool."),
        ('work_dir', 5, 'work_dir is 5, expected str.'),
        ('val_cfg', None, 'val_evaluator: all of them or none is needed, but val_cfg is not given'),
        ('optim_wrapper__paramwise_cfg', dict(bias_lr=2), 'bias_lr: unknown; the nearest are bias'),
        ('optim_wrapper__clip_grad', dict(max_nor=5), 'clip_grad_norm_ has no such argument; the'),
        ('default_hooks__logger__interval', 0, 'is 0, expected a positive integer, or -1'),
        ('model__architecture__head__loss', dict(loss_weight=-1), 'loss_weight is -1, expected a'),
        ('model__architecture__head__loss', dict(tau=0), 'tau is 0, expected a finite number ab'),
        ('model__calculate_student_loss', 'no', "calculate_student_loss is 'no', expected bool"),
        (
            'model__distiller__loss_forward_mappings__loss_crd__s_feats__from_student',
            False,
            'loss_crd: s_feats and t_feats come from the teacher only, so nothing is distilled; ',
        ),
        ('model__teacher_ckpt', 5, 'model.teacher_ckpt is 5, expected str | Sequence[str'),
        ('model__input_shape', 'big', "model.input_shape is 'big', expected Sequence[int]."),
        ('model__input_shape', [3, 8.5, 8], 'model.input_shape is [3, 8.5, 8], expected Sequence['),
        ('randomness__seed', True, 'randomness.seed is True, expected Optional[int]'),
        (
            'model__distiller__loss_forward_mappings__loss_crd__t_feats__from_student',
            True,
            'loss_crd: s_feats and t_feats come from the student only, so nothing is distilled; ',
        ),
        ('model__channels_last', 'yes', "model.channels_last is 'yes', expected bool."),
    ],
)
def test_mistakes(name, value, message):
    (line,) = found(**{name: value})
    assert message in line


def test_variables_of_a_file_are_no_settings():
    names = ['train_pipeline', 'pair', 'crd', 'max_epochs', 'views', 'data_root', 'img_size']
    assert found(**dict.fromkeys(names, 1)) == []


@pytest.mark.parametrize(
    'name, nearest',
    [
        ('tain_cfg.max_epochs', 'train_cfg.max_epochs'),
        ('max_epoch', 'train_cfg.max_epochs'),
        ('load_form', 'load_from'),
        ('custom_imports.imports', ''),
        ('pipeline', 'train_dataloader.dataset.pipeline'),
    ],
)
def test_options_that_nothing_reads(name, nearest):
    loader = dict(dataset=dict(pipeline=[]))
    train = dict(max_epochs=2)
    cfg = dict(train_cfg=train, load_from=None, pipeline=[], train_dataloader=loader)
    with pytest.raises(UsageError) as caught:
        merge_options(Config(cfg), {name: 1})
    assert f'--cfg-options {name}: nothing reads a setting of this name' in str(caught.value)
    assert nearest in str(caught.value)


def test_options_are_merged():
    cfg = Config(dict(train_cfg=dict(max_epochs=2)))
    merge_options(cfg, {'train_cfg.max_epochs': 3, 'randomness.seed': 4, 'sync_bn': 'torch'})
    assert cfg.train_cfg.max_epochs == 3 and cfg.randomness.seed == 4 and cfg.sync_bn == 'torch'
    merge_options(cfg, None)
    with pytest.raises(UsageError, match='cannot be set'):
        merge_options(cfg, {'train_cfg.max_epochs.x': 3})
