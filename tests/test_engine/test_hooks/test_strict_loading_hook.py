"""load_from, --resume and testing take weights that fit, and refuse the rest."""

import pytest
import torch

from crd_plugin.engine import StrictLoadingHook
from tests import small_runs
from tests.small_runs import Watch

BANK = 'distiller.distill_losses.loss_crd.bank.'
CLASSES = 'train_dataloader__dataset__dataset__num_train_per_class'


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Checkpoint of a distillation."""
    folder = tmp_path_factory.mktemp('run')
    small_runs.train(folder)
    return folder / 'epoch_1.pth'


def build(folder, path, **changes):
    """Runner with the hook."""
    return small_runs.build(folder, StrictLoadingHook(), load_from=str(path), **changes)


def train(folder, path, *hooks, **changes):
    return small_runs.train(folder, StrictLoadingHook(), *hooks, load_from=str(path), **changes)


def resaved(run, path, change=lambda name: name, **content):
    """Save a checkpoint with other names and content."""
    saved = small_runs.load(run)
    saved['state_dict'] = {change(k): v for k, v in saved['state_dict'].items() if change(k)}
    torch.save({**saved, **content}, path)
    return path


PLAIN = dict(model=dict(_delete_=True, **small_runs.net(6)))
WIDE = dict(model__architecture__backbone__width=7, model__architecture__head__in_channels=7)
OTHER_TEACHER = dict(model__teacher=small_runs.net(13))
CLASSES_12 = dict(model__architecture__head__num_classes=12, model__teacher__head__num_classes=12)
GIVE = 'Give the config that it was trained with'


@pytest.mark.parametrize(
    'changes, message',
    [
        (
            PLAIN,
            '^checkpoint .*epoch_1.pth does not fit the model of the config: .*publish_student.py '
            'first, or use the config of that distillation',
        ),
        (WIDE, f'other shapes architecture.*{GIVE}'),
        (OTHER_TEACHER, r'instead of \(8, 13\) and \d+ more'),
    ],
    ids=['plain', 'width', 'teacher'],
)
def test_testing(tmp_path, run, changes, message):
    with pytest.raises(ValueError, match=message):
        build(tmp_path, run, **changes).test()


def test_classes_that_are_tested_have_the_numbers_of_the_training(tmp_path, run):
    """Other names may be meant; a name of the training at another number is not."""
    for classes, fault in (
        ('abcdefghij', ''),
        ('0123456798', "'9' is class 8, in the checkpoint class 9, so a label means something"),
    ):
        changes = dict(test_dataloader__dataset__metainfo=dict(classes=tuple(classes)))
        runner = build(tmp_path / classes, run, **changes)
        if not fault:
            runner.test()
            continue
        with pytest.raises(ValueError, match=f'^test_dataloader.dataset: {fault}'):
            runner.test()


@pytest.mark.parametrize(
    'changes, message',
    [
        (WIDE, f'^load_from .* {GIVE}.$'),
        (
            OTHER_TEACHER,
            f'{GIVE}; or take the student out with tools/.* and give it as model.student_ckpt.$',
        ),
        (
            CLASSES_12,
            rf'The number of classes differs, 10 instead of 12\. {GIVE}; or leave load_from out '
            r'and take the backbone alone: model.architecture.backbone.init_cfg=dict\('
            r"type='Pretrained', checkpoint=FILE, prefix='architecture.backbone'\).$",
        ),
        (dict(WIDE, resume=True), f'^--resume .* {GIVE}.$'),
    ],
    ids=['width', 'teacher', 'classes', 'resumed'],
)
def test_training(tmp_path, run, changes, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path, run, **changes)


def test_what_fits_is_tested(tmp_path, run):
    expected = build(tmp_path, run).test()
    old = resaved(run, tmp_path / 'old.pth', 'module.{}'.format)
    assert build(tmp_path, old).test() == expected
    weights = small_runs.load(run)['state_dict']
    weights['data_preprocessor.mean'] = torch.ones(3)
    torch.save(weights, tmp_path / 'bare.pth')
    assert build(tmp_path, tmp_path / 'bare.pth').test() == expected
    # The hook unwraps the model of test-time augmentation.
    tta = dict(type='mmpretrain.AverageClsScoreTTA', module=small_runs.model())
    runner = build(tmp_path, run, model=dict(_delete_=True, **tta))
    runner.load_or_resume()
    assert torch.equal(
        runner.model.module.student.head.fc.weight, weights['architecture.head.fc.weight']
    )


def test_plain_load_from_with_another_head(tmp_path, run):
    path = resaved(run, tmp_path / 'plain.pth', lambda k: k.partition('architecture.')[2])
    changes = {**PLAIN, 'custom_hooks': []}
    train(tmp_path, path, **changes)
    changes['model__head__num_classes'] = 12
    with pytest.raises(
        ValueError,
        match=r'The number of classes differs, 10 instead of 12\. .*model.backbone.init_cfg=dict\('
        r"type='Pretrained', checkpoint=FILE, prefix='backbone'\)",
    ):
        train(tmp_path, path, **changes)


@pytest.mark.parametrize('change', ['same data', 'other data', 'no bank'])
@pytest.mark.parametrize('hooks', [[], [dict(type='EMAHook')]])
def test_load_from_leaves_the_bank_fresh(tmp_path, run, change, hooks):
    rows = []

    def look(runner):
        bank = runner.model.distiller.distill_losses['loss_crd'].bank
        rows.append(bank.student.clone())
        assert bank.keep_rows and not bank.has_z

    changes = dict(
        custom_hooks=[dict(type='crd_plugin.MemoryBankHook', interval=1), *hooks],
        **({CLASSES: 3} if change == 'other data' else {}),
    )
    path = run
    if change == 'no bank':
        path = resaved(run, tmp_path / 'a.pth', lambda k: k if '.bank.' not in k else '')
    small_runs.train(tmp_path / 'fresh', Watch('before_train', look), **changes)
    train(tmp_path / 'loaded', path, Watch('before_train', look), **changes)
    assert torch.equal(*rows)
    log = next((tmp_path / 'loaded').glob('*/*.log')).read_text()
    assert f'the rows of the memory bank {BANK[:-1]} are fresh' in log


def test_resuming_needs_a_training_state(tmp_path, run):
    path = resaved(run, tmp_path / 'a.pth', meta=dict(), message_hub=None)
    with pytest.raises(ValueError, match='no state of a training .* set load_from instead'):
        train(tmp_path, path, resume=True)
