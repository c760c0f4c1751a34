"""Settings that nothing reads and values that cannot be meant, before anything is built."""

import math

import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope

from crd_plugin.cli.arguments import UsageError, merge_options
from crd_plugin.cli.settings import check_settings
from tests.config_files import LEAVES, OTHER_LEAVES, parsed
from tests.small_runs import config

FEATS = 'model.distiller.loss_forward_mappings.loss_crd'


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


def found(changes):
    cfg = config('work')
    cfg.merge_from_dict(changes)
    return list(check_settings(cfg.to_dict()))


def test_sound_configs():
    assert found({}) == []
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
        ('train_cfg.max_epoch', 3, 'EpochBasedTrainLoop has no such argument; the nearest is max'),
        ('val_cfg.interval', 1, 'val_cfg.interval: ValLoop has no such argument; there are'),
        ('train_dataloader.batchsize', 3, 'DataLoader has no such argument; the nearest are b'),
        ('optim_wrapper.clip_grads', {}, 'OptimWrapper has no such argument; the nearest is clip'),
        ('randomness.sede', 1, 'randomness.sede: set_random_seed has no such argument'),
        ('train_cfg.max_epochs', 2.5, 'max_epochs is 2.5, expected an integer of at least 1.'),
        ('train_cfg.max_epochs', None, 'max_epochs is None, expected an integer of at least 1.'),
        ('train_cfg.val_interval', 0, 'val_interval is 0, expected an integer of at least 1.'),
        ('train_dataloader.batch_size', 0, 'batch_size is 0, expected an integer of at least 1.'),
        ('val_dataloader.num_workers', -1, 'num_workers is -1, expected an integer of at least 0'),
        ('train_dataloader.prefetch_factor', 0, 'is 0, expected an integer of at least 1.'),
        ('optim_wrapper.optimizer.lr', [0, 1], 'lr is [0, 1], expected a finite number that is no'),
        ('optim_wrapper.optimizer.lr', float('nan'), 'lr is nan, expected a finite number that'),
        ('randomness.seed', -1, 'randomness.seed is -1, expected an integer from 0 to 4294967295'),
        ('randomness.seed', 'x', "randomness.seed is 'x', expected Optional[int]"),
        ('find_unused_parameters', 'maybe', "find_unused_parameters is 'maybe', expected bool."),
        ('resume', 'maybe', "resume is 'maybe', expected bool."),
        ('work_dir', 5, 'work_dir is 5, expected str.'),
        ('val_cfg', None, 'val_evaluator: all of them or none is needed, but val_cfg is not given'),
        ('optim_wrapper.paramwise_cfg', dict(bias_lr=2), 'bias_lr: unknown; the nearest are bias'),
        ('optim_wrapper.clip_grad', dict(max_nor=5), 'clip_grad_norm_ has no such argument; the'),
        ('optim_wrapper.clip_grad', dict(max_norm=-5), 'max_norm is -5, expected a number above z'),
        ('optim_wrapper.clip_grad', dict(max_norm=float('nan')), 'max_norm is nan, expected a nu'),
        ('optim_wrapper.clip_grad', dict(max_norm=5, clip_value=5), 'clip_value: clip_grad_norm_'),
        (
            'auto_scale_lr',
            dict(enabled=True, base_batch_size=2),
            'enabled: scale_lr has no such argument; the nearest is e',
        ),
        ('auto_scale_lr', dict(enable='yes', base_batch_size=2), "enable is 'yes', expected bool"),
        (
            'env_cfg',
            dict(cudnn_benchmak=True),
            'setup_env has no such argument; the nearest is cudnn_be',
        ),
        ('env_cfg', dict(mp_cfg=dict(start='fork')), 'env_cfg.mp_cfg.start: set_multi_processing'),
        (
            'log_processor',
            dict(by_epoc=True),
            'LogProcessor has no such argument; the nearest is by_e',
        ),
        ('model_wrapper_cfg', dict(type='MMDistributedDataParalel'), 'MMDistributedDataParalel'),
        ('default_hooks.logger.interval', 0, 'is 0, expected a positive integer, or -1'),
        ('model.architecture.head.loss', dict(loss_weight=-1), 'loss_weight is -1, expected a'),
        ('model.architecture.head.loss', dict(tau=0), 'tau is 0, expected a finite number ab'),
        ('model.calculate_student_loss', 'no', "calculate_student_loss is 'no', expected bool"),
        (f'{FEATS}.s_feats.from_student', False, 's_feats and t_feats come from the teacher only'),
        ('model.teacher_ckpt', 5, 'model.teacher_ckpt is 5, expected str | Sequence[str'),
        ('model.input_shape', 'big', "model.input_shape is 'big', expected Sequence[int]."),
        ('model.input_shape', [3, 8.5, 8], 'model.input_shape is [3, 8.5, 8], expected Sequence['),
        ('randomness.seed', True, 'randomness.seed is True, expected Optional[int]'),
        (f'{FEATS}.t_feats.from_student', True, 's_feats and t_feats come from the student only'),
        ('model.channels_last', 'yes', "model.channels_last is 'yes', expected bool."),
    ],
)
def test_mistakes(name, value, message):
    (line,) = found({name: value})
    assert message in line


def test_variables_of_a_file_are_no_settings():
    names = ['train_pipeline', 'pair', 'crd', 'max_epochs', 'views', 'data_root', 'img_size']
    assert found(dict.fromkeys(names, 1)) == []


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


@pytest.mark.parametrize(
    'clip',
    [dict(max_norm=math.inf), dict(type='value', clip_value=1), dict(type='norm', max_norm=1)],
)
def test_sound_limits_of_gradients(clip):
    assert found({'optim_wrapper.clip_grad': clip}) == []


def test_none_where_it_is_a_value():
    changes = {'model.architecture.backbone.max_norm': None, 'optim_wrapper.optimizer.lr': None}
    assert found({**changes, 'default_hooks.other': dict(max_epochs=None)}) == []


def test_a_preprocessor_of_the_model_hides_that_of_the_data_set():
    own = {'model.data_preprocessor': dict(type='mmpretrain.ClsDataPreprocessor', to_rgb=True)}
    own['data_preprocessor'] = dict(type='mmpretrain.ClsDataPreprocessor')
    (problem,) = found(own)
    assert 'model.data_preprocessor has to_rgb=True' in problem and 'has to_rgb=False' in problem
    assert found({**own, 'data_preprocessor.to_rgb': True}) == []
    own['model.data_preprocessor'] = dict(type='ImgDataPreprocessor', bgr_to_rgb=True)
    assert found({**own, 'data_preprocessor.to_rgb': True}) == []
    cfg = Config(dict(data_preprocessor={}, model=dict(data_preprocessor=dict(type='A'))))
    with pytest.raises(UsageError, match='mean has no effect: .* set model.data_preprocessor.mean'):
        merge_options(cfg, {'data_preprocessor.mean': [1.0]})
