"""Every file under ``configs/`` parses, says what its name says, builds and trains.

Leaves are checked folder by folder. Each distinct network is built once, on the meta device where
that works; each pair and each distinct distiller goes through one dry run.
"""

import re
from pathlib import Path
from urllib.parse import urlsplit

import mmpretrain
import pytest
from mmengine.fileio import load

from crd_plugin.cli.arguments import without_files
from crd_plugin.cli.dry_run import dry_run_file
from crd_plugin.fragments import join, seeds
from crd_plugin.models.backbones import CIFAR_ZOO
from tests.config_files import (
    APART,
    BASE,
    BASES,
    CONFIGS,
    FOLDERS,
    LEAVES,
    METHODS,
    OTHER_LEAVES,
    PAIRS,
    ancestors,
    build,
    facts,
    fragments_of,
    key_of,
    leaves_of,
    name_of,
    named_base,
    networks_of,
    parsed,
    plain,
)
from tests.repdistiller import NETS

CLASSES = {
    'cifar10': 10,
    'cifar100': 100,
    'digits': 10,
    'fashion-mnist': 10,
    'imagenet': 1000,
    'tiny-imagenet': 200,
}
# Learning rates of the schedules; networks with depthwise or grouped convolutions have a lower one
# on CIFAR-100.
RATES = {
    'b20-100e': 0.05,
    'b64-12e': 0.05,
    'b64-40e': 0.05,
    'b64-240e': 0.05,
    'b32-240e': 0.05,
    '8xb16-200e': 0.1,
    '8xb32-100e': 0.1,
}
SLOW_NETS = ('mobilenetv2', 'shufflenetv1', 'shufflenetv2')

# Names in tests/repdistiller.py, whose ResNet-50 counts for mmpretrain's too.
REPDISTILLER = dict(
    resnet50='ResNet50',
    mobilenetv2='MobileNetV2',
    shufflenetv1='ShuffleV1',
    shufflenetv2='ShuffleV2',
)
# With ten classes: ResNet-18 of kuangliu/pytorch-cifar. With 1000 classes: torchvision. ResNet-8
# by hand: 464 in the stem, 4,672 + 14,528 + 57,728 in the stages, 650 in the classifier. Those of
# Tiny-ImageNet and WRN-22-4 layer by layer, as the others' numbers come out.
OTHERS = {
    ('resnet10', 'tiny-imagenet'): 5000712,
    ('resnet18', 'tiny-imagenet'): 11271432,
    ('resnet34', 'tiny-imagenet'): 21379592,
    ('wrn22-4', 'cifar10'): 4298970,
    ('wrn22-4', 'cifar100'): 4322100,
    ('wrn22-4', 'imagenet'): 4553400,
    ('resnet8', 'fashion-mnist'): 78042,
    ('resnet18', 'cifar10'): 11173962,
    ('resnet18', 'cifar100'): 11173962 + 90 * 513,
    ('resnet18', 'imagenet'): 11689512,
    ('resnet34', 'imagenet'): 21797672,
    ('resnet50', 'imagenet'): 25557032,
}


pytestmark = pytest.mark.usefixtures('mmpretrain_scope')


# --- every file ------------------------------------------------------------ #


def test_bases_parse_and_are_used():
    """There are no other files."""
    assert set(CONFIGS.rglob('*.py')) == {*BASES, *LEAVES, *OTHER_LEAVES}
    for path in BASES:
        assert len(parsed(path)) > 0
    used = frozenset().union(*map(ancestors, (*LEAVES, *OTHER_LEAVES)))
    # A user chooses the visualization (docs/tools.md); `distill` takes settings for folders.
    free = {*BASE.glob('visualization/*.py'), *BASE.glob('settings/image-folder*.py')}
    assert set(BASES) - used == free


def test_a_distiller_file_defines_one_fragment():
    """It is named after the file or its first word; all types are written with their scope."""
    for path in BASE.glob('distillers/*.py'):
        cfg = parsed(path)
        assert set(cfg) in ({path.stem}, {path.stem.split('_')[0]}), path.name
        (fragment,) = cfg.values()
        types = set(re.findall(r"'type': '([\w.]+)'", str(fragment.to_dict())))
        assert types and all('.' in kind for kind in types), path.name


