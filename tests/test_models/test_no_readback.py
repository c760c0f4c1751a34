"""A training step reads nothing back to the host: it runs without values.

All is run on torch's meta device, see tests/meta_device.py. Neither the data
nor the objective nor the hooks may ask for a number there, or mix tensors of
host and device. The steps are those of the real runner, loop and hooks, from
the second iteration of an epoch on: at the first, and at every ``interval``,
hooks look at numbers on purpose. What is waited for all the same is listed,
with the reason.

Not seen here: what a collective does inside; ``torch.compile``.
"""

import copy
import functools
import re
from types import SimpleNamespace
from unittest import mock

import mmengine.config.config
import pytest
import torch
from mmengine.optim import AmpOptimWrapper
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import nn

from crd_plugin.datasets import ResidentDataset
from crd_plugin.engine.hooks import cocord_hook, memory_bank_hook
from crd_plugin.fragments import keep_on_device
from crd_plugin.models.algorithms import CoCoRDDistill
from crd_plugin.models.losses import CRDLoss
from crd_plugin.models.memory_bank import MemoryBank
from crd_plugin.registry import MODELS
from tests import config_files
from tests.meta_device import Wait, Watch, empty, replace_autocast

WIDTH, BATCH = 8, 12
# Sizes of the classes of a bank, and K, for each way of drawing negatives.
BANKS = dict(
    parts=([60] * 10, 64),
    own_ids=([5] * 4, 15),
    unequal=([11, 6, 5], 11),
    # With replacement: for some classes, for all.
    some_repeat=([11, 6, 5], 14),
    all_repeat=([7] * 3, 32),
    gathered=([300] * 2, 16),
)

# All methods; of the pairs with CKTF one that chooses among blocks and one in
# stages.
METHODS = {
    name: method
    for name, method in config_files.METHODS.items()
    if not name.endswith('-cktf') or name in ('at-cktf', 'ab-cktf')
}
# What a GPU is waited for in steps of a method, and why.
COPIES = {
    # MMEngine's cast_data and MMPretrain's labels, with non_blocking=False:
    # data of a plain loader come from the host. Resident data do without.
    Wait('copy', 'mmengine.model.base_model.data_preprocessor'),
    Wait('copy', 'mmpretrain.models.utils.data_preprocessor'),
}
WAITS = {
    # Several views are of the plain loader.
    'cocord': COPIES,
    'cocord-kd': COPIES,
    # CUDA's eigenvalue routine reports to the host whether it has converged.
    'kdsvd': {Wait('_linalg_eigh', 'crd_plugin.ops.singular_vectors')},
}


@pytest.fixture(autouse=True)
def meta_in_place_of_a_gpu(monkeypatch):
    replace_autocast(monkeypatch)
    monkeypatch.setattr('crd_plugin.datasets.resident.get_device', lambda: 'meta')
    # Each data set that is built collects garbage, a quarter of a second.
    monkeypatch.setattr('mmengine.dataset.base_dataset.gc', mock.Mock())
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


# --- the objective --------------------------------------------------------- #


def crd_loss(sizes, num_negatives, **arguments):
    """A loss with a bank of classes of these sizes, on the device.

    It was on the host before, as MemoryBankHook makes it where the model is.
    """
    loss = CRDLoss(WIDTH, num_negatives, **arguments)
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    loss.bank.resize(len(labels), labels, seed=0)
    if loss.exclude == 'class':
        assert loss.bank.label_index.largest_pool == sum(sizes) - min(sizes)
    return loss.to('meta')


def function_of_ours(error):
    """The innermost function of the package that an error came through."""
    return [entry.name for entry in error.traceback if 'crd_plugin' in str(entry.path)][-1]


def watched_step(loss, batch=BATCH, dtype=None, **arguments):
    """Forward, backward and commit, watched."""
    student, teacher = (empty(batch, loss.embed_dim, dtype=dtype, requires_grad=True) for _ in '12')
    ids = empty(batch, dtype=torch.int64)
    with Watch() as watch:
        value = loss(student, teacher, ids, empty(batch, dtype=torch.int64), **arguments)
        value.backward()
        if loss.bank is not None:
            loss.bank.commit()
    assert value.is_meta and loss.mi_bound.is_meta
    assert student.grad.is_meta and teacher.grad.is_meta
    return watch


