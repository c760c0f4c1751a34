"""A training step reads nothing back to the host: it runs without values.

All is run on torch's meta device, see tests/meta_device.py. Neither the data nor the objective nor
the hooks may ask for a number there, or mix tensors of host and device. The steps are those of the
real runner, loop and hooks, from the second iteration of an epoch on: at the first, and at every
``interval``, hooks look at numbers on purpose. What is waited for all the same is listed, with the
reason.

Not seen here: what a collective does inside; ``torch.compile``.
"""

import copy
import sys

import pytest
import torch
from mmengine.hooks import RuntimeInfoHook
from mmengine.registry import RUNNERS, DefaultScope
from mmengine.runner import Runner

from crd_plugin.cli.arguments import without_files
from crd_plugin.models.key_queue import KeyQueue
from crd_plugin.models.losses import InBatchCRDLoss
from crd_plugin.models.memory_bank import MemoryBank
from crd_plugin.registry import MODELS
from tests.config_files import APART, CONFIGS, parsed
from tests.meta_device import Wait, Watch, empty, replace_autocast

WIDTH, BATCH, STEPS = 8, 12, (1, 2)


def one_leaf_per_method():
    """A config of each method, of the digits where there is one, by the method's name.

    Of the pairs with CKTF one that chooses among blocks and one in stages.
    """
    leaves = {}
    digits = sorted(CONFIGS.glob('*/*_digits.py'))
    for path in digits + sorted(CONFIGS.glob('*/*_resnet32x4_resnet8x4_*_cifar100.py')):
        leaves.setdefault(path.stem.partition('_')[0], path)
    pairs = ('at-cktf', 'ab-cktf')
    return {m: path for m, path in leaves.items() if not m.endswith('-cktf') or m in pairs}


LEAVES = one_leaf_per_method()
# MMEngine's cast_data and MMPretrain's labels, with non_blocking=False: data of a plain loader
# come from the host. Resident data do without.
COPIES = {
    Wait('copy', 'mmengine.model.base_model.data_preprocessor'),
    Wait('copy', 'mmpretrain.models.utils.data_preprocessor'),
}
# CUDA's eigenvalue routine reports to the host whether it has converged.
WAITS = {'kdsvd': {Wait('_linalg_eigh', 'crd_plugin.ops.singular_vectors')}}


def replace_in_package(monkeypatch, **functions):
    """Replace functions that modules of the package have imported."""
    for name, module in list(sys.modules.items()):
        for key, function in functions.items():
            if name.startswith('crd_plugin') and hasattr(module, key):
                monkeypatch.setattr(module, key, function)


@pytest.fixture(autouse=True)
def meta_in_place_of_a_gpu(monkeypatch):
    replace_autocast(monkeypatch)
    # MMEngine reads the losses at the end of each iteration; nothing else may.
    monkeypatch.setattr(RuntimeInfoHook, 'after_train_iter', lambda *args, **kwargs: None)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


@pytest.fixture
def two_ranks(monkeypatch):
    """Two ranks with equal batches; how many rows each has, MemoryBankHook waits for."""
    replace_in_package(
        monkeypatch,
        get_world_size=lambda: 2,
        all_gather=lambda tensor: [tensor, tensor.clone()],
        gather_counts=lambda counts, device: [counts, counts],
    )


def banks_of(module):
    return [bank for bank in module.modules() if isinstance(bank, MemoryBank)]


def step(loss, batch=BATCH, **arguments):
    student, teacher = (empty(batch, WIDTH, requires_grad=True) for _ in '12')
    ids, labels = (empty(batch, dtype=torch.int64) for _ in '12')
    with Watch() as watch:
        value = loss(student, teacher, ids, labels, **arguments)
        value.backward()
        for bank in banks_of(loss):
            bank.commit()
    assert value.is_meta and student.grad.is_meta and teacher.grad.is_meta
    return watch.waits


