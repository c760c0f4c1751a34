"""Runs with a sharded bank in one process, and what is refused."""

import pytest
import torch

from tests import small_runs

LOSS = 'model__distiller__distill_losses__loss_crd__'
HOOK = dict(type='crd_plugin.MemoryBankHook', interval=1)


def build(work_dir, sharded=True, **changes):
    """A runner without validation."""
    return small_runs.build(
        work_dir, **{**small_runs.without_validation(), LOSS + 'sharded': sharded, **changes}
    )


@pytest.mark.parametrize('negatives', ['all', 'shared', 'sampled'])
def test_one_process_trains_as_with_a_bank_in_one_piece(tmp_path, negatives):
    found = []
    for sharded in (False, True):
        folder = tmp_path / str(sharded)
        build(folder, sharded, **{LOSS + 'negatives': negatives}).train()
        found.append(small_runs.load(folder / 'epoch_1.pth')['state_dict'])
    plain, sharded = found
    assert set(plain) == set(sharded)
    for key, value in plain.items():
        torch.testing.assert_close(sharded[key], value, rtol=1e-4, atol=1e-5)
    text = next((tmp_path / 'True').glob('*/*.log')).read_text()
    assert '20 rows of width 8 per side' in text
    assert 'mi_bound' in small_runs.scalars(tmp_path / 'True')[0]


def test_checkpoints_of_either_kind_are_resumed(tmp_path):
    build(tmp_path / 'first', False).train()
    saved = tmp_path / 'first/epoch_1.pth'
    build(
        tmp_path / 'second', True, train_cfg__max_epochs=2, resume=True, load_from=str(saved)
    ).train()
    build(
        tmp_path / 'third',
        False,
        train_cfg__max_epochs=3,
        resume=True,
        load_from=str(tmp_path / 'second/epoch_2.pth'),
    ).train()
    key = 'distiller.distill_losses.loss_crd.bank.log_z_student'
    states = [
        small_runs.load(path)['state_dict'] for path in (saved, tmp_path / 'third/epoch_3.pth')
    ]
    assert torch.equal(states[0][key], states[1][key])


def test_a_moving_average_is_refused(tmp_path):
    runner = build(tmp_path, custom_hooks=[HOOK, dict(type='EMAHook')])
    with pytest.raises(ValueError, match="EMAHook would save one rank's part of .*bank"):
        runner.train()


def test_more_negatives_than_rows_are_told(tmp_path):
    build(tmp_path, **{LOSS + 'num_negatives': 19}).train()
    text = next(tmp_path.glob('*/*.log')).read_text()
    assert 'num_negatives=19 is more than the 18 possible neg' in text