def step(loss, *args, **kwargs):
    """What a watched step waits for."""
    return watched_step(loss, *args, **kwargs).waits


def without_tables(waits):
    """What a first step waits for, but for what is made once and kept.

    That is, for each batch size, who is scored against which parts.
    """
    return {wait for wait in waits if wait.where != 'crd_plugin.ops.parts'}


@pytest.mark.parametrize('exclude', ['class', 'instance'])
@pytest.mark.parametrize('objective', ['nce', 'infonce'])
@pytest.mark.parametrize('negatives', ['sampled', 'shared', 'all'])
@pytest.mark.parametrize('sharded', [False, True], ids=['whole', 'sharded'])
def test_objective(sharded, negatives, objective, exclude):
    for name, (sizes, num_negatives) in BANKS.items():
        if negatives != 'sampled' and name not in ('parts', 'unequal'):
            continue  # Nothing of an anchor's own is drawn.
        loss = crd_loss(
            sizes,
            num_negatives,
            negatives=negatives,
            objective=objective,
            exclude=exclude,
            sharded=sharded,
        )
        bank = loss.bank
        assert bank.student.is_meta and bank.labels.is_meta
        assert without_tables(step(loss)) == set()
        assert bank.has_z == (objective == 'nce')
        assert step(loss) == set()


def test_banks_are_drawn_from_in_all_ways():
    found = {}
    for name, bank in BANKS.items():
        loss = crd_loss(*bank)
        drawn = loss.draw(empty(BATCH, dtype=torch.int64))
        mask = None if drawn.drawn is None else drawn.drawn.dtype
        found[name] = (drawn.parts is not None, drawn.distinct, mask)
    distinct = (False, True, torch.bool)
    repeated = (False, False, torch.float32)
    assert found == dict(
        parts=(True, True, None),
        own_ids=distinct,
        unequal=distinct,
        some_repeat=repeated,
        all_repeat=repeated,
        gathered=(False, True, None),
    )


@pytest.mark.parametrize('negatives, most', [('sampled', 72), ('shared', 70), ('all', 76)])
def test_calls_of_a_published_step(negatives, most):
    """Both directions are done by one call wherever they can be.

    ``mmrazor.CRDLoss`` makes 115 calls, five of which wait for their result,
    and is given its negatives.
    """
    labels = torch.arange(50000) % 100
    loss = CRDLoss(128, 16384, negatives=negatives)
    loss.bank.resize(50000, labels, seed=0)
    assert loss.bank.label_index.count.numel() == 100
    loss.to('meta')
    step(loss, 64)
    calls = watched_step(loss, 64).calls
    assert {'randperm', 'index_select', 'sigmoid'} - set(calls) == (
        {'randperm'} if negatives == 'all' else set()
    )
    assert len(calls) <= most, calls


@pytest.mark.parametrize('objective', ['nce', 'infonce'])
@pytest.mark.parametrize('sharded', [False, True], ids=['whole', 'sharded'])
@pytest.mark.parametrize('name', ['own_ids', 'gathered'])
def test_given_negatives(name, sharded, objective):
    loss = crd_loss(*BANKS[name], objective=objective, sharded=sharded)
    for batch in (BATCH, 5, 1):
        ids = empty(batch, 17, dtype=torch.int64)
        assert step(loss, batch, contrast_idx=ids) == set()


@pytest.mark.parametrize('exclude', ['class', 'instance'])
@pytest.mark.parametrize('objective', ['nce', 'infonce'])
def test_objective_without_a_bank(objective, exclude):
    loss = CRDLoss(WIDTH, negatives='batch', objective=objective, exclude=exclude)
    loss.to('meta')
    for batch in (BATCH, BATCH, 5, 1):
        assert step(loss, batch) == set()
        assert loss.batch.has_z == (objective == 'nce')


