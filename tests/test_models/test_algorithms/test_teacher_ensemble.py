"""Ensembles of teachers: members, checkpoints, records, images, training runs."""

import copy
import os
import socket
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from crd_plugin.checkpoints.publish import publish_student
from crd_plugin.cli.dry_run import run_dry
from crd_plugin.fragments import join
from crd_plugin.registry import MODELS
from tests import small_runs
from tests.config_files import fragment


def ensemble(teacher=None, method='crd', **changes):
    """CRD, or KD, from teachers of the widths 12 and 9, or from given ones."""
    teacher = [small_runs.net(12), small_runs.net(9)] if teacher is None else teacher
    student, own = small_runs.net(6, dropout=0.2), fragment(f'{method}_ensemble')
    student['head']['loss'] = dict(type='mmpretrain.CrossEntropyLoss')
    if method == 'crd':
        own.distiller.distill_losses.loss_crd.update(embed_dim=8, num_negatives=8)
    networks = dict(architecture=student, teacher=teacher, input_shape=(3, 8, 8), **changes)
    return join(networks, own).to_dict()


def build(**changes):
    cfg = ensemble(**changes)
    for loss in cfg['distiller']['distill_losses'].values():
        if 'CRD' in loss['type']:
            loss.update(num_samples=20, exclude='instance')
    return MODELS.build(copy.deepcopy(cfg))


@pytest.fixture
def files(tmp_path):
    """Checkpoints of networks of the widths 12, 12 and 9."""
    paths = []
    for seed, width in enumerate((12, 12, 9)):
        torch.manual_seed(seed)
        paths.append(str(tmp_path / f'seed_{seed}.pth'))
        torch.save(dict(state_dict=MODELS.build(small_runs.net(width)).state_dict()), paths[-1])
    return paths


@pytest.mark.parametrize(
    'teacher, seeds',
    [(small_runs.net(12), (0, 1)), ([small_runs.net(12), small_runs.net(9)], (0, 2))],
)
def test_members_of_one_config_or_of_several(files, teacher, seeds):
    """As many as checkpoints, each with its own weights, which initialising keeps."""
    model = build(teacher=teacher, teacher_ckpt=[files[seed] for seed in seeds])
    model.init_weights()
    for member, seed in zip(model.teacher.members, seeds, strict=True):
        for name, value in torch.load(files[seed])['state_dict'].items():
            assert torch.equal(member.state_dict()[name], value), name
    model.train()
    assert not any(module.training for module in model.teacher.modules())
    batch = small_runs.batch()
    losses = model(*batch, mode='loss')
    assert set(losses) == {'student.loss', 'distill.loss_crd'}
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith('teacher.'), name
    records = model.distiller.get_record('feat', from_student=False, record_idx='all')
    for number, (record, member) in enumerate(zip(records, model.teacher.members, strict=True)):
        (alone,) = member.extract_feat(batch[0])
        assert torch.equal(record, alone) and not record.requires_grad
        assert model.distiller.get_record('feat', False, record_idx=number) is record


def test_each_member_is_given_the_view_and_its_own_normalisation():
    means = ([10.0] * 3, [90.0] * 3)
    teachers = [copy.deepcopy(small_runs.net(12)) for _ in means]
    for teacher, mean in zip(teachers, means):
        teacher['data_preprocessor'].update(mean=mean, std=[2.0] * 3)
    own = dict(type='mmpretrain.ClsDataPreprocessor', mean=[78.0] * 3, std=[81.4] * 3)
    view = dict(type='crd_plugin.ChannelView', channels=[2, 1, 0])
    model = build(teacher=teachers, data_preprocessor=own, teacher_view=view)
    seen = []
    for member in model.teacher.members:
        member.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    images = torch.rand(2, 3, 8, 8) * 255
    model.run_teacher((images - 78) / 81.4)
    for given, (mean, *_) in zip(seen, means, strict=True):
        expected = (images.flip(1) - mean) / 2
        torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-3)


def test_options_of_speed_reach_every_member(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, 'compile', lambda self, **kwargs: compiled.append(self))
    model = build(channels_last=True, compile=True)
    assert [member.backbone for member in model.teacher.members] == compiled[:2]
    for member in model.teacher.members:
        assert member.backbone.conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_one_member_equals_one_teacher(files):
    """CRD of an ensemble of one is CRD, connectors, bank and all."""
    single = small_runs.model(num_samples=20, exclude='instance', negatives='all')
    single = MODELS.build({**single, 'teacher_ckpt': files[0]}).eval()
    cfg = ensemble(teacher=small_runs.net(12), teacher_ckpt=files[:1])
    loss = cfg['distiller']['distill_losses']['loss_crd']
    loss.update(num_samples=20, exclude='instance', negatives='all', loss_weight=1.0)
    one = MODELS.build(cfg).eval()
    one.student.load_state_dict(single.student.state_dict())
    loss, other = one.distiller.distill_losses['loss_crd'], single.distiller
    loss.student_connectors['0'].load_state_dict(other.connectors['s'].state_dict())
    loss.teacher_connectors['0'].load_state_dict(other.connectors['t'].state_dict())
    loss.losses['0'].load_state_dict(other.distill_losses['loss_crd'].state_dict())
    batch = small_runs.batch()
    ours, theirs = (model(*batch, mode='loss') for model in (one, single))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value)


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(teacher=[]), 'teacher is an empty list, so the ensemble has no member'),
        (dict(teacher={}, teacher_ckpt=[]), 'teacher_ckpt is an empty list, so the ensemble has'),
        (dict(teacher_ckpt=[0]), r'teacher has 2 members, teacher_ckpt 1 checkpoints'),
        (dict(teacher_ckpt=[0, None]), r'teacher_ckpt\[1\] is None, so member 1 .* no checkpoint'),
        (dict(teacher_ckpt=['', 2]), r"teacher_ckpt\[0\] is '', so member 0 .* has no checkpoint"),
        (dict(teacher_ckpt=[0, 'link']), r'teacher_ckpt\[0\] and .*\[1\] are the same file'),
        (dict(teacher_ckpt=[0, 'gone.pth']), 'gone.pth does not exist'),
        (dict(teacher_ckpt=[0, 1]), 'Member 1 of the ensemble: teacher_ckpt=.*seed_1.pth does not'),
    ],
)
def test_bad_members(changes, message, files, tmp_path):
    if 'teacher_ckpt' in changes:
        (tmp_path / 'link.pth').symlink_to(files[0])
        names = dict(enumerate(files), link=str(tmp_path / 'link.pth'))
        checkpoints = [names.get(i, i) for i in changes['teacher_ckpt']]
        changes = dict(changes, teacher_ckpt=checkpoints)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        build(**changes)


