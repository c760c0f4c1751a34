"""Every file under ``configs/``: it parses, builds, trains, is accounted for.

Each distinct network is built once, on the meta device where it can be, and
each pair and each distinct distiller goes through one dry run: a leaf is one
of these networks and distillers joined, which is checked too.
"""
import ast
import functools
import json
import re
from pathlib import Path

import mmpretrain
import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.registry import TASK_UTILS, DefaultScope

from crd_plugin.engine.dry_run import run_dry
from crd_plugin.engine.dry_run.report import DryRunReport
from crd_plugin.engine.dry_run.types import check_type, check_types, walk
from crd_plugin.registry import MODELS
from tests import runs
from tests.test_datasets import test_base_configs

CONFIGS = runs.REPO / 'configs'
BASES = sorted((CONFIGS / '_base_').rglob('*.py'))
LEAVES = sorted(
    path for path in CONFIGS.glob('*/*.py') if path.parent.name != '_base_')
PAIRS = [path for path in BASES if path.parent.name == 'pairs']
METHODS = sorted({path.parent.name for path in LEAVES})
# STL-10 belongs to transfer learning, whose configs do not exist yet; until
# then its files are run by tests/test_datasets/test_base_configs.py.
NOT_USED_YET = {'datasets/stl10.py', 'datasets/stl10_unlabeled.py'}

NAME = re.compile(r'(?P<method>[a-z-]+)_(?P<nets>[\w.-]+)_(?P<schedule>'
                  r'(?:(?P<gpus>\d+)xb|b)(?P<batch>\d+)-(?P<epochs>\d+)e)_'
                  r'(?P<data>[a-z0-9-]+)')
TITLES = dict(vanilla='vanilla', kd='KD', crd='CRD')
TITLES['crd-kd'] = 'CRD+KD'
CLASSES = {
    'cifar10': 10,
    'cifar100': 100,
    'digits': 10,
    'imagenet': 1000,
    'tiny-imagenet': 200,
}
# Learning rates of the schedules; that of networks with depthwise or grouped
# convolutions is lower on CIFAR-100.
RATES = {'b64-240e': 0.05, '8xb16-200e': 0.1, '8xb32-100e': 0.1}
SLOW_NETS = ('mobilenetv2', 'shufflenetv1', 'shufflenetv2')

# Parameters with a classifier of 100 classes, counted in the networks of
# HobbitLong/RepDistiller @ b84f547, and the width of the classifier's input.
REPDISTILLER = {
    'resnet8x4': (1233540, 256),
    'resnet20': (278324, 64),
    'resnet32': (472756, 64),
    'resnet32x4': (7433860, 256),
    'resnet50': (23705252, 2048),
    'resnet56': (861620, 64),
    'resnet110': (1736564, 64),
    'mobilenetv2': (812836, 1280),
    'shufflenetv1': (949258, 960),
    'shufflenetv2': (1355528, 1024),
    'vgg8': (3965028, 512),
    'vgg11': (9277284, 512),
    'vgg13': (9462180, 512),
    'vgg16': (14774436, 512),
    'vgg19': (20086692, 512),
    'wrn16-2': (703284, 128),
    'wrn40-1': (569780, 64),
    'wrn40-2': (2255156, 128),
}
# ResNet-50 above counts for mmpretrain's too. With ten classes: ResNet-18 of
# kuangliu/pytorch-cifar; 4.3 million for WRN-22-4, counted by hand below.
# With 1000 classes: torchvision.
OTHERS = {
    ('resnet18', 'cifar10'): 11173962,
    ('resnet18', 'cifar100'): 11173962 + 90 * 513,
    ('resnet18', 'imagenet'): 11689512,
    ('resnet34', 'imagenet'): 21797672,
    ('resnet50', 'imagenet'): 25557032,
}
# Teacher to student on Tiny-ImageNet, as kaiqi123/CKTF's README prints it.
COMPRESSION = {
    'vgg19_vgg8': 5.01,
    'vgg16_vgg11': 1.59,
    'resnet34_resnet10': 4.28,
    'resnet50_resnet10': 4.78,
}


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