def crd_loss(sizes=(60,) * 10, **arguments):
    """Build a loss on the device, with a bank of classes of these sizes, after its first step."""
    loss = MODELS.build(dict(type='crd_plugin.CRDLoss', embed_dim=WIDTH, **arguments))
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    for bank in banks_of(loss):
        bank.resize(len(labels), labels, seed=0)
    features = (torch.nn.functional.normalize(torch.randn(4, WIDTH)) for _ in '12')
    ids = torch.arange(4) * (len(labels) // 4)  # of several classes
    loss(*features, ids, labels[ids])
    for bank in banks_of(loss):
        bank.commit()
    return loss.to('meta')


@pytest.mark.parametrize('exclude', ['class', 'instance'])
@pytest.mark.parametrize('objective', ['nce', 'infonce'])
@pytest.mark.parametrize('negatives', ['sampled', 'shared', 'all'])
@pytest.mark.parametrize('sharded', [False, True], ids=['whole', 'sharded'])
def test_objective(sharded, negatives, objective, exclude):
    # Many rows and few, and more negatives than other classes have rows.
    for sizes, num_negatives in (((60,) * 10, 64), ((11, 6, 5), 11), ((7,) * 3, 32)):
        loss = crd_loss(
            sizes,
            num_negatives=num_negatives,
            negatives=negatives,
            objective=objective,
            exclude=exclude,
            sharded=sharded,
        )
        step(loss)  # It may build tables for a batch of this size.
        assert step(loss) == set()


@pytest.mark.parametrize('objective', ['nce', 'infonce'])
@pytest.mark.parametrize('negatives', ['sampled', 'shared', 'all'])
def test_what_a_graph_captures(negatives, objective):
    """Draw, objective, gradient and rows: no shape depends on values either."""
    loss = crd_loss(num_negatives=64, negatives=negatives, objective=objective)
    with Watch() as watch:
        value, gradient, _ = loss._whole_step(
            empty(2, BATCH, WIDTH), empty(BATCH, dtype=torch.int64)
        )
    assert watch.waits == set()
    assert value.shape == () and gradient.shape == (2, BATCH, WIDTH)


@pytest.mark.parametrize('sharded', [False, True], ids=['whole', 'sharded'])
@pytest.mark.parametrize('objective', ['nce', 'infonce'])
def test_given_negatives_and_other_batches(sharded, objective):
    loss = crd_loss(num_negatives=16, objective=objective, sharded=sharded)
    for batch in (BATCH, 5, 1):
        ids = empty(batch, 17, dtype=torch.int64)
        assert step(loss, batch, contrast_idx=ids) == set()


@pytest.mark.parametrize('exclude', ['class', 'instance'])
@pytest.mark.parametrize('objective', ['nce', 'infonce'])
def test_objective_without_a_bank(objective, exclude):
    loss = crd_loss(negatives='batch', objective=objective, exclude=exclude)
    for batch in (BATCH, BATCH, 5, 1):
        assert step(loss, batch) == set()


def config(method, tmp_path, **options):
    """Read a leaf, with small networks and the digits."""
    cfg, digits = (parsed(LEAVES[name]) for name in (method, 'kd'))
    if 'cocord' not in method:
        for key in ('train_dataloader', 'data_preprocessor'):
            cfg[key] = digits[key]
    for kind in ('val', 'test'):
        cfg.update({f'{kind}_{part}': None for part in ('cfg', 'dataloader', 'evaluator')})
    model = cfg.model
    for net, depth in ((model.get('architecture', model), 8), (model.get('teacher'), 14)):
        if net:
            net.backbone.depth = depth
    if 'teacher' in model:
        model.update(teacher_ckpt=without_files(model.teacher_ckpt), input_shape=(3, 16, 16))
    model.update(options)
    cfg.default_hooks.checkpoint = None
    # As torch does on a GPU, where it is asked for nothing.
    cfg.optim_wrapper.optimizer.update(foreach=True, fused=False)
    cfg.merge_from_dict(
        dict(log_level='ERROR', work_dir=str(tmp_path), experiment_name=f'meta-{tmp_path}')
    )
    return cfg


def train(cfg):
    """Run two iterations of each stage; return what the last of each waits for.

    Everything is built, and hooks are called, by the runner, on the host. The model moves when
    its loop would begin.
    """
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    found = []

    def run():
        runner.call_hook('before_train')
        for module in runner.model.modules():
            # As after the first step of a training, which reads whether Z could be set.
            if isinstance(module, MemoryBank):
                module.has_z = True
            elif isinstance(module, InBatchCRDLoss):
                module._has_z = True
        runner.model.to('meta')
        # The parameters have been replaced.
        runner.optim_wrapper = runner.build_optim_wrapper(copy.deepcopy(cfg.optim_wrapper))
        runner.param_schedulers = runner.build_param_scheduler(cfg.param_scheduler)
        for stage in getattr(runner.model, 'stages', None) or [None]:
            if stage is not None:
                runner.model.set_stage(stage)
            runner.call_hook('before_train_epoch')
            runner.model.train()
            batches = iter(runner.train_loop.dataloader)
            for number in STEPS:
                with Watch() as watch:
                    runner.train_loop.run_iter(number, next(batches))
            found.append(watch.waits)
            check_state(runner)

    runner.train_loop.run = run
    runner.train()
    return found


def check_state(runner):
    """All is on the device, has trained, and is left as after a step."""
    assert all(tensor.is_meta for tensor in runner.model.state_dict().values())
    assert runner.optim_wrapper.optimizer.state
    for module in runner.model.modules():
        if isinstance(module, (MemoryBank, KeyQueue)):
            assert module.pending is None


@pytest.mark.parametrize('method', LEAVES)
def test_iterations(method, tmp_path):
    cfg = config(method, tmp_path)
    stages = len(cfg.model.get('stages', [None]))
    assert train(cfg) == [COPIES | WAITS.get(method, set())] * stages


def test_every_folder_has_a_config_here():
    folders = {path.parent.name for path in CONFIGS.glob('*/*.py')} - {'_base_', *APART}
    assert folders == {path.parent.name for path in LEAVES.values()}


@pytest.mark.parametrize('method', ['crd', 'cocord'])
def test_iterations_of_several_ranks(method, tmp_path, two_ranks):
    assert train(config(method, tmp_path)) == [COPIES]


def test_iterations_with_resident_data(tmp_path, monkeypatch):
    """Nothing at all is waited for."""
    replace_in_package(monkeypatch, get_device=lambda: 'meta')
    cfg = config('crd', tmp_path)
    cfg.train_dataloader.update(collate_fn=dict(type='crd_plugin.whole_batch'))
    cfg.train_dataloader.dataset.type = 'crd_plugin.ResidentDataset'
    cfg.data_preprocessor.type = 'crd_plugin.ResidentDataPreprocessor'
    assert train(cfg) == [set()]