@pytest.mark.parametrize('kept', ['float16', 'bfloat16'])
@pytest.mark.parametrize('dtype', [torch.float16, torch.float64])
def test_objective_in_other_types(dtype, kept):
    for name in ('parts', 'gathered'):
        loss = crd_loss(*BANKS[name], bank_dtype=kept)
        step(loss, dtype=dtype)
        assert step(loss, dtype=dtype) == set()


def test_a_read_back_in_the_objective_is_found(monkeypatch):
    place = 'crd_plugin.models.memory_bank.momentum_rows'
    for doubt in (
        lambda old, new, momentum: new * old.mean().item(),
        lambda old, new, momentum: new[(new > 0).all(1)],
        lambda old, new, momentum: new + torch.ones(WIDTH),
    ):
        loss = crd_loss(*BANKS['parts'])
        monkeypatch.setattr(place, doubt)
        with pytest.raises((RuntimeError, NotImplementedError)):
            step(loss)


def test_hooks_look_at_their_interval():
    """At norms; the bound is kept for the log."""
    loss = crd_loss(*BANKS['parts'])
    hook = memory_bank_hook.MemoryBankHook(interval=3)
    hook._banks = {'bank': loss.bank}
    runner = SimpleNamespace()
    for number in range(1, 8):
        features = (empty(BATCH, WIDTH) for _ in '12')
        loss(*features, empty(BATCH, dtype=torch.int64))
        with Watch():
            if number % 3 == 2:
                with pytest.raises(RuntimeError) as error:
                    hook.after_train_iter(runner, batch_idx=number)
                assert function_of_ours(error) == 'check_embeddings'
                loss.bank.discard()
            else:
                hook.after_train_iter(runner, batch_idx=number)
        assert loss.bank.pending is None


# --- several processes ----------------------------------------------------- #


@pytest.fixture
def two_ranks(monkeypatch):
    """As if another process had the same tensors."""
    for module in (
        'crd_plugin.engine.hooks.memory_bank_hook',
        'crd_plugin.engine.hooks.cocord_hook',
        'crd_plugin.models.collectives',
    ):
        monkeypatch.setattr(f'{module}.get_world_size', lambda: 2)
    for module in ('crd_plugin.engine.hooks.memory_bank_hook', 'crd_plugin.models.collectives'):
        monkeypatch.setattr(f'{module}.all_gather', lambda tensor: [tensor, tensor.clone()])


def test_updates_of_all_ranks(two_ranks):
    loss = crd_loss(*BANKS['parts'])
    features = (empty(BATCH, WIDTH) for _ in '12')
    loss(*features, empty(BATCH, dtype=torch.int64))
    hook = memory_bank_hook.MemoryBankHook()
    hook._banks = {'bank': loss.bank}
    loader = SimpleNamespace(batch_size=BATCH + 3)
    runner = SimpleNamespace(train_loop=SimpleNamespace(dataloader=loader))
    with Watch() as watch:
        hook.after_train_iter(runner, batch_idx=1)
        keys, is_new = cocord_hook.gather_keys(empty(BATCH, WIDTH), BATCH + 3)
    assert watch.waits == set() and loss.bank.has_z
    assert loss.bank.pending is None
    assert keys.shape == (2 * BATCH + 6, WIDTH) and is_new.is_meta


@pytest.mark.parametrize(
    'arguments',
    [
        dict(negatives='batch'),
        dict(num_negatives=8, num_samples=30, exclude='instance', sharded=True),
    ],
    ids=['batch', 'sharded'],
)
def test_ranks_that_exchange_batch_sizes_read_them(two_ranks, arguments):
    """As docs/design.md says: a collective needs to know shapes."""
    loss = CRDLoss(WIDTH, **arguments).to('meta')
    with pytest.raises(NotImplementedError) as error:
        step(loss)
    assert function_of_ours(error) == 'gather_sizes'


# --- whole steps ----------------------------------------------------------- #