@pytest.fixture(autouse=True)
def one_thread():
    """Two gain nothing here, and wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def name_of(path):
    """Short id of a config for pytest."""
    return path.relative_to(CONFIGS).as_posix()


@functools.lru_cache(maxsize=None)
def parsed(path):
    """The config as read; nothing may change it."""
    return Config.fromfile(path)


def facts(leaf):
    """What the name of a leaf says."""
    match = NAME.fullmatch(leaf.stem)
    assert match, 'not {method}_{teacher}_{student}_{schedule}_{dataset}.py'
    return match.groupdict()


def bases_of(path):
    """Files that a config names in ``_base_``, resolved."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == '_base_':
            value = ast.literal_eval(node.value)
            names = [value] if isinstance(value, str) else value
            return [(path.parent / name).resolve() for name in names]
    return []


def ancestors(path):
    """All files that a config inherits from."""
    found = set()
    for base in bases_of(path):
        found |= {base} | ancestors(base)
    return found


def key_of(cfg):
    """Text that equal configs have in common."""
    plain = cfg.to_dict() if hasattr(cfg, 'to_dict') else cfg
    text = json.dumps(plain, sort_keys=True)
    # A pair names the scope, a leaf adds it to what it takes from a base.
    return text.replace('mmpretrain.', '')


def networks_of(cfg):
    """Configs of the networks of a leaf."""
    if 'architecture' in cfg.model:
        return [cfg.model.architecture, cfg.model.teacher]
    return [cfg.model]


def without_weight(net):
    """Key of a network apart from the weight of its loss."""
    net = json.loads(key_of(net))
    net['head']['loss'].pop('loss_weight', None)
    return json.dumps(net, sort_keys=True)


@functools.lru_cache(maxsize=None)
def build(key):
    """Parameters of a network by its key, built once.

    MMPretrain's ResNets read numbers while they are built, which tensors on
    the meta device do not have.
    """
    cfg = json.loads(key)
    kind = cfg['backbone']['type'].rpartition('.')[2]
    meta = kind not in ('ResNet', 'ResNet_CIFAR', 'CIFARFourStageResNet')
    with torch.device('meta' if meta else 'cpu'):
        model = MODELS.build(cfg)
    assert all(p.is_meta == meta for p in model.parameters())
    return sum(p.numel() for p in model.parameters())


# --- every file ------------------------------------------------------------ #


def test_there_are_no_other_files():
    assert set(CONFIGS.rglob('*.py')) == {*BASES, *LEAVES}
    assert {'kd', 'crd', 'vanilla'} <= set(METHODS)


@pytest.mark.parametrize('path', BASES, ids=name_of)
def test_base_parses(path):
    cfg = parsed(path)
    assert len(cfg) > 0
    for name in bases_of(path):
        assert name.is_file()


def test_every_base_is_used():
    used = set().union(*(ancestors(leaf) for leaf in LEAVES))
    orphans = {
        path.relative_to(CONFIGS / '_base_').as_posix()
        for path in set(BASES) - used
    }
    assert orphans == NOT_USED_YET
    for name in orphans:
        assert Path(name).stem in test_base_configs.WRITERS


@pytest.mark.parametrize('leaf', LEAVES, ids=name_of)
def test_leaf_is_short(leaf):
    lines = leaf.read_text().splitlines()
    assert len(lines) <= 15
    assert max(map(len, lines)) <= 79


