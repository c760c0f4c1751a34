"""Every file under ``configs/``: it parses, builds, trains, is accounted for.

Each distinct network is built once, on the meta device where it can be, and
each pair and each distinct distiller goes through one dry run: a leaf is one
of these networks and distillers joined, which is checked too.
"""

import copy
import re
from pathlib import Path

import mmpretrain
import pytest
from mmengine.fileio import load
from mmengine.registry import DefaultScope

from crd_plugin.cli.dry_run import run_dry
from crd_plugin.cli.explain import check_names, walk
from tests.config_files import (
    BASES,
    CLASSES,
    COMPRESSION,
    CONFIGS,
    FOLDERS,
    LEAVES,
    METHODS,
    OTHERS,
    PAIRS,
    RATES,
    REPDISTILLER,
    SLOW_NETS,
    TRANSFER,
    ancestors,
    bases_of,
    build,
    facts,
    key_of,
    name_of,
    networks_of,
    parsed,
    plain,
)

# Chosen by a user in place of the plain file; run by
# tests/test_datasets/test_resident.py.
RESIDENT = {
    f'datasets/{name}_resident.py'
    for name in ('cifar10', 'cifar100', 'digits', 'stl10', 'stl10_unlabeled', 'tiny_imagenet')
}


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


# --- every file ------------------------------------------------------------ #


def test_there_are_no_other_files():
    assert set(CONFIGS.rglob('*.py')) == {*BASES, *LEAVES, *TRANSFER}
    assert {'kd', 'crd', 'vanilla'} <= set(FOLDERS)


@pytest.mark.parametrize('path', BASES, ids=name_of)
def test_base_parses(path):
    cfg = parsed(path)
    assert len(cfg) > 0
    for name in bases_of(path):
        assert name.is_file()


def test_every_base_is_used():
    used = set().union(*(ancestors(leaf) for leaf in (*LEAVES, *TRANSFER)))
    orphans = {path.relative_to(CONFIGS / '_base_').as_posix() for path in set(BASES) - used}
    assert orphans == RESIDENT


@pytest.mark.parametrize('leaf', LEAVES, ids=name_of)
def test_leaf_is_short(leaf):
    lines = leaf.read_text().splitlines()
    assert len(lines) <= 15
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize('leaf', LEAVES, ids=name_of)
def test_leaf_is_what_its_name_says(leaf):
    name = facts(leaf)
    cfg = parsed(leaf)
    method = METHODS[name['method']]
    assert leaf.parent.name == (method.folder or name['method'])
    files = {path.relative_to(CONFIGS).as_posix() for path in ancestors(leaf)}
    data = name['data'].replace('-', '_')
    assert f'_base_/datasets/{data}.py' in files
    # Not what a pair inherits from that of another data set.
    (pair,) = {
        base.stem
        for path in (leaf, *ancestors(leaf))
        if path.parent.name != 'pairs'
        for base in bases_of(path)
        if base.parent.name == 'pairs'
    }
    teacher, student, pair_data = pair.split('_')
    assert pair_data == name['data']
    model = cfg.model
    if name['method'] == 'vanilla':
        role = 'teacher' if name['nets'] == teacher else 'student'
        assert name['nets'] in (teacher, student)
        assert model == cfg[role]
        trained = name['nets']
    else:
        assert model.type == f'crd_plugin.{method.algorithm}'
        assert plain(model.architecture) == plain(cfg.student)
        trained = student
        if method.has_teacher:
            assert name['nets'] == f'{teacher}_{student}'
            assert plain(model.teacher) == plain(cfg.teacher)
        else:
            assert name['nets'] == student and 'teacher' not in model

    epochs = int(name['epochs']) + method.first
    assert cfg.train_cfg.max_epochs == epochs
    optimizer = cfg.optim_wrapper.optimizer
    assert optimizer.type == 'SGD' and optimizer.momentum == 0.9
    if name['data'] != 'digits':
        rate = 0.01 if trained in SLOW_NETS else RATES[name['schedule']]
        assert optimizer.lr == rate


@pytest.mark.parametrize('leaf', LEAVES, ids=name_of)
def test_batch_and_classes(leaf):
    name = facts(leaf)
    cfg = parsed(leaf)
    batch = int(name['batch'])
    assert cfg.train_dataloader.batch_size == batch
    total = batch * int(name['gpus'] or 1)
    assert cfg.auto_scale_lr == dict(base_batch_size=total)
    classes = CLASSES[name['data']]
    assert cfg.data_preprocessor.num_classes == classes
    for net in networks_of(cfg):
        assert net.head.num_classes == classes
        # Every stage, so that any method may read it.
        stages = net.backbone.out_indices
        assert tuple(stages) == tuple(range(len(stages))) and len(stages) > 2