def test_numbers_of_classes():
    """CRD reads features and does not mind; KD is refused when the model is built."""
    other = small_runs.net(12)
    other['head']['num_classes'] = 7
    build(teacher=[small_runs.net(12), other])
    build(teacher=[small_runs.net(12)] * 2, method='kd')
    with pytest.raises(ValueError, match=r'logits of \[10, 7\] classes by the teachers and 10 by'):
        build(teacher=[small_runs.net(12), other], method='kd')


def test_a_loss_for_one_teacher_has_to_name_it():
    cfg = ensemble(method='kd')
    mapping = cfg['distiller']['loss_forward_mappings']['loss_kd']
    del mapping['t_feats']['record_idx']
    with pytest.raises(ValueError, match=r'loss_kd.t_feats does not say which of the 2 teachers'):
        MODELS.build(copy.deepcopy(cfg))
    mapping['t_feats']['record_idx'] = 1
    MODELS.build(cfg)


def test_random_members_cause_a_warning(warned, files):
    build(teacher=small_runs.net(12), teacher_ckpt=files[:2]).init_weights()
    assert not warned
    build().init_weights()
    assert 'the teacher has random weights' in warned[0]


# --- runs ------------------------------------------------------------------ #


def test_resumed_run_and_published_student(tmp_path, files):
    """Four epochs, or two and two more; the student alone is what mmpretrain loads."""
    changes = dict(
        model=dict(_delete_=True, **ensemble(teacher=small_runs.net(12), teacher_ckpt=files[:2])),
        randomness=dict(seed=3),
    )
    # Resuming takes the teachers out of the checkpoint.
    small_runs.build(tmp_path / 'whole', **changes, train_cfg__max_epochs=2).train()
    small_runs.build(tmp_path / 'cut', **changes).train()
    runner = small_runs.build(tmp_path / 'cut', **changes, train_cfg__max_epochs=2, resume=True)
    runner.train()
    whole, cut = (small_runs.load(tmp_path / name / 'epoch_2.pth') for name in ('whole', 'cut'))
    assert whole['state_dict'].keys() == cut['state_dict'].keys()
    for name, value in whole['state_dict'].items():
        assert torch.equal(value, cut['state_dict'][name]), name
    bounds = {f'train/mi_bound_{i}' for i in range(2)}
    assert bounds <= set(runner.message_hub.log_scalars)

    published = publish_student(tmp_path / 'cut' / 'epoch_2.pth', tmp_path / 'student.pth')
    weights = small_runs.load(published)['state_dict']
    plain = MODELS.build(small_runs.net(6))
    plain.load_state_dict(weights)
    assert not any(key.startswith('members') for key in weights)


def _train_on_two_ranks(rank, folder):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2')
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=(Path(folder) / 'port').read_text())
    torch.set_num_threads(1)
    runner = small_runs.build(
        f'{folder}/run', model=dict(_delete_=True, **ensemble()), launcher='pytorch'
    )
    runner.train()
    losses = runner.model.module.distiller.distill_losses['loss_crd'].losses.values()
    torch.save([loss.bank.state_dict() for loss in losses], f'{folder}/rank_{rank}.pth')


@pytest.mark.slow
def test_two_ranks_hold_the_same_banks(tmp_path):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        (tmp_path / 'port').write_text(str(free.getsockname()[1]))
    first, second = small_runs.run_ranks(_train_on_two_ranks, tmp_path)
    assert len(first) == 2
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert not torch.equal(first[0]['student'], first[1]['student'])


def test_dry_run(tmp_path, files):
    """It shows every member, and what is wrong with its checkpoint."""

    def check(**changes):
        model = dict(_delete_=True, **ensemble(teacher=small_runs.net(12), **changes))
        return small_runs.config(tmp_path, model=model)

    report = run_dry(check(teacher_ckpt=files[:2]))
    assert report.problems == []
    assert report.teacher.count('sha256') == 2 and 'seed_1.pth' in report.teacher
    assert len(report.banks) == 2 and report.recorders[-1].output == '(4, 12), 2 times'
    assert [row.total for row in report.parts if row.part == 'teacher'] == [2 * 490]
    gone = check(teacher_ckpt=[files[0], 'gone.pth'])
    (problem,) = run_dry(gone).problems
    assert problem.startswith('model: teacher_ckpt=gone.pth does not exist')
    report = run_dry(gone, use_teacher_ckpt=False)
    assert report.problems == [] and len(report.banks) == 2
    url = check(teacher_ckpt=[files[0], 'https://example.invalid/teacher.pth'])
    assert isinstance(url, Config) and 'is not fetched here' in '\n'.join(run_dry(url).notes)