@pytest.mark.parametrize('leaf', LEAVES, ids=name_of)
def test_leaf_is_what_its_name_says(leaf):
    name = facts(leaf)
    cfg = parsed(leaf)
    assert name['method'].split('-')[0] == leaf.parent.name
    files = {path.relative_to(CONFIGS).as_posix() for path in ancestors(leaf)}
    data = name['data'].replace('-', '_')
    assert f'_base_/datasets/{data}.py' in files
    # Not what a pair inherits from that of another data set.
    pair, = {
        base.stem
        for path in (leaf, *ancestors(leaf)) if path.parent.name != 'pairs'
        for base in bases_of(path) if base.parent.name == 'pairs'
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
        assert name['nets'] == f'{teacher}_{student}'
        assert model.type == 'crd_plugin.FrozenTeacherDistill'
        assert without_weight(model.architecture) == without_weight(
            cfg.student)
        assert key_of(model.teacher) == key_of(cfg.teacher)
        losses = set(model.distiller.distill_losses)
        assert losses == {
            f'loss_{part}'
            for part in name['method'].split('-')
        }
        trained = student

    epochs = int(name['epochs'])
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
    losses = model.distiller.distill_losses
    weights = {key: loss.loss_weight for key, loss in losses.items()}
    assert weights == {
        'kd': dict(loss_kd=0.9),
        'crd': dict(loss_crd=0.8),
        'crd-kd': dict(loss_crd=0.8, loss_kd=1.0),
    }[name['method']]
    if 'loss_kd' in losses:
        assert losses.loss_kd.tau == 4
    if 'loss_crd' in losses:
        # The class's own defaults are the published settings.
        changed = set(losses.loss_crd) - {'type', 'loss_weight'}
        assert changed == (
            {'num_negatives'} if name['data'] == 'digits' else
            {'embed_dim'} if leaf.stem ==
            'crd_resnet50_resnet18_8xb32-100e_imagenet' else set())
        widths = {
            cfg.get('embed_dim', 128)
            for cfg in (losses.loss_crd, *model.distiller.connectors.values())
        }
        assert widths == {256 if 'embed_dim' in changed else 128}


@pytest.mark.parametrize('leaf', LEAVES, ids=name_of)
def test_types_are_registered(leaf):
    cfg = parsed(leaf).to_dict()
    report = DryRunReport()
    check_types(cfg, report)
    found = set()
    for name in ('data_preprocessor', 'model'):
        for path, part in walk(cfg[name], name):
            if 'init_cfg' in path or 'type' not in part:
                continue
            found.add(part['type'])
            if '_recorders.' in path:
                check_type(part, path, TASK_UTILS, report, suffix='Recorder')
            else:
                check_type(part, path, MODELS, report)
    assert report.problems == []
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
    'leaf', [leaf for leaf in LEAVES if leaf.parent.name != 'vanilla'],
    ids=name_of)
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
    assert key_of(vanilla.model) == key_of(cfg.model.teacher)
    assert vanilla.data_preprocessor == cfg.data_preprocessor
    # The schedule of the row, so that one recipe makes the whole row.
    assert facts(Path(f'{folder}.py')) == {
        **name, 'method': 'vanilla',
        'nets': teacher
    }


@pytest.mark.parametrize('pair', PAIRS, ids=name_of)
def test_teacher_and_student_are_trained_alone_too(pair):
    cfg = parsed(pair)
    alone = {
        key_of(parsed(leaf).model)
        for leaf in LEAVES if leaf.parent.name == 'vanilla'
    }
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
    'pair', [path for path in PAIRS if not path.stem.endswith('digits')],
    ids=name_of)
def test_number_of_parameters(pair):
    teacher, student, data = pair.stem.split('_')
    cfg = parsed(pair)
    numbers = {}
    for role, net in dict(teacher=teacher, student=student).items():
        numbers[role] = build(without_weight(cfg[role]))
        assert numbers[role] == expected_parameters(net, data), role
    if data == 'tiny-imagenet':
        ratio = numbers['teacher'] / numbers['student']
        assert round(ratio, 2) == COMPRESSION[f'{teacher}_{student}']