@pytest.mark.parametrize('folder', [*FOLDERS, *APART])
def test_leaf_is_short(folder):
    for leaf in (CONFIGS / folder).glob('*.py'):
        lines = leaf.read_text().splitlines()
        assert len(lines) <= 8, leaf.name
        assert max(map(len, lines)) <= 100, leaf.name


@pytest.mark.parametrize('folder', FOLDERS)
def test_leaf_is_what_its_name_says(folder):
    for leaf in leaves_of(folder):
        name, cfg = facts(leaf), parsed(leaf)
        assert METHODS[name['method']].folder == folder
        settings, pair = named_base(leaf, 'settings'), named_base(leaf, 'pairs')
        assert f'{settings.stem}_'.startswith(f'{name["data"]}_{_with_first_stage(name)}_')
        teacher, student, data = pair.stem.split('_')[:3]
        assert data == name['data'], leaf.name
        methods = fragments_of(leaf)
        if name['method'] == 'vanilla':
            trained = name['nets']
            role = 'teacher' if trained == teacher else 'architecture'
            assert trained in (teacher, student) and cfg.model == cfg.pair[role], leaf.name
        elif not METHODS[name['method']].has_teacher:
            trained = student
            assert name['nets'] == student and cfg.model.architecture == cfg.pair.architecture
        else:
            trained = student
            assert name['nets'] == f'{teacher}_{student}', leaf.name
            # Nothing in a leaf differs from the recipe.
            pair = seeds(cfg.pair, int(name['members'])) if name['members'] else cfg.pair
            assert cfg.model == join(pair, *(cfg[method] for method in methods)), leaf.name
            losses = {f'loss_{method}' for method in methods}
            assert set(cfg.model.distiller.distill_losses) == losses, leaf.name

        assert cfg.train_cfg.max_epochs == int(name['epochs']) + METHODS[name['method']].first
        batch = int(name['batch'])
        assert cfg.train_dataloader.batch_size == batch, leaf.name
        assert cfg.auto_scale_lr == dict(base_batch_size=batch * int(name['gpus'] or 1))
        optimizer = cfg.optim_wrapper.optimizer
        assert optimizer.type == 'SGD' and optimizer.momentum == 0.9
        assert optimizer.lr == (0.01 if trained in SLOW_NETS else RATES[name['schedule']]), leaf
        classes = CLASSES[name['data']]
        assert cfg.data_preprocessor.num_classes == classes
        for net in networks_of(cfg):
            assert net.head.num_classes == classes, leaf.name
            # Every stage, so that any method may read it.
            stages = net.backbone.out_indices
            assert tuple(stages) == tuple(range(len(stages))) and len(stages) > 2, leaf.name


def test_a_leaf_takes_the_fragments_of_the_recipe():
    """No data set and no pair has a file of its own; what differs says so in the leaf's name."""
    for leaf in LEAVES:
        methods = [method for method in fragments_of(leaf) if METHODS[method].has_teacher]
        files = {base.stem for base in ancestors(leaf) if base.parent == BASE / 'distillers'}
        expected = set(methods)
        variant = facts(leaf)['method'].replace('-', '_')  # crd_batch, kd_ensemble ...
        expected |= {variant} & {base.stem for base in BASE.glob('distillers/*.py')}
        if methods[1:] == [
            'cktf'
        ]:  # beside another method than KD, kaiqi123/CKTF has other weights
            expected |= {'cktf_second'} | files & {'cktf_second_smallest'}
        if facts(leaf)['method'] != 'online-kd':
            assert files == expected, leaf.name


def _with_first_stage(name):
    """The schedule of a leaf as the name of its settings has it."""
    first = METHODS[name['method']].first
    batch, epochs = name['schedule'].rsplit('-', 1)
    return f'{batch}-{first}e-{epochs}' if first else name['schedule']


