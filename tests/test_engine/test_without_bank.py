"""A real run of in-batch CRD: no bank, no ids, a small checkpoint."""

import re

import torch
from mmengine.config import Config

from crd_plugin.cli.dry_run import run_dry
from tests import small_runs

LOSS = 'model__distiller__distill_losses__loss_crd'
KEY = 'distiller.distill_losses.loss_crd.batch.log_mean'
HOOK = dict(type='crd_plugin.MemoryBankHook', interval=1)


def config_of(objective='nce', **loss):
    """Changes that make a run one without ids and labels of the batch."""
    model = small_runs.model()
    distiller = model['distiller']
    distiller['distill_losses']['loss_crd'] = dict(
        type='crd_plugin.CRDLoss',
        embed_dim=8,
        negatives='batch',
        exclude='instance',
        objective=objective,
        **loss,
    )
    for name in ('ids', 'labels'):
        del distiller['student_recorders'][name]
    for name in ('sample_idx', 'labels'):
        del distiller['loss_forward_mappings']['loss_crd'][name]
    dataset = dict(
        _delete_=True,
        type='crd_plugin.Digits',
        num_train_per_class=2,
        pipeline=[dict(type='PackInputs')],
    )
    return dict(
        small_runs.without_validation(),
        model=dict(model, _delete_=True),
        custom_hooks=[],
        train_dataloader__dataset=dataset,
    )


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
    text = next((tmp_path / 'hooked').glob('*/*.log')).read_text()
    assert 'MemoryBankHook found no memory bank in the model' in text
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
    assert losses['loss_crd'].bank.has_z and losses['loss_batch'].batch.has_z
    line = small_runs.scalars(tmp_path)[-1]
    assert {'mi_bound_at_crd', 'mi_bound_at_batch'} <= set(line)


def test_the_leaf_of_the_documentation(tmp_path, monkeypatch):
    """docs/choosing.md: without labels; its links and paths exist."""
    docs = small_runs.REPO / 'docs'
    text = (docs / 'choosing.md').read_text()
    for link in re.findall(r'\]\((?!http|#)([^)#]+)\)', text):
        assert (docs / link).is_file(), link
    for path in re.findall(r'(?:configs|tools)/[\w./-]+\b', text):
        assert (small_runs.REPO / path).exists(), path
    (leaf,) = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    base = re.search("_base_ = '(.*)'", leaf)[1]
    path = tmp_path / 'leaf.py'
    path.write_text(leaf.replace(base, str(small_runs.REPO / 'configs/crd' / base)))
    monkeypatch.chdir(tmp_path)
    cfg = Config.fromfile(path)
    assert cfg.find_unused_parameters
    report = run_dry(cfg, use_teacher_ckpt=False)
    assert report.problems == []
    rows = {row.name: row for row in report.losses}
    assert set(rows) == {'distill.loss_crd'}
    assert rows['distill.loss_crd'].student > 0
    assert [row.name for row in report.recorders] == ['feat', 'feat']