@pytest.mark.parametrize('leaf', LEAVES, ids=name_of)
def test_networks_build(leaf):
    for net in networks_of(parsed(leaf)):
        assert build(without_weight(net)) > 1000


# --- dry runs -------------------------------------------------------------- #


def dry_leaves():
    """Few leaves with all pairs and all distillers: CRD+KD first."""
    order = {'crd-kd': 0, 'crd': 1, 'kd': 2, 'vanilla': 3}
    seen, chosen = set(), []
    for leaf in sorted(LEAVES, key=lambda leaf: order[facts(leaf)['method']]):
        try:
            cfg = parsed(leaf)
        except Exception:  # Its own tests say so, and the others still run.
            continue
        nets = tuple(without_weight(net) for net in networks_of(cfg))
        keys = {('nets', nets) if len(nets) == 2 else ('vanilla', )}
        keys.add(('distiller', key_of(cfg.model.get('distiller', {}))))
        if keys - seen:
            seen |= keys
            chosen.append(leaf)
    return chosen


def test_dry_runs_reach_every_pair_and_distiller():
    chosen = [facts(leaf) for leaf in dry_leaves()]
    pairs = {f'{name["nets"]}_{name["data"]}' for name in chosen}
    assert {path.stem for path in PAIRS} <= pairs
    assert {name['method'] for name in chosen} == set(TITLES)


@pytest.mark.parametrize('leaf', dry_leaves(), ids=name_of)
def test_dry_run(leaf, tmp_path, monkeypatch):
    """One training step on two images; of ImageNet's, 64x64 instead of 224.

    WRN keeps every pixel of them up to its second stage, so they are 32x32
    there. Nothing else is reduced.
    """
    monkeypatch.chdir(tmp_path)  # where no data are
    cfg = parsed(leaf).copy()
    name = facts(leaf)
    if name['data'] == 'imagenet':
        size = 32 if 'wrn' in name['nets'] else 64
        crop = cfg.train_dataloader.dataset.dataset.pipeline[1]
        assert crop.type == 'RandomResizedCrop'
        crop.scale = size
    report = run_dry(cfg, use_teacher_ckpt=False, batch_size=2)
    assert report.problems == []
    assert not any(tmp_path.iterdir())
    if name['data'] == 'imagenet':
        assert f'2 x 3 x {size} x {size}' in report.images
    losses = {row.name: row for row in report.losses if row.summed}
    parts = [] if name['method'] == 'vanilla' else name['method'].split('-')
    plain = 'student.loss' if parts else 'loss'
    assert set(losses) == {plain, *(f'distill.loss_{part}' for part in parts)}
    for row in losses.values():
        assert 0 < row.value < float('inf') and row.student > 0


# --- README, metafile, files ----------------------------------------------- #


def table(folder):
    """Rows of a folder's README, by the name of the config."""
    rows, header = {}, None
    for line in (CONFIGS / folder / 'README.md').read_text().splitlines():
        if not line.startswith('|'):
            header = None
            continue
        cells = [cell.strip() for cell in line.strip('|').split('|')]
        if header is None:
            header = cells
        elif not set(line) <= set('|-'):
            row = dict(zip(header, cells, strict=True))
            link = re.fullmatch(r'\[config\]\(([\w.-]+)\.py\)', row['Config'])
            assert link and link[1] not in rows
            rows[link[1]] = row
    return rows