@pytest.mark.parametrize('leaf', LEAVES, ids=name_of)
def test_weights_of_the_losses(leaf):
    name = facts(leaf)
    model = parsed(leaf).model
    student = model if name['method'] == 'vanilla' else model.architecture
    expected = 1.0
    if name['method'] == 'kd':
        expected = 0.5 if name['data'] == 'imagenet' else 0.1
    assert student.head.loss.get('loss_weight', 1.0) == expected
    if name['method'] == 'vanilla':
        return
    losses = model.get('distiller', {}).get('distill_losses', {})
    weights = {key: loss.loss_weight for key, loss in losses.items()}
    assert weights == {
        f'loss_{key}': weight for key, weight in METHODS[name['method']].losses.items()
    }
    if 'loss_kd' in losses:
        assert losses.loss_kd.tau == 4
    if 'loss_crd' in losses:
        # The class's own defaults are the published settings.
        changed = set(losses.loss_crd) - {'type', 'loss_weight'}
        assert changed == (
            {'negatives', 'objective'}
            if name['method'] == 'crd-batch'
            else {'num_negatives'}
            if name['data'] == 'digits'
            else {'embed_dim'}
            if leaf.stem == 'crd_resnet50_resnet18_8xb32-100e_imagenet'
            else set()
        )
        widths = {
            cfg.get('embed_dim', 128)
            for cfg in (losses.loss_crd, *model.distiller.connectors.values())
        }
        assert widths == {256 if 'embed_dim' in changed else 128}


@pytest.mark.parametrize('leaf', LEAVES, ids=name_of)
def test_types_are_registered(leaf):
    cfg = parsed(leaf).to_dict()
    assert list(check_names(cfg)) == []
    found = {part.get('type') for _, part in walk(cfg['model'])}
    # Scopes where two libraries know the name or the default is another.
    assert not {'CRDLoss', 'KLDivergence', 'ModuleOutputs'} & found


def zoo_weights():
    """Checkpoints of MMPretrain's ResNets to the names of their configs."""
    root = Path(mmpretrain.__file__).parent / '.mim' / 'configs' / 'resnet'
    return {
        model['Weights']: model['Name']
        for model in load(str(root / 'metafile.yml'))['Models']
        if 'Weights' in model
    }


@pytest.mark.parametrize(
    'leaf', [leaf for leaf in LEAVES if METHODS[facts(leaf)['method']].has_teacher], ids=name_of
)
def test_teacher_checkpoint_can_be_had(leaf):
    """From MMPretrain's zoo, or by training a config of ours to its end."""
    name = facts(leaf)
    cfg = parsed(leaf)
    checkpoint = cfg.model.teacher_ckpt
    teacher = name['nets'].split('_')[0]
    if '://' in checkpoint:
        data = dict(imagenet='in1k').get(name['data'], name['data'])
        batch = '8xb32' if data == 'in1k' else '8xb16'
        assert zoo_weights()[checkpoint] == f'{teacher}_{batch}_{data}'
        return
    folder, file = Path(checkpoint).parts[1:]
    assert checkpoint.startswith('work_dirs/vanilla_')
    vanilla = parsed(CONFIGS / 'vanilla' / f'{folder}.py')
    assert file == f'epoch_{vanilla.train_cfg.max_epochs}.pth'
    assert plain(vanilla.model) == plain(cfg.model.teacher)
    assert vanilla.data_preprocessor == cfg.data_preprocessor
    # The schedule of the row, so that one recipe makes the whole row; only
    # the published batch of NST on Tiny-ImageNet is another.
    same = dict(name, method='vanilla', nets=teacher)
    if name['schedule'].startswith('b32'):
        same.update(batch='64', schedule=name['schedule'].replace('32', '64'))
    assert facts(Path(f'{folder}.py')) == same


@pytest.mark.parametrize('pair', PAIRS, ids=name_of)
def test_teacher_and_student_are_trained_alone_too(pair):
    cfg = parsed(pair)
    alone = {key_of(parsed(leaf).model) for leaf in LEAVES if leaf.parent.name == 'vanilla'}
    assert {key_of(cfg.student), key_of(cfg.teacher)} <= alone


# --- networks -------------------------------------------------------------- #


