"""The files of ``configs/`` as the tests see them: names, parsed configs, built networks.

Whatever the folders, file names and configs say is read from them: a new method needs no edit here.
"""

import ast
import copy
import functools
import json
import re
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.config import Config, ConfigDict

from crd_plugin.registry import MODELS
from tests import small_runs

CONFIGS = small_runs.REPO / 'configs'
BASE = CONFIGS / '_base_'
BASES = sorted(BASE.rglob('*.py'))
# Leaves that are not a method on a pair, by folder: tests/test_apart_configs.py, and
# test_transfer_configs.py, test_train_depth.py, test_cross_modal_configs.py,
# test_foundation_configs.py.
APART = {
    folder: sorted(CONFIGS.glob(f'{folder}/*.py'))
    for folder in ('cross-modal', 'depth', 'foundation', 'transfer')
}
OTHER_LEAVES = list(chain(*APART.values()))
LEAVES = sorted({*CONFIGS.glob('*/*.py')} - {*BASES, *OTHER_LEAVES})
PAIRS = sorted(
    path
    for path in BASE.glob('pairs/*.py')
    if not re.search('-depth|-ab_|^(clip|dino|swin)', path.stem)
)
FOLDERS = sorted({path.parent.name for path in LEAVES})

NAME = re.compile(
    r'(?P<method>[a-z-]+)_(?:(?P<members>\d+)x)?(?P<nets>[\w.-]+)_(?P<schedule>'
    r'(?:(?P<gpus>\d+)xb|b)(?P<batch>\d+)-(?P<epochs>\d+)e)_'
    r'(?P<data>[a-z0-9-]+)'
)


def name_of(path: Path) -> str:
    """Short id of a config for pytest."""
    return path.relative_to(CONFIGS).as_posix()


@functools.cache
def _read(path: Path) -> Config:
    return Config.fromfile(path)


def parsed(path: Path) -> Config:
    """A config, read once and copied for each test: one that changes it changes no other."""
    return copy.deepcopy(_read(path))


def fragment(name: str) -> ConfigDict:
    """The fragment in a file of ``_base_/distillers``."""
    (found,) = parsed(BASE / 'distillers' / f'{name}.py').values()
    return found


def fast(*more: str, batch: int = 4, validate: bool = True) -> list[str]:
    """Options of an epoch of small batches in this process, whatever is validated."""
    loaders = ('train', 'val', 'test') if validate else ('train',)
    return [
        '--cfg-options',
        f'train_dataloader.batch_size={batch}',
        'train_dataloader.dataset.complete=False',
        'train_cfg.max_epochs=1',
        *(f'{loader}_dataloader.num_workers=0' for loader in loaders),
        *(f'{loader}_dataloader.persistent_workers=False' for loader in loaders),
        *more,
    ]


def facts(leaf: Path) -> dict:
    """What the name of a leaf says."""
    match = NAME.fullmatch(leaf.stem)
    assert match, f'{leaf.name} is not {{method}}_[{{members}}x]{{nets}}_{{schedule}}_{{data}}.py'
    return match.groupdict()


def leaves_of(folder: str) -> list[Path]:
    """The leaves of one folder."""
    return [leaf for leaf in LEAVES if leaf.parent.name == folder]


def rows_of(folder: str) -> list[dict[str, str]]:
    """All rows of the tables in a folder's README."""
    rows: list[dict[str, str]] = []
    header: list[str] = []
    for line in (CONFIGS / folder / 'README.md').read_text().splitlines():
        cells = [cell.strip() for cell in line.strip('|').split('|')]
        if not line.startswith('|'):
            header = []
        elif not header:
            header = cells
        elif not set(line) <= set('|-'):
            rows.append(dict(zip(header, cells, strict=True)))
    return rows


@functools.cache
def bases_of(path: Path) -> tuple[Path, ...]:
    """Files that a config names in ``_base_``, resolved."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == '_base_':
            value = ast.literal_eval(node.value)
            names = [value] if isinstance(value, str) else value
            return tuple((path.parent / name).resolve() for name in names)
    return ()


@functools.cache
def ancestors(path: Path) -> frozenset[Path]:
    """All files that a config inherits from."""
    return frozenset().union(*({base} | ancestors(base) for base in bases_of(path)))


def named_base(leaf: Path, folder: str) -> Path:
    """The one file of a folder of ``_base_`` that a leaf or the leaf before it names."""
    found = {base for base in bases_of(leaf) if base.parent == BASE / folder}
    if not found:
        (first,) = (base for base in bases_of(leaf) if BASE not in base.parents)
        return named_base(first, folder)
    (base,) = found
    return base


def fragments_of(leaf: Path) -> list[str]:
    """The methods in the name of a leaf whose fragments it joins, in order."""
    return [word for word in facts(leaf)['method'].split('-') if word in parsed(leaf)]


class Method(NamedTuple):
    """What all leaves of a method have in common."""

    folder: str
    has_teacher: bool
    first: int  # epochs of a first stage, not counted in the leaf's name


def read_methods() -> dict[str, Method]:
    """The methods by the first word of their leaves, read from one leaf each."""
    methods = {}
    for leaf in LEAVES:
        name = facts(leaf)['method']
        if name not in methods:
            cfg = parsed(leaf)
            first = sum(cfg.train_cfg.get('stage_epochs', {}).values())
            methods[name] = Method(leaf.parent.name, 'teacher' in cfg.model, first)
    return methods


METHODS = read_methods()


def key_of(cfg: dict) -> str:
    """Text that equal configs have in common."""
    plain = cfg.to_dict() if hasattr(cfg, 'to_dict') else cfg
    return json.dumps(plain, sort_keys=True).replace('mmpretrain.', '')


def networks_of(cfg: Config) -> list[dict]:
    """Configs of the networks of a leaf, the trained one first."""
    if 'architecture' not in cfg.model:
        return [cfg.model]
    nets = [cfg.model.architecture, cfg.model.get('teacher')]
    return [net for net in nets if net]


def plain(net: dict) -> str:
    """Key of a network without what a method sets: weight of its loss, kind of feature."""
    net = json.loads(key_of(net))
    net['head']['loss'].pop('loss_weight', None)
    net['backbone'].pop('pre_activation', None)
    return json.dumps(net, sort_keys=True)


@functools.cache
def build(key: str) -> int:
    """Parameters of a network by its key, built once.

    On the meta device where that works: MMPretrain's ResNets read numbers while they are built.
    """
    cfg = json.loads(key)
    kind = cfg['backbone']['type'].rpartition('.')[2]
    meta = not kind.startswith('ResNet') and not kind.endswith('ResNet')
    with torch.device('meta' if meta else 'cpu'):
        model = MODELS.build(cfg)
    assert all(p.is_meta == meta for p in model.parameters())
    return sum(p.numel() for p in model.parameters())