@functools.lru_cache(maxsize=None)
def leaf_of(method):
    """A config of the method, of the digits where there is one."""
    by_data = {}
    for leaf in config_files.LEAVES:
        name = config_files.facts(leaf)
        if name['method'] == method and re.match(
            'resnet14|resnet32x4_resnet8x4|resnet8w4', name['nets']
        ):
            by_data.setdefault(name['data'], leaf)
    return by_data.get('digits', by_data.get('cifar100'))


def config(method, tmp_path, resident=True):
    """The leaf's config with small ResNets, and images for the device."""
    cfg = copy.deepcopy(config_files.parsed(leaf_of(method)))
    data = copy.deepcopy(config_files.parsed(config_files.BASE / 'settings' / 'digits_b20-100e.py'))
    if resident:
        keep_on_device(data)
    if 'cocord' not in method:
        for key in ('train_dataloader', 'data_preprocessor'):
            cfg[key] = copy.deepcopy(data[key])
    for kind in ('val', 'test'):
        cfg.update({f'{kind}_{part}': None for part in ('cfg', 'dataloader', 'evaluator')})
    for net, depth in zip(config_files.networks_of(cfg), (8, 14)):
        net.backbone.depth = depth
    if METHODS[method].has_teacher:
        cfg.model.update(teacher_ckpt=None, input_shape=(3, 16, 16))
    cfg.default_hooks.checkpoint = None
    # As torch does on a GPU, where it is asked for nothing.
    cfg.optim_wrapper.optimizer.update(foreach=True, fused=False)
    cfg.merge_from_dict(
        dict(log_level='ERROR', work_dir=str(tmp_path), experiment_name=f'meta-{tmp_path}')
    )
    return cfg


def train(cfg, look):
    """Two iterations of each stage; ``look`` is given what each waits for.

    Everything is built, and hooks are called, by the runner, on the host. The
    model moves when its loop would begin.
    """
    with mock.patch.object(
        mmengine.config.config, 'FormatCode', lambda text, **kwargs: (text, True)
    ):
        runner = Runner.from_cfg(cfg)

    def run():
        runner.call_hook('before_train')
        runner.model.to('meta')
        # The parameters are others now.
        runner.optim_wrapper = runner.build_optim_wrapper(dict(cfg.optim_wrapper))
        runner.param_schedulers = runner.build_param_scheduler(cfg.param_scheduler)
        for stage in getattr(runner.model, 'stages', None) or [None]:
            if stage is not None:
                runner.model.set_stage(stage)
            runner.call_hook('before_train_epoch')
            runner.model.train()
            batches = iter(runner.train_loop.dataloader)
            for number in (1, 2):
                # The first one reads the images and draws the epoch.
                with Watch() as fetching:
                    batch = next(batches)
                with Watch() as watch:
                    runner.train_loop.run_iter(number, batch)
                waits = without_tables(watch.waits)
                if number > 1:
                    waits = watch.waits | fetching.waits
                look(runner, waits)

    runner.train_loop.run = run
    runner.train()


def check_state(runner):
    """All is on the device, has trained, and is left as after a step."""
    model = runner.model
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    trained = [
        p for group in runner.optim_wrapper.param_groups for p in group['params'] if p.requires_grad
    ]
    assert trained and runner.optim_wrapper.optimizer.state
    # The losses were kept for the log, which reads them when it is written.
    with pytest.raises(NotImplementedError, match='Cannot copy out of meta'):
        runner.message_hub.get_scalar('train/loss')
    for bank in model.modules():
        if isinstance(bank, MemoryBank):
            assert bank.num_samples == 100 and bank.pending is None
    if isinstance(model, CoCoRDDistill):
        assert model.cocord_loss.queue.pending is None


@pytest.mark.parametrize('method', METHODS)
def test_iterations(method, tmp_path):
    seen = []

    def look(runner, waits):
        check_state(runner)
        seen.append(waits)

    train(config(method, tmp_path), look)
    assert len(seen) == 2 * (2 if METHODS[method].first else 1)
    assert seen == [WAITS.get(method, set())] * len(seen)


