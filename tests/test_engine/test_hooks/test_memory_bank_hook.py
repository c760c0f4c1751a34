"""MemoryBankHook in real training runs."""

import copy
import math

import pytest
import torch
from mmengine.runner import BaseLoop
from mmpretrain.registry import DATASETS
from mmpretrain.structures import DataSample

from crd_plugin.datasets import Digits
from crd_plugin.engine import MemoryBankHook
from crd_plugin.models import MemoryBank
from crd_plugin.models.losses import captured_step, crd_loss
from crd_plugin.ops import last_occurrence, momentum_rows
from tests import small_runs
from tests.small_runs import Watch

HOOK = dict(type='crd_plugin.MemoryBankHook', interval=1)
LOSS = 'model__distiller__distill_losses__loss_crd__'
INNER = 'train_dataloader__dataset__dataset__'
THREES = {f'{INNER}digits': [3], f'{INNER}num_train_per_class': 20}


@DATASETS.register_module()
class SeveralDigits(Digits):
    def load_data_list(self) -> list[dict]:
        infos = super().load_data_list()
        return [
            dict(info, gt_label=[info['gt_label'], 0][: 1 + i % 2]) for i, info in enumerate(infos)
        ]


@DATASETS.register_module()
class BareDigits(Digits):
    def load_data_list(self) -> list[dict]:
        return [dict(img=info['img']) for info in super().load_data_list()]


def _bank(runner, name='loss_crd'):
    return runner.model.distiller.distill_losses[name].bank


QUIET = {'default_hooks__checkpoint': None, **small_runs.without_validation()}


def _quiet(tmp_path, *hooks, **changes):
    return small_runs.build(tmp_path, *hooks, **{**QUIET, **changes})


def _train(tmp_path, *hooks, **changes):
    return small_runs.train(tmp_path, *hooks, **{**QUIET, **changes})


def wrapped():
    return small_runs.config('.').train_dataloader.dataset


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """Checkpoint of one epoch, and the work dir it lies in."""
    work_dir = tmp_path_factory.mktemp('trained')
    small_runs.build(work_dir).train()
    return work_dir / 'epoch_1.pth'


# --- sizing ----------------------------------------------------------------


def test_bank_is_sized_after_the_loop_is_built(tmp_path):
    sizes = []

    def look(runner):
        bank, dataset = _bank(runner), runner.train_dataloader.dataset
        assert isinstance(runner._train_loop, BaseLoop) and not runner._has_loaded
        assert not bank.has_z and bank.labels.tolist() == dataset.get_gt_labels().tolist()
        assert float(bank.student.norm(dim=1).mean()) == pytest.approx(1, abs=0.1)
        sizes.append(bank.num_samples)

    runner = _quiet(tmp_path, Watch('before_run', look))
    assert _bank(runner).num_samples == 0
    runner.train()
    assert sizes == [small_runs.NUM_SAMPLES] == [len(runner.train_dataloader.dataset)]


