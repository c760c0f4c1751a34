"""A real run of in-batch CRD: no bank, no ids, a small checkpoint."""

import torch

from tests import small_runs
from tests.contrast_worker import config_without_bank as config_of

KEY = 'distiller.distill_losses.loss_crd.log_mean'
HOOK = dict(type='crd_plugin.MemoryBankHook', interval=1)


def test_run_and_resume(tmp_path):
    """Two epochs in one go equal one and a resumed one."""
    runner = small_runs.build(tmp_path / 'whole', **config_of(), train_cfg__max_epochs=2)
    runner.train()
    whole = small_runs.load(tmp_path / 'whole/epoch_2.pth')['state_dict']
    assert whole[KEY].shape == (2,) and whole[KEY].isfinite().all()
    # Nothing grows with the data set.
    assert all(20 not in value.shape for value in whole.values())
    assert [key for key in whole if 'loss_crd' in key] == [KEY]
    first = small_runs.load(tmp_path / 'whole/epoch_1.pth')['state_dict']
    assert torch.equal(first[KEY], whole[KEY])

    resumed = small_runs.build(
        tmp_path / 'resumed',
        **config_of(),
        train_cfg__max_epochs=2,
        resume=True,
        load_from=str(tmp_path / 'whole/epoch_1.pth'),
    )
    resumed.train()
    for key, value in small_runs.load(tmp_path / 'resumed/epoch_2.pth')['state_dict'].items():
        assert torch.equal(value, whole[key]), key


def test_the_hook_leaves_it_alone(tmp_path):
    plain = small_runs.build(tmp_path / 'plain', **config_of('infonce'))
    plain.train()
    changes = config_of('infonce')
    changes['custom_hooks'] = [HOOK]
    hooked = small_runs.build(tmp_path / 'hooked', **changes)
    hooked.train()
    for first, second in zip(plain.model.parameters(), hooked.model.parameters()):
        assert torch.equal(first, second)


def test_beside_a_loss_with_a_bank(tmp_path):
    """The bank is sized and committed, the other loss is not touched."""
    changes = config_of()
    cfg = small_runs.config(tmp_path)
    distiller = cfg.model.distiller.to_dict()
    distiller['distill_losses']['loss_batch'] = changes['model']['distiller']['distill_losses'][
        'loss_crd'
    ]
    distiller['loss_forward_mappings']['loss_batch'] = changes['model']['distiller'][
        'loss_forward_mappings'
    ]['loss_crd']
    runner = small_runs.build(
        tmp_path, **small_runs.without_validation(), model__distiller=dict(distiller, _delete_=True)
    )
    runner.train()
    losses = runner.model.distiller.distill_losses
    assert losses['loss_crd'].bank.num_samples == 20
    assert losses['loss_crd'].bank.has_z and losses['loss_batch'].log_mean.isfinite().all()
    line = small_runs.scalars(tmp_path)[-1]
    assert {'mi_bound_at_crd', 'mi_bound_at_batch'} <= set(line)