def wide_resnet(depth, factor, classes):
    """Parameters of WRN-depth-factor, layer by layer."""
    widths = [16] + [16 * factor * 2**i for i in range(3)]
    total = 3 * 16 * 9
    for before, width in zip(widths, widths[1:]):
        for block in range((depth - 4) // 6):
            inputs = width if block else before
            total += 2 * inputs + 9 * inputs * width
            total += 2 * width + 9 * width * width
            total += inputs * width * (inputs != width)
    return total + 2 * widths[3] + (widths[3] + 1) * classes


def basic_resnet(blocks, classes):
    """Parameters of four stages of basic blocks behind a 3x3 stem."""
    total, before = 3 * 64 * 9 + 2 * 64, 64
    for i, number in enumerate(blocks):
        width = 64 * 2**i
        for block in range(number):
            inputs = width if block else before
            total += 9 * inputs * width + 9 * width * width + 4 * width
            total += (inputs * width + 2 * width) * (inputs != width)
        before = width
    return total + 513 * classes


def expected_parameters(net, data):
    """The published number, with a classifier for the data set."""
    classes = CLASSES[data]
    if (net, data) in OTHERS:
        return OTHERS[net, data]
    if net in REPDISTILLER:
        number, width = REPDISTILLER[net]
        return number + (classes - 100) * (width + 1)
    if net == 'wrn22-4':
        return wide_resnet(22, 4, classes)
    blocks = {'resnet10': (1, 1, 1, 1), 'resnet34': (3, 4, 6, 3)}[net]
    return basic_resnet(blocks, classes)


def test_counting_by_hand():
    assert wide_resnet(40, 2, 100) == REPDISTILLER['wrn40-2'][0]
    assert wide_resnet(16, 2, 100) == REPDISTILLER['wrn16-2'][0]
    assert basic_resnet((2, 2, 2, 2), 10) == OTHERS['resnet18', 'cifar10']
    assert round(wide_resnet(22, 4, 10) / 1e6, 1) == 4.3


@pytest.mark.parametrize(
    'pair', [path for path in PAIRS if not path.stem.endswith('digits')], ids=name_of
)
def test_number_of_parameters(pair):
    teacher, student, data = pair.stem.split('_')
    cfg = parsed(pair)
    numbers = {}
    for role, net in dict(teacher=teacher, student=student).items():
        numbers[role] = build(plain(cfg[role]))
        assert numbers[role] == expected_parameters(net, data), role
    if data == 'tiny-imagenet':
        ratio = numbers['teacher'] / numbers['student']
        assert round(ratio, 2) == COMPRESSION[f'{teacher}_{student}']


@pytest.mark.parametrize('leaf', LEAVES, ids=name_of)
def test_networks_build(leaf):
    for net in networks_of(parsed(leaf)):
        assert build(plain(net)) > 1000


# --- dry runs -------------------------------------------------------------- #


def style_of(nets):
    """Whether teacher and student are of one family."""
    families = {re.match('[a-z]+', net)[0] for net in nets.split('_')}
    return 'like' if len(families) == 1 else 'unlike'


def dry_leaves():
    """Few leaves with all pairs, all distillers, each method on both styles.

    CRD+KD first, so that it is the one to go through all pairs.
    """
    order = {'crd-kd': 0, 'crd': 1, 'kd': 2}
    seen, chosen = set(), []
    for leaf in sorted(LEAVES, key=lambda leaf: order.get(facts(leaf)['method'], 3)):
        try:
            cfg, name = parsed(leaf), facts(leaf)
        except Exception:  # Its own tests say so, and the others still run.
            continue
        nets = tuple(plain(net) for net in networks_of(cfg))
        alone = ('alone', cfg.model.type)
        keys = {('nets', nets) if len(nets) == 2 else alone}
        keys.add(('distiller', key_of(cfg.model.get('distiller', {}))))
        if len(nets) == 2:
            keys.add((name['method'], style_of(name['nets'])))
        if keys - seen:
            seen |= keys
            chosen.append(leaf)
    return chosen


def test_dry_runs_reach_every_pair_and_distiller():
    chosen = [facts(leaf) for leaf in dry_leaves()]
    pairs = {f'{name["nets"]}_{name["data"]}' for name in chosen}
    assert {path.stem for path in PAIRS} <= pairs
    assert {name['method'] for name in chosen} == set(METHODS)


@pytest.mark.parametrize('leaf', dry_leaves(), ids=name_of)
def test_dry_run(leaf, tmp_path, monkeypatch):
    """One training step on three images; of ImageNet's, 64x64 instead of 224.

    WRN keeps every pixel of them up to its second stage, so they are 32x32
    there. Nothing else is reduced.
    """
    monkeypatch.chdir(tmp_path)  # where no data are
    cfg = copy.deepcopy(parsed(leaf))
    name = facts(leaf)
    if name['data'] == 'imagenet':
        size = 32 if 'wrn' in name['nets'] else 64
        crop = cfg.train_dataloader.dataset.dataset.pipeline[1]
        assert crop.type == 'RandomResizedCrop'
        crop.scale = size
    report = run_dry(cfg, use_teacher_ckpt=False, batch_size=3)
    assert report.problems == []
    assert not any(tmp_path.iterdir())
    if name['data'] == 'imagenet':
        assert f'3 x 3 x {size} x {size}' in report.images
    losses = {row.name: row for row in report.losses if row.summed}
    method = METHODS[name['method']]
    alone = 'student.loss' if method.losses else 'loss'
    expected = (alone, *(f'distill.loss_{key}' for key in method.losses))
    assert set(losses) == set(method.logged or expected)
    for row in losses.values():
        # VID's is a log-likelihood and may be negative.
        assert 0 < abs(row.value) < float('inf')
        # The paraphraser of FT trains before the student does.
        if row.name.endswith('_reconstruction'):
            assert row.student == '-' and row.connectors > 0
        else:
            assert row.student > 0
