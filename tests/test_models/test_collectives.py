"""Contrast over several processes equals that of one, on CPU."""

import copy
import functools

import pytest
import torch

from crd_plugin.models.losses import DenseCRDLoss
from tests import contrast_worker, small_runs
from tests.contrast_worker import KEYS, LOSS, MODES, SIZES, WORLD

BANK = 'distiller.distill_losses.loss_crd.bank.'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('ranks')


@pytest.fixture(scope='module')
def ranks(folder):
    """What each rank saw."""
    return small_runs.run_ranks(contrast_worker.work, folder)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_gathering(ranks, dtype):
    for rank, result in enumerate(ranks):
        found = result['gathering'][str(dtype)]
        assert found['sizes'] == [5, 2]
        assert found['own'] == ((0, 5), (5, 7))[rank]
        assert found['keys'].tolist() == KEYS + KEYS[:2]
        for feats, offset in zip(found['feats'], (0, 10)):
            assert feats.dtype == dtype
            assert feats[:, 1].tolist() == [offset] * 5 + [offset + 1] * 2
        # Weighted 1 to 7 on rank 0 and doubled on rank 1: thrice in all.
        expected = 3 * torch.arange(1, 8)[slice(*found['own'])]
        grad, unused = found['grads']
        assert grad.tolist() == expected[:, None].expand(-1, 3).tolist()
        assert unused.abs().sum() == 0


@pytest.mark.parametrize('sizes', SIZES)
@pytest.mark.parametrize('mode', MODES, ids=str)
def test_in_batch_equals_one_process(ranks, sizes, mode):
    """Loss, Z and, averaged by DDP, the gradient of both connectors."""
    objective, exclude, ids = mode
    single = contrast_worker.contrast_batches(
        contrast_worker.Connectors(objective, exclude),
        [contrast_worker.join(s) for s in contrast_worker.make_steps(sizes)],
        ids,
    )
    for step, alone in enumerate(single):
        seen = [rank['in_batch'][(sizes, *mode)][step] for rank in ranks]
        assert_like_one_process(seen, alone)
        if sizes == 'even':
            bounds = torch.stack([each['bound'] for each in seen])
            torch.testing.assert_close(bounds.mean(), alone['bound'])


