"""What the tests of ``configs/`` share: the files and what each must hold.

A test of every file is in test_configs.py, one of the tables in
test_config_tables.py.
"""

import ast
import functools
import json
import re
from typing import Dict, NamedTuple, Optional, Tuple

import torch
from mmengine.config import Config

from crd_plugin.registry import MODELS
from tests import small_runs

CONFIGS = small_runs.REPO / 'configs'
BASES = sorted((CONFIGS / '_base_').rglob('*.py'))
# Transfer learning trains in two steps: tests/test_transfer_configs.py.
TRANSFER = sorted(CONFIGS.glob('transfer/*.py'))
LEAVES = sorted(
    path for path in CONFIGS.glob('*/*.py') if path.parent.name not in ('_base_', 'transfer')
)
PAIRS = [path for path in BASES if path.parent.name == 'pairs']
FOLDERS = sorted({path.parent.name for path in LEAVES})

NAME = re.compile(
    r'(?P<method>[a-z-]+)_(?P<nets>[\w.-]+)_(?P<schedule>'
    r'(?:(?P<gpus>\d+)xb|b)(?P<batch>\d+)-(?P<epochs>\d+)e)_'
    r'(?P<data>[a-z0-9-]+)'
)


class Method(NamedTuple):
    """What a leaf of a method must hold."""

    title: str
    # Weights of the distiller's losses by their names after "loss_".
    losses: Dict[str, float] = {}
    # Folder of the leaves; by default the name of the method.
    folder: Optional[str] = None
    # Epochs of a first stage, before those in the leaf's name.
    first: int = 0
    algorithm: str = 'FrozenTeacherDistill'
    has_teacher: bool = True
    # Names of the losses in the log; by default the student's own and
    # "distill.loss_" before each of ``losses``.
    logged: Tuple[str, ...] = ()


_STAGED = dict(first=30, algorithm='StagedDistill')
METHODS = {
    'vanilla': Method('vanilla', has_teacher=False),
    'kd': Method('KD', dict(kd=0.9)),
    'fitnet': Method('FitNet', dict(fitnet=100)),
    'at': Method('AT', dict(at=1000)),
    'sp': Method('SP', dict(sp=3000)),
    'cc': Method('CC', dict(cc=0.02)),
    'vid': Method('VID', dict(vid=1)),
    'rkd': Method('RKD', dict(rkd=1)),
    'pkt': Method('PKT', dict(pkt=30000)),
    'nst': Method('NST', dict(nst=50)),
    'kdsvd': Method('KDSVD', dict(kdsvd=1)),
    'ab': Method(
        'AB', dict(ab=1), logged=('init: distill.loss_ab', 'main: student.loss'), **_STAGED
    ),
    'ft': Method(
        'FT',
        dict(ft=200),
        logged=(
            'init: distill.loss_ft_reconstruction',
            'main: student.loss',
            'main: distill.loss_ft',
        ),
        **_STAGED,
    ),
    'fsp': Method(
        'FSP', dict(fsp=1), logged=('init: distill.loss_fsp', 'main: student.loss'), **_STAGED
    ),
    'online-kd': Method(
        'Online KD',
        algorithm='OnlineEnsembleDistill',
        has_teacher=False,
        logged=(
            'student.loss',
            'branch1.loss',
            'branch2.loss',
            'ensemble.loss',
            'distill.loss_online_kd',
        ),
    ),
    'crd': Method('CRD', dict(crd=0.8)),
    'crd-kd': Method('CRD+KD', dict(crd=0.8, kd=1), 'crd'),
    'crd-batch': Method('CRD in-batch', dict(crd=0.8), 'crd'),
    'cktf': Method('CKTF', dict(cktf=1)),
    'cktf-kd': Method('CKTF+KD', dict(cktf=1, kd=1), 'cktf'),
    'cocord': Method('CoCoRD', dict(cocord=1), algorithm='CoCoRDDistill'),
    'cocord-kd': Method('CoCoRD+KD', dict(cocord=1, kd=1), 'cocord', algorithm='CoCoRDDistill'),
}
# CKTF beside another method, all of its levels with one weight.
for _name in ('fitnet', 'at', 'sp', 'cc', 'vid', 'rkd', 'pkt', 'ab', 'ft', 'nst'):
    _alone = METHODS[_name]
    METHODS[f'{_name}-cktf'] = _alone._replace(
        title=f'{_alone.title}+CKTF',
        losses=dict(_alone.losses, cktf=0.8),
        folder='cktf',
        logged=_alone.logged and (*_alone.logged, 'main: distill.loss_cktf'),
    )
CLASSES = {
    'cifar10': 10,
    'cifar100': 100,
    'digits': 10,
    'imagenet': 1000,
    'tiny-imagenet': 200,
}
# Learning rates of the schedules; that of networks with depthwise or grouped
# convolutions is lower on CIFAR-100.
RATES = {
    'b64-240e': 0.05,
    'b32-240e': 0.05,
    '8xb16-200e': 0.1,
    '8xb32-100e': 0.1,
}
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
    """Configs of the networks of a leaf, the trained one first."""
    if 'architecture' not in cfg.model:
        return [cfg.model]
    nets = [cfg.model.architecture, cfg.model.get('teacher')]
    return [net for net in nets if net]


def plain(net):
    """Key of a network apart from what a method sets in it.

    That is the weight of its loss, and which side of an activation it shows.
    """
    net = json.loads(key_of(net))
    net['head']['loss'].pop('loss_weight', None)
    net['backbone'].pop('pre_activation', None)
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