@pytest.mark.parametrize('folder', METHODS)
def test_readme_metafile_and_files_are_in_step(folder):
    files = {leaf.stem for leaf in LEAVES if leaf.parent.name == folder}
    rows = table(folder)
    meta = load(str(CONFIGS / folder / 'metafile.yml'))
    models = {model['Name']: model for model in meta['Models']}
    assert len(models) == len(meta['Models'])
    assert set(rows) == files and set(models) == files
    collection, = meta['Collections']
    assert (runs.REPO / collection['README']).is_file()
    for stem, model in models.items():
        row = rows[stem]
        leaf = CONFIGS / folder / f'{stem}.py'
        name, data = facts(leaf), model['Metadata']
        assert runs.REPO / model['Config'] == leaf
        assert model['In Collection'] == collection['Name']
        assert data['Epochs'] == int(name['epochs'])
        assert data['Batch Size'] == parsed(leaf).auto_scale_lr.base_batch_size
        trained = networks_of(parsed(leaf))[0]
        assert data['Parameters'] == build(without_weight(trained))
        assert re.sub(r'\W', '',
                      data['Training Data']).lower() == re.sub(
                          r'\W', '', name['data'])
        for key in ('Network', 'Teacher', 'Student'):
            assert data.get(key) == row.get(key)
        nets = [data[key] for key in ('Network', 'Teacher', 'Student')
                if key in data]
        assert re.sub('-', '', '_'.join(nets)).lower() == re.sub(
            '-', '', name['nets'])
        assert row.get('Method', TITLES[name['method']]) == TITLES[
            name['method']]
        published = model.get('Published')
        assert row['Source'] == (published['Source'] if published else '')
        assert row['Paper'] == (
            f'{published["Top 1 Accuracy"]:.2f}' if published else '')
        # What was measured is in both or in neither.
        results = model.get('Results')
        assert bool(results) == bool(row['Ours'])


@pytest.mark.parametrize('folder', METHODS)
def test_commands_of_the_readme_name_what_exists(folder):
    text = (CONFIGS / folder / 'README.md').read_text()
    block = re.search(r'```shell\n(.*?)```', text, re.DOTALL)[1]
    paths = re.findall(r'(?:configs|tools)/[\w./-]+', block)
    assert len(paths) >= 6
    for path in paths:
        assert (runs.REPO / path).is_file(), path
    stem, epoch = re.search(r'work_dirs/([\w-]+)/epoch_(\d+)\.pth',
                            block).groups()
    leaf = CONFIGS / folder / f'{stem}.py'
    assert parsed(leaf).train_cfg.max_epochs == int(epoch)
    eight = re.search(r'dist_train.sh (\S+) 8', block)[1]
    assert facts(Path(eight))['gpus'] == '8'
    for link in re.findall(r'\]\((?!http)([^)]+)\)', text):
        assert (CONFIGS / folder / link).exists(), link


def test_model_index_imports_every_metafile():
    index = load(str(runs.REPO / 'model-index.yml'))
    assert sorted(index['Import']) == [
        f'configs/{folder}/metafile.yml' for folder in METHODS
    ]


@pytest.mark.parametrize('config, figure', [
    ('vanilla/vanilla_resnet32x4_b64-240e_cifar100', 79.42),
    ('kd/kd_wrn40-2_wrn16-2_b64-240e_cifar100', 74.92),
    ('crd/crd_wrn40-2_shufflenetv1_b64-240e_cifar100', 76.05),
    ('crd/crd-kd_resnet34_resnet18_8xb32-100e_imagenet', 71.38),
    ('crd/crd_resnet34_resnet18_8xb32-100e_imagenet', 71.17),
    ('crd/crd-kd_resnet50_resnet18_8xb16-200e_cifar10', 94.62),
    ('crd/crd_wrn22-4_wrn16-2_8xb16-200e_cifar10', 93.19),
    ('crd/crd_resnet50_resnet18_8xb16-200e_cifar100', 79.38),
    ('crd/crd_resnet110_resnet20_8xb16-200e_cifar100', 69.08),
    ('crd/crd_wrn22-4_wrn16-2_8xb16-200e_cifar100', 75.69),
    ('crd/crd_resnet50_resnet18_8xb32-100e_imagenet', 69.91),
    ('crd/crd_wrn22-4_wrn16-2_8xb32-100e_imagenet', 70.92),
])
def test_cells_of_the_tables(config, figure):
    folder, stem = config.split('/')
    assert float(table(folder)[stem]['Paper']) == figure