def assert_like_one_process(seen, alone):
    """Compare a step of the ranks with one of all samples; only a loss of 0 has no gradient."""
    loss = torch.stack([each['loss'] for each in seen]).mean()
    torch.testing.assert_close(loss, alone['loss'], rtol=1e-12, atol=0)
    for each in seen:
        torch.testing.assert_close(
            each['log_mean'], alone['log_mean'], rtol=1e-13, atol=0, equal_nan=True
        )
        for key, grad in alone['grads'].items():
            assert bool(grad.abs().max() > 1e-3) == bool(alone['loss'] != 0)
            torch.testing.assert_close(each['grads'][key], grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('objective', ['nce', 'infonce'])
def test_a_rank_without_labelled_pixels_adds_nothing(ranks, objective, warned):
    """It takes part in every collective, also of the step that fixes Z."""
    model = contrast_worker.Connectors(objective, 'class', DenseCRDLoss)
    steps = [contrast_worker.join(step) for step in contrast_worker.make_label_maps()]
    single = contrast_worker.contrast_batches(model, steps, False)
    assert [bool(step['loss'] != 0) for step in single] == [True, True, True, False]
    assert not warned
    for step, alone in enumerate(single):
        seen = [rank['in_batch']['label maps', objective][step] for rank in ranks]
        assert_like_one_process(seen, alone)
        assert all(each['bound'] is None or each['bound'].isfinite() for each in seen)


def test_a_real_run_with_uneven_last_batches(ranks):
    first, second = (rank['trained'] for rank in ranks)
    assert any(key.endswith('log_mean') for key in first)
    assert any('connectors' in key for key in first)
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


@pytest.mark.parametrize('mode', MODES, ids=str)
def test_shards_equal_a_bank_in_one_piece(ranks, mode):
    """Loss, gradients of both embeddings, Z, and rows after each commit."""
    objective, exclude, given = mode
    steps = contrast_worker.make_bank_steps()
    single = contrast_worker.contrast_with_bank(
        contrast_worker.make_bank_loss(objective, exclude, sharded=False),
        [contrast_worker.join(step) for step in steps],
        given,
    )
    close = functools.partial(torch.testing.assert_close, equal_nan=True)
    for number, alone in enumerate(single):
        seen = [rank['with_shards'][mode]['steps'][number] for rank in ranks]
        sizes = [len(batch['sample_idx']) for batch in steps[number]]
        total = sum(sizes)
        for key in ('loss', 'bound'):
            mean = sum(each[key] * size for each, size in zip(seen, sizes)) / total
            close(mean, alone[key], rtol=1e-12, atol=0)
        for side, name in enumerate(('student', 'teacher')):
            # The mean over a rank's part of the batch divides by its size.
            grad = torch.cat([each['grads'][side] * size for each, size in zip(seen, sizes)])
            assert grad.abs().max() > 1e-3
            close(grad, alone['grads'][side] * total, rtol=1e-9, atol=1e-12)
            rows, log_z = alone['bank'][name], alone['bank'][f'log_z_{name}']
            for rank, each in enumerate(seen):
                # Between the ranks embeddings travel as float32.
                close(each['bank'][name], rows[rank::WORLD], rtol=0, atol=1e-7)
                close(each['bank'][f'log_z_{name}'], log_z, rtol=1e-13, atol=0)
    first, second = (rank['with_shards'][mode]['whole'] for rank in ranks)
    assert list(first) == ['student', 'teacher'] and not second
    for side, whole in first.items():
        for rank, each in enumerate(seen):
            assert torch.equal(whole[rank::WORLD], each['bank'][side])


@pytest.mark.parametrize('rule', ['sampled', 'shared'])
def test_draws_on_shards_have_the_expectation_of_all_rows(ranks, rule):
    loss = contrast_worker.make_bank_loss('nce', 'class', sharded=False)
    for rank, batch in enumerate(contrast_worker.make_bank_steps()[1]):
        expected = contrast_worker._value(loss.eval(), batch)
        drawn = ranks[rank]['with_shards'][rule]
        error = drawn.std() / len(drawn) ** 0.5
        assert error > 0
        assert (drawn.mean() - expected).abs() < 4 * error


def test_checkpoint_has_the_whole_bank(ranks, folder):
    """Rows of a sharded run are those of a run with a bank on each rank."""
    for number in (1, 2):
        plain, sharded = (
            small_runs.load(folder / name / f'epoch_{number}.pth')['state_dict']
            for name in ('plain', 'sharded')
        )
        assert set(plain) == set(sharded)
        for key, value in plain.items():
            torch.testing.assert_close(sharded[key], value, rtol=1e-3, atol=1e-4)
        assert sharded[BANK + 'teacher'].shape == (20, 8)


def test_resumed_by_as_many_ranks(ranks, folder):
    whole, resumed = (
        small_runs.load(folder / name / 'epoch_2.pth')['state_dict']
        for name in ('sharded', 'resumed')
    )
    for key, value in whole.items():
        assert torch.equal(resumed[key], value), key


@pytest.mark.parametrize('sharded', [True, False])
def test_resumed_by_one_process(ranks, folder, tmp_path, sharded):
    saved = folder / 'sharded/epoch_1.pth'
    rows = {}

    def look(runner):
        bank = runner.model.distiller.distill_losses['loss_crd'].bank
        rows.update(copy.deepcopy(bank.state_dict()))

    small_runs.train(
        tmp_path,
        small_runs.Watch('before_train', look),
        **{LOSS + 'negatives': 'all', LOSS + 'sharded': sharded},
        train_cfg__max_epochs=2,
        resume=True,
        load_from=str(saved),
    )
    state = small_runs.load(saved)['state_dict']
    for key, value in rows.items():
        assert torch.equal(value, state[BANK + key]), key
    last = small_runs.load(tmp_path / 'epoch_2.pth')['state_dict']
    assert last[BANK + 'student'].shape == (20, 8)
    assert not torch.equal(last[BANK + 'student'], state[BANK + 'student'])


def test_saved_by_iterations_after_validation_and_by_hand(ranks, folder):
    own = [rank['runs']['rows'] for rank in ranks]
    assert [len(rows) for rows in own] == [10, 10]
    saved = [folder / 'by_hand.pth', folder / 'iterations/iter_3.pth']
    saved += (folder / 'iterations').glob('best_accuracy_top1_iter_*.pth')
    assert len(saved) == 3
    for path in saved:
        state = small_runs.load(path)['state_dict']
        assert state[BANK + 'student'].shape == (20, 8)
        norms = state[BANK + 'teacher'].norm(dim=1)
        assert (norms > 0.5).all()
    state = small_runs.load(saved[0])['state_dict']
    for rank in range(WORLD):
        assert torch.equal(state[BANK + 'student'][rank::WORLD], own[rank])
    # Only rank 0 saves, and it says what every rank has to do first.
    messages = [rank['runs']['message'] for rank in ranks]
    assert messages[1] == ''
    assert 'loss_crd.bank are split over 2 ranks and were not gathered' in messages[0]
    assert 'save within gather_rows_for_checkpoint()' in messages[0]
    for rank in ranks:
        assert "CheckpointHook would save one rank's part of" in rank['runs']['refused']