def test_seed_decides_the_fresh_rows(tmp_path):
    first, again, other = (
        _bank(_train(tmp_path, randomness=dict(seed=seed), train_cfg__max_epochs=0)).student
        for seed in (3, 3, 4)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_copies_can_share_a_row(tmp_path):
    """RepeatDataset outside the wrapper: the ids are those inside."""
    repeated = dict(_delete_=True, type='RepeatDataset', times=3, dataset=wrapped())
    runner = _train(tmp_path, train_dataloader__dataset=repeated)
    assert len(runner.train_dataloader.dataset) == 60
    assert _bank(runner).num_samples == 20


# --- commits ---------------------------------------------------------------


@pytest.mark.parametrize('counts', [1, 2])
def test_every_iteration_is_committed(tmp_path, counts):
    """Also while gradients are accumulated."""
    steps = []

    def before(runner, *args, **kwargs):
        bank = _bank(runner)
        steps.append(
            dict(pending=bank.pending, student=bank.student.clone(), teacher=bank.teacher.clone())
        )

    def after(runner, *args, **kwargs):
        bank, step = _bank(runner), steps[-1]
        update = step['pending']
        assert bank.pending is None and bank.has_z
        ids, last = update.sample_idx, last_occurrence(update.sample_idx)
        for name in ('student', 'teacher'):
            expected = step[name]
            expected[ids] = momentum_rows(expected[ids], getattr(update, name)[last], 0.5)
            assert torch.equal(getattr(bank, name), expected)
        step['z'] = bank.log_z_student.clone(), bank.log_z_teacher.clone()
        step['weight'] = runner.model.student.head.fc.weight.detach().clone()

    first = Watch('after_train_iter', before, priority='VERY_HIGH')
    last = Watch('after_train_iter', after)
    _train(tmp_path, first, last, optim_wrapper__accumulative_counts=counts)
    assert len(steps) == small_runs.STEPS
    ids = torch.cat([step['pending'].sample_idx for step in steps])
    assert sorted(ids.tolist()) == list(range(small_runs.NUM_SAMPLES))
    # Partition constants come from the first step alone.
    assert steps[0]['pending'].log_z is not None
    assert all(step['pending'].log_z is None for step in steps[1:])
    assert all(step['z'] == steps[0]['z'] for step in steps)
    moved = [not torch.equal(a['weight'], b['weight']) for a, b in zip(steps, steps[1:])]
    assert moved == [True, counts == 1, True]


def test_two_banks_are_kept_apart(tmp_path):
    distiller = small_runs.distiller()
    mapping = distiller['loss_forward_mappings']['loss_crd']
    runner = _train(
        tmp_path,
        model__distiller__distill_losses__loss_crd_2={
            **distiller['distill_losses']['loss_crd'],
            'momentum': 0.0,
        },
        model__distiller__loss_forward_mappings__loss_crd_2=mapping,
    )
    first, second = _bank(runner), _bank(runner, 'loss_crd_2')
    assert first.has_z and second.has_z
    assert not torch.equal(first.student, second.student)
    bounds = {key for key in small_runs.scalars(tmp_path)[-1] if key.startswith('mi_bound')}
    assert bounds == {'mi_bound_at_crd', 'mi_bound_at_crd_2'}


def test_rows_that_a_captured_step_wrote_are_not_written_again(tmp_path, monkeypatch):
    """The hook still looks at the step, logs its bound and clears it."""
    monkeypatch.setattr(crd_loss, 'check_fast_paths', lambda *args: None)
    monkeypatch.setattr(captured_step, '_capture', lambda function, inputs: function)
    runs, lines = [], []
    for option in (False, True):
        runs.append(_train(tmp_path / str(option), **{f'{LOSS}cuda_graph': option}))
        lines.append([line['mi_bound'] for line in small_runs.scalars(tmp_path / str(option))])
    plain, captured = map(_bank, runs)
    assert captured.pending is None
    torch.testing.assert_close(captured.state_dict(), plain.state_dict())
    assert lines[1] == pytest.approx(lines[0]) and len(lines[0]) == small_runs.STEPS


# --- log -------------------------------------------------------------------


def test_mutual_information_is_logged_and_not_trained_on(tmp_path):
    bounds = []

    def look(runner, *args, **kwargs):
        loss = runner.model.distiller.distill_losses['loss_crd']
        bounds.append(float(loss.mi_bound))

    _train(tmp_path, Watch('after_train_iter', look))
    lines = small_runs.scalars(tmp_path)
    assert len(lines) == small_runs.STEPS
    for line, bound in zip(lines, bounds):
        assert line['mi_bound'] == pytest.approx(bound, rel=1e-6)
        assert bound <= math.log(8)
        assert not any('loss' in key for key in line if 'mi_bound' in key)
        assert line['loss'] == pytest.approx(
            line['student.loss'] + line['distill.loss_crd'], rel=1e-6
        )
    text = next(tmp_path.glob('*/*.log')).read_text()
    assert f'mi_bound: {bounds[-1]:.4f}' in text
    assert '20 rows of width 8 per side' in text


def test_interval_spaces_the_looks_and_few_rows_are_told(tmp_path):
    _train(tmp_path, custom_hooks=[{**HOOK, 'interval': 3}], **{f'{LOSS}num_negatives': 19})
    bounds = [line['mi_bound'] for line in small_runs.scalars(tmp_path)]
    # Iterations 1 and 3 of 4; the log repeats the latest.
    assert bounds[0] == bounds[1] != bounds[2] == bounds[3]
    text = next(tmp_path.glob('*/*.log')).read_text()
    assert 'num_negatives=19 is more than the 18 possible negatives' in text
    with pytest.raises(ValueError, match='interval is 0, expected at least'):
        MemoryBankHook(interval=0)


def test_a_model_without_bank_is_left_alone(tmp_path):
    """As a default hook it stands beside any model, with any other hook."""
    model = {**small_runs.net(6), '_delete_': True}
    _train(tmp_path, model=model, custom_hooks=[HOOK, dict(type='SyncBuffersHook')])


@pytest.mark.parametrize('negatives', ['all', 'shared', 'sampled'])
def test_a_sharded_bank_in_one_process_equals_one_in_one_piece(tmp_path, negatives):
    states = [
        _train(tmp_path, **{f'{LOSS}sharded': sharded, f'{LOSS}negatives': negatives}).model
        for sharded in (False, True)
    ]
    plain, sharded = (model.state_dict() for model in states)
    torch.testing.assert_close(dict(sharded), dict(plain), rtol=1e-4, atol=1e-5)


# --- a runner used in any order --------------------------------------------


def test_a_runner_may_be_used_in_any_order(tmp_path):
    """Validation and testing touch no bank, before or after training."""
    seen = []

    def look(runner):
        bank = _bank(runner)
        seen.append((bank.num_samples, bank.has_z, bank.keep_rows))

    runner = small_runs.build(tmp_path, Watch('after_run', look), default_hooks__checkpoint=None)
    runner.val()
    runner.train()
    state = copy.deepcopy(_bank(runner).state_dict())
    runner.test()
    runner.val()
    assert seen == [(0, False, False)] + [(20, True, True)] * 3
    torch.testing.assert_close(_bank(runner).state_dict(), state, rtol=0, atol=0)


# --- what is refused -------------------------------------------------------


REFUSED = {
    'another size': (
        {f'{LOSS}num_samples': 21},
        r'num_samples of .*loss_crd\.bank is 21, the training set has 20 samples; set it to',
    ),
    'no hook': (
        dict(custom_hooks=[]),
        r"without rows: MemoryBankHook is missing; add memory_bank=dict\(type='crd_plugin.Memory",
    ),
    'two hooks': (dict(custom_hooks=[HOOK, HOOK]), 'registered 2 times, expected once'),
    'averaged buffers': (
        dict(custom_hooks=[HOOK, dict(type='SyncBuffersHook')]),
        'SyncBuffersHook averages every buffer.*remove it from custom_hooks',
    ),
    'moving average of shards': (
        {f'{LOSS}sharded': True, 'custom_hooks': [HOOK, dict(type='EMAHook')]},
        "EMAHook would save one rank's part of .*bank",
    ),
    'no ids': (
        dict(train_dataloader__dataset={**wrapped().dataset, '_delete_': True}),
        "train_dataloader.dataset is a Digits.*wrap it: .*type='crd_plugin.SampleIndexDataset'",
    ),
    # Two wrapped sets side by side would share their ids.
    'parts with ids': (
        dict(
            train_dataloader__dataset=dict(
                _delete_=True, type='ConcatDataset', datasets=[wrapped(), wrapped()]
            )
        ),
        'dataset is a ConcatDataset',
    ),
    'graph': ({f'{LOSS}cuda_graph': True}, r'cuda_graph=True needs a GPU, the memory bank is on c'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_refused_before_training(tmp_path, name):
    changes, message = REFUSED[name]
    runner = _quiet(tmp_path, **changes)
    if name != 'no hook':
        runner.model.train_step = None
    with pytest.raises((ValueError, RuntimeError), match=message):
        runner.train()


IN_BATCH = {f'{LOSS}negatives': 'batch', f'{LOSS}num_negatives': None}


def test_an_in_batch_loss_on_a_device_is_looked_at(tmp_path):
    """A forward pass there does not look itself; the hook does, at its interval."""
    looks = []

    def watch(runner):
        loss = runner.model.distiller.distill_losses['loss_crd']
        loss.warn_if_alone = lambda: looks.append(runner.iter)

    changes = {'custom_hooks': [{**HOOK, 'interval': 2}], **IN_BATCH}
    _train(tmp_path, Watch('before_train', watch), **changes)
    by_the_loss_itself = list(range(small_runs.STEPS))
    assert sorted(looks) == sorted([*by_the_loss_itself, 0, 1, 3])


@pytest.mark.parametrize('in_batch', [False, True], ids=['bank', 'batch'])
@pytest.mark.parametrize(
    'kind, messages',
    [
        # The recorder of labels and its mapping stay in the config.
        ('SeveralDigits', ["exclude='class' needs labels: SeveralDigits", 'labels is None, but']),
        ('BareDigits', ["exclude='class' needs labels: BareDigits has no l", 'labels is None']),
        ('Digits', ['labels holds 1 class over 20 rows', 'loss_crd: all 20 .* are of class 3']),
    ],
)
def test_labels_that_tell_no_classes(kind, messages, in_batch, tmp_path):
    data = THREES if kind == 'Digits' else {f'{INNER}type': kind}
    data = {**data, 'model__calculate_student_loss': False, **(IN_BATCH if in_batch else {})}
    with pytest.raises(ValueError, match=f"{messages[in_batch]}.*'instance'"):
        _train(tmp_path, **data)
    runner = _train(tmp_path, **data, **{f'{LOSS}exclude': 'instance'})
    assert small_runs.scalars(tmp_path)[-1]['distill.loss_crd'] > 0
    if not in_batch:
        assert len(_bank(runner).labels) == (20 if kind == 'Digits' else 0)


def _batch(*samples):
    """A batch of (id, label) as the loader gives it."""
    samples = [DataSample(metainfo=dict(sample_idx=i)).set_gt_label(label) for i, label in samples]
    return dict(inputs=[], data_samples=samples)


@pytest.mark.parametrize(
    'sample, message',
    [
        ((20, 1), 'sample_idx 20 is outside the memory bank of 20 rows; the'),
        ((-1, 1), 'sample_idx -1 is outside'),
        ((2**40, 1), 'sample_idx 1099511627776 is outside'),
        ((7, 9), "sample 7 has label 9, the memory bank's row has 3; the batch comes from another"),
    ],
)
def test_samples_of_other_data(sample, message):
    """On a device; on a CPU the loss itself looks at ids and labels."""
    hook, bank = MemoryBankHook(), MemoryBank(4, num_samples=20)
    hook._banks, hook._labels = dict(bank=bank.to('meta')), torch.arange(20) // 2
    hook.before_train_iter(None, 0, _batch((0, 0), (7, 3)))
    with pytest.raises(ValueError, match=message):
        hook.before_train_iter(None, 0, _batch((0, 0), sample))


# --- checkpoints -----------------------------------------------------------


@pytest.mark.parametrize(
    'changes, message',
    [
        (
            # K follows from the number of rows, and is not what is wrong.
            {f'{INNER}num_train_per_class': 3, f'{LOSS}num_negatives': None},
            'memory bank ".*loss_crd.bank" has 20 rows of width 8, this one 30 of width 8; resume '
            'with the training set',
        ),
        ({**THREES, f'{LOSS}exclude': 'instance'}, 'belongs to another data set or order'),
    ],
)
def test_resuming_with_other_data(tmp_path, checkpoint, changes, message):
    with pytest.raises(ValueError, match=message):
        _train(tmp_path, load_from=str(checkpoint), resume=True, **changes)


def _without_bank(checkpoint, path, part='.bank.'):
    saved = small_runs.load(checkpoint)
    weights = saved['state_dict']
    saved['state_dict'] = {key: value for key, value in weights.items() if part not in key}
    assert len(saved['state_dict']) < len(weights)
    torch.save(saved, path)
    return str(path)


@pytest.mark.parametrize('part', ['.bank.', '.bank.teacher', '.bank.log_z_student'])
def test_resume_needs_the_bank(tmp_path, checkpoint, part):
    path = _without_bank(checkpoint, tmp_path / 'no_bank.pth', part)
    message = 'has no whole memory bank ".*loss_crd.bank".*with load_from instead of --resume'
    with pytest.raises(ValueError, match=message):
        _train(tmp_path, load_from=path, resume=True)


@pytest.mark.parametrize(
    'name, value, before',
    [('temperature', 0.1, 0.07), ('num_negatives', 4, 8), ('momentum', 0.9, 0.5)],
)
def test_resuming_with_settings_that_belong_to_z(tmp_path, checkpoint, name, value, before):
    """They were taken silently, while rows and constants stayed those of the others."""
    changed = {f'{LOSS}{name}': value}
    message = (
        f'model.distiller.distill_losses.loss_crd.{name} is {value}, but the memory bank and its '
        f'constants Z are of a training with {before}; resume with that'
    )
    with pytest.raises(ValueError, match=message):
        _train(tmp_path, load_from=str(checkpoint), resume=True, **changed)
    if name == 'momentum':
        _train(tmp_path, load_from=str(checkpoint), **changed)


@pytest.mark.parametrize('given', [None, 7])
def test_evaluation_needs_no_bank(tmp_path, checkpoint, caplog, given):
    """One that the config has sized does not stop it either."""
    runner = small_runs.build(tmp_path, load_from=str(checkpoint), **{f'{LOSS}num_samples': given})
    runner.logger.addHandler(caplog.handler)
    metrics = runner.test()
    assert _bank(runner).num_samples == (given or 0)
    # Not a word about keys of the bank that do not fit.
    assert 'Load checkpoint from' in caplog.text
    assert 'bank' not in caplog.text
    logged = small_runs.scalars(checkpoint.parent)[-1]
    assert metrics['accuracy/top1'] == pytest.approx(logged['accuracy/top1'])