def test_every_folder_has_a_config_here():
    folders = {leaf_of(method).parent.name for method in METHODS}
    assert folders == set(config_files.FOLDERS)


def test_iterations_with_plain_data(tmp_path):
    seen = []
    train(config('crd-kd', tmp_path, resident=False), lambda runner, waits: seen.append(waits))
    assert seen == [COPIES] * 2


def test_iterations_with_options(tmp_path):
    cfg = config('crd', tmp_path)
    cfg.model.update(channels_last=True, calculate_student_loss=False)
    seen = []
    train(cfg, lambda runner, waits: seen.append(waits))
    assert seen == [set(), set()]


def test_mixed_precision_reads_once_a_step():
    """torch's scaler asks whether a gradient is infinite."""
    layer = nn.Linear(3, 3).to('meta')
    wrapper = AmpOptimWrapper(dtype='bfloat16', optimizer=torch.optim.SGD(layer.parameters(), 0.1))
    with Watch(), pytest.raises(RuntimeError, match='meta') as error:
        wrapper.update_params(layer(empty(2, 3)).sum())
    assert any(entry.path.name == 'grad_scaler.py' for entry in error.traceback)


# --- resident data --------------------------------------------------------- #

CROP = dict(type='RandomCrop', crop_size=16, padding=2)
RESIZED = dict(type='RandomResizedCrop', scale=12, backend='pillow')
PIPELINES = dict(
    plain=[],
    crop=[CROP],
    flip=[dict(type='RandomFlip', prob=0.5, direction='vertical')],
    crop_and_flip=[CROP, dict(type='RandomFlip', prob=0.5, direction='diagonal')],
    resized=[RESIZED, dict(type='RandomFlip', prob=0.5)],
)


def resident(transforms):
    """Thirty digits that are held on the device."""
    ends = dict(type='Resize', scale=16), dict(type='PackInputs')
    dataset = ResidentDataset(
        dict(
            type='crd_plugin.Digits',
            num_train_per_class=3,
            pipeline=[ends[0], *transforms, ends[1]],
        )
    )
    dataset.set_seed(1)
    return dataset


def preprocessor(**arguments):
    """That of resident data, with labels as scores."""
    return MODELS.build(
        dict(
            type='crd_plugin.ResidentDataPreprocessor',
            num_classes=10,
            mean=[78.0] * 3,
            std=[81.4] * 3,
            to_onehot=True,
            **arguments,
        )
    ).to('meta')


@pytest.mark.parametrize('name', PIPELINES)
def test_resident_batches(name):
    transforms = PIPELINES[name]
    dataset, normalise = resident(transforms), preprocessor()

    def fetch():
        with Watch() as watch:
            batch = normalise(dataset.__getitems__(range(7)), True)
        samples = batch['data_samples']
        size = 12 if RESIZED in transforms else 16
        assert batch['inputs'].shape == (7, 3, size, size)
        for tensor in (
            batch['inputs'],
            samples.field('sample_idx'),
            samples.field('gt_label'),
            samples.field('gt_score'),
        ):
            assert tensor.is_meta
        # Ids stay on the host too, so that data samples can be made.
        assert [sample.sample_idx for sample in samples] == list(range(7))
        return watch.waits

    copied = Wait('copy', 'crd_plugin.datasets.resident')
    assert copied in fetch()  # reads the images
    assert fetch() == fetch() == set()
    # The numbers of an epoch are drawn on the host, at once.
    dataset.set_epoch(1)
    assert fetch() == fetch() == set()


@pytest.mark.parametrize('name', ['Mixup', 'CutMix', 'ResizeMix'])
def test_images_are_mixed_by_positions_of_the_host(name):
    """MMPretrain draws whom to mix with there; no config of ours mixes."""
    mix = preprocessor(batch_augments=dict(augments=dict(type=name, alpha=0.8)))
    batch = resident([]).__getitems__(range(7))
    with Watch(), pytest.raises(RuntimeError, match=f'batch_augments.{name.lower()}'):
        mix(batch, True)