@pytest.mark.parametrize('folder', FOLDERS)
def test_weights_of_the_losses(folder):
    """They are the published ones, which the metafile lists."""
    meta = load(str(CONFIGS / folder / 'metafile.yml'))
    by_method = meta['Collections'][0]['Metadata']['Loss Weights']
    rows = {model['Name']: model['Metadata'].get('Loss Weights') for model in meta['Models']}
    assert set(by_method) == {facts(leaf)['method'] for leaf in leaves_of(folder)}
    for leaf in leaves_of(folder):
        model = parsed(leaf).model
        student = model.get('architecture', model)
        weights = {'student': student.head.loss.get('loss_weight', 1.0)}
        for name, loss in model.get('distiller', {}).get('distill_losses', {}).items():
            weights[name] = loss.loss_weight
        assert weights == (rows[leaf.stem] or by_method[facts(leaf)['method']]), leaf.name


def zoo_weights():
    """Checkpoints of MMPretrain's ResNets, without the host, to the names of their configs."""
    root = Path(mmpretrain.__file__).parent / '.mim' / 'configs' / 'resnet'
    return {
        urlsplit(model['Weights']).path: model['Name']
        for model in load(str(root / 'metafile.yml'))['Models']
        if 'Weights' in model
    }


@pytest.mark.parametrize('folder', FOLDERS)
def test_teacher_checkpoint_can_be_had(folder):
    """From MMPretrain's zoo, or by training a config of ours to its end."""
    zoo = zoo_weights()
    for leaf in leaves_of(folder):
        name, cfg = facts(leaf), parsed(leaf)
        if not METHODS[name['method']].has_teacher:
            continue
        checkpoint = cfg.model.teacher_ckpt
        if name['members']:
            folders, checkpoint = [Path(path).parent for path in checkpoint], cfg.pair.teacher_ckpt
            # As tools/run_table.py names them.
            whole = Path(checkpoint).parent
            assert folders == [whole / f'seed_{i}' for i in range(int(name['members']))]
        teacher = name['nets'].split('_')[0]
        if '://' in checkpoint:
            data = dict(imagenet='in1k').get(name['data'], name['data'])
            batch = '8xb32' if data == 'in1k' else '8xb16'
            assert zoo[urlsplit(checkpoint).path] == f'{teacher}_{batch}_{data}', leaf.name
            continue
        root, run, file = Path(checkpoint).parts
        vanilla = parsed(CONFIGS / 'vanilla' / f'{run}.py')
        assert (root, file) == ('work_dirs', f'epoch_{vanilla.train_cfg.max_epochs}.pth')
        assert plain(vanilla.model) == plain(cfg.model.teacher), leaf.name
        assert vanilla.data_preprocessor == cfg.data_preprocessor, leaf.name
        # The schedule of the row, so that one recipe makes the whole row; only
        # the published batch of NST on Tiny-ImageNet is another, and the teacher
        # of Fashion-MNIST has twelve times the images of its students.
        same = dict(name, method='vanilla', members=None, nets=teacher)
        if name['data'] == 'fashion-mnist':
            same.update(epochs='12', schedule='b64-12e')
        if name['schedule'].startswith('b32'):
            same.update(batch='64', schedule=name['schedule'].replace('32', '64'))
        assert facts(Path(f'{run}.py')) == same, leaf.name


def test_teacher_and_student_are_trained_alone_too():
    leaves = [*leaves_of('vanilla'), *CONFIGS.glob('transfer/vanilla_*.py')]
    alone = {key_of(parsed(leaf).model) for leaf in leaves}
    for path in PAIRS:
        pair = parsed(path).pair
        assert {key_of(pair.architecture), key_of(pair.teacher)} <= alone, path.name


# --- networks -------------------------------------------------------------- #


def expected_parameters(net, data):
    """The published number, with a classifier for the data set."""
    classes = CLASSES[data]
    if (net, data) in OTHERS:
        return OTHERS[net, data]
    name = REPDISTILLER.get(net, re.sub(r'wrn(\d+)-', r'wrn_\1_', net))
    return NETS[name]['num_params'] + (classes - 100) * (CIFAR_ZOO[name]['in_channels'] + 1)


@pytest.mark.parametrize(
    'path', [path for path in PAIRS if not path.stem.endswith('digits')], ids=name_of
)
def test_number_of_parameters(path):
    teacher, student, data = path.stem.split('_')[:3]
    pair = parsed(path).pair
    for role, net in dict(teacher=teacher, architecture=student).items():
        assert build(plain(pair[role])) == expected_parameters(net, data), role


# --- dry runs -------------------------------------------------------------- #


