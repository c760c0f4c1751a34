"""A real run of in-batch CRD: no bank, no ids, a small checkpoint."""

import torch

from tests import small_runs
from tests.contrast_worker import config_without_bank as config_of

KEY = 'distiller.distill_losses.loss_crd.log_mean'
HOOK = dict(type='crd_plugin.MemoryBankHook', interval=1)


def test_run_and_resume(tmp_path):
    """Two epochs in one go equal one and a resumed one."""
    two = dict(config_of(), train_cfg__max_epochs=2)
    small_runs.train(tmp_path / 'whole', **two)
    first, whole = (
        small_runs.load(tmp_path / f'whole/epoch_{epoch}.pth')['state_dict'] for epoch in (1, 2)
    )
    assert whole[KEY].shape == (2,) and whole[KEY].isfinite().all()
    # Nothing grows with the data set.
    assert all(20 not in value.shape for value in whole.values())
    assert [key for key in whole if 'loss_crd' in key] == [KEY]
    assert torch.equal(first[KEY], whole[KEY])

    saved = str(tmp_path / 'whole/epoch_1.pth')
    resumed = small_runs.train(tmp_path / 'resumed', **two, resume=True, load_from=saved)
    for key, value in resumed.model.state_dict().items():
        assert torch.equal(value, whole[key]), key


def test_the_hook_leaves_it_alone(tmp_path):
    plain, hooked = (
        small_runs.train(tmp_path / str(len(hooks)), **{**config_of(), 'custom_hooks': hooks})
        for hooks in ([], [HOOK])
    )
    for first, second in zip(plain.model.parameters(), hooked.model.parameters()):
        assert torch.equal(first, second)