def style_of(nets):
    """Whether teacher and student are of one family."""
    families = {re.match('[a-z]+', net)[0] for net in nets.split('_')}
    return 'like' if len(families) == 1 else 'unlike'


def cost(leaf):
    """Sorts leaves: CRD+KD first, so that it goes through all pairs, then small networks first."""
    name = facts(leaf)
    small = [word in leaf.stem for word in ('digits', 'wrn40-2_', 'cifar100', 'vgg')]
    return (name['method'] != 'crd-kd', *(not flag for flag in small))


def pair_of(leaf):
    """Both networks of a leaf, whatever the method sets in them."""
    return tuple(map(plain, networks_of(parsed(leaf))))


def dry_leaves():
    """Few leaves with all pairs, all files of distillers, each method on both styles."""
    seen, chosen = set(), []
    for leaf in sorted(LEAVES, key=cost):
        name = facts(leaf)
        keys = {path for path in ancestors(leaf) if path.parent.name == 'distillers'}
        keys.add((name['method'], style_of(name['nets'])))
        if METHODS[name['method']].has_teacher:
            keys.add(pair_of(leaf))
        if keys - seen:
            seen |= keys
            chosen.append(leaf)
    return chosen


def test_dry_runs_reach_every_pair_and_distiller():
    chosen = dry_leaves()
    reached = frozenset().union(*map(ancestors, (*chosen, *OTHER_LEAVES)))
    assert {path for path in BASES if path.parent.name == 'distillers'} <= reached
    distilled = [leaf for leaf in LEAVES if METHODS[facts(leaf)['method']].has_teacher]
    assert {pair_of(leaf) for leaf in distilled} <= {pair_of(leaf) for leaf in chosen}
    assert {facts(leaf)['method'] for leaf in chosen} == set(METHODS)


@pytest.mark.parametrize('leaf', dry_leaves(), ids=name_of)
def test_dry_run(leaf, tmp_path, monkeypatch):
    """One training step on four images; of ImageNet's, 64x64 instead of 224.

    WRN keeps every pixel of them up to its second stage, so they are 32x32 there. Nothing else is
    reduced.
    """
    monkeypatch.chdir(tmp_path)  # where no data are
    name, model = facts(leaf), parsed(leaf).model
    options = {'train_dataloader.batch_size': 4}
    if METHODS[name['method']].has_teacher:
        options['model.teacher_ckpt'] = without_files(model.teacher_ckpt)
    if name['data'] == 'imagenet':
        size = 32 if 'wrn' in name['nets'] else 64
        pipeline = 'train_dataloader.dataset.dataset.pipeline'
        assert parsed(leaf).train_dataloader.dataset.dataset.pipeline[1].scale == 224
        options[f'{pipeline}.1.scale'] = size
    report = dry_run_file(str(leaf), options)
    assert report.problems == []
    assert not any(tmp_path.iterdir())
    if name['data'] == 'imagenet':
        assert f'4 x 3 x {size} x {size}' in report.images
    losses = {row.name: row for row in report.losses if row.summed}
    assert set(losses) == expected_losses(model)
    for row in losses.values():
        # VID's is a log-likelihood and may be negative.
        assert 0 < abs(row.value) < float('inf')
        # The paraphraser of FT trains before the student does.
        if row.name.endswith('_reconstruction'):
            assert row.student == '-' and row.others > 0
        else:
            assert row.student > 0


def expected_losses(model):
    """Names of the losses in the log of a model."""
    if model.type == 'crd_plugin.OnlineEnsembleDistill':
        branches = {f'branch{i}.loss' for i in range(1, model.num_branches)}
        return {'student.loss', *branches, 'ensemble.loss', 'distill.loss_online_kd'}
    if 'distiller' not in model:
        return {'loss'}
    names = set()
    for stage in model.get('stages', [{}]):
        prefix = f'{stage["name"]}: ' if 'name' in stage else ''
        losses = stage.get('losses', list(model.distiller.distill_losses))
        methods = losses if isinstance(losses, dict) else {}
        for loss in set(losses) - set(stage.get('without_losses', [])):
            suffix = f'_{methods[loss]}' if loss in methods else ''
            names.add(f'{prefix}distill.{loss}{suffix}')
        if stage.get('student_loss', True):
            names.add(f'{prefix}student.loss')
    return names
