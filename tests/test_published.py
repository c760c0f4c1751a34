"""configs/published.csv: every figure has its config, and stands in the README beside it."""

import re

import pytest

from crd_plugin.cli.comparison import read_published
from tests.config_files import (
    CONFIGS,
    build,
    facts,
    key_of,
    networks_of,
    parsed,
    plain,
    rows_of,
)
from tests.test_configs import expected_parameters

FIGURES = read_published()
NUMBERS = FIGURES[FIGURES['published'].notna()]
# Columns of the READMEs, and what they show.
METRICS = {
    'Paper': 'top-1|pixel accuracy',
    'Paper, top-5': 'top-5',
    'Paper, mIoU': 'mIoU',
    'Paper, ratio': '^x$',
}

pytestmark = pytest.mark.usefixtures('mmpretrain_scope')


def network_of(name):
    """A network as the files of configs are named: WRN-40-2 is wrn40-2."""
    name = name.partition(' (')[0].lower().replace('shufflev', 'shufflenetv')
    return re.sub('^(wrn|resnet|vgg)-', r'\1', name)


def losses_of(row):
    if row.method in ('vanilla', 'teacher', 'student alone', 'Online-KD'):
        return set()
    words = dict(InfoNCE='crd').get(row.method, row.method.lower()).split('+')
    words += ['kd'] if 'KD head' in row.note else []
    return {f'loss_{word}' for word in words}


def schedule_of(row):
    if row.dataset == 'ImageNet':
        return '8xb32-100e'
    return '8xb16-200e' if row.source.startswith('MM') else 'b(64|32)-240e'


def data_of(cfg):
    """Data set of the training images, named as in the figures."""
    return cfg.train_dataloader.dataset.dataset.type.rpartition('.')[2].removesuffix('200')


def test_every_figure_has_a_config():
    """Where there is a figure; no config has two of one table."""
    assert len(FIGURES) == 566
    assert ((FIGURES['config'] == '') == FIGURES['published'].isna()).all()
    same = ['source', 'table', 'dataset', 'metric', 'config', 'checkpoint']
    assert NUMBERS.groupby(same)['published'].nunique().max() == 1


# Those of depth are two stages: tests/test_train_depth.py.
@pytest.mark.parametrize('folder', sorted({*NUMBERS['config'].str.partition('/')[0]} - {'depth'}))
def test_config_is_that_of_the_figure(folder):
    """Networks, by their parameters, data set, schedule, losses and what else the figure says."""
    for row in NUMBERS[NUMBERS['config'].str.startswith(f'{folder}/')].itertuples():
        leaf = CONFIGS / (row.checkpoint or row.config)
        cfg, name = parsed(leaf), facts(leaf)
        data, _, probed = row.dataset.partition('->')
        assert data_of(cfg) == data.replace('-', ''), row
        nets = networks_of(cfg)
        trained = row.teacher if row.method == 'teacher' else row.student
        for net, known in zip(nets, (trained, row.teacher)):
            if known:
                parameters = expected_parameters(network_of(known), name['data'])
                assert build(plain(net)) == parameters, row
        assert re.fullmatch(schedule_of(row), name['schedule']), row
        assert f'{name["members"]} teachers' in row.note or not name['members'], row
        online = cfg.model.type == 'crd_plugin.OnlineEnsembleDistill'
        assert online == (row.method == 'Online-KD'), row
        losses = cfg.model.get('distiller', {}).get('distill_losses', {})
        if row.metric == 'x':
            teacher, student = (build(plain(net)) for net in reversed(nets))
            assert round(teacher / student, 2) == row.published, row
        else:
            assert set(losses) == losses_of(row), row
        if row.table == '6':
            crd = losses.loss_crd
            assert (crd.get('objective') == 'infonce') == (row.method == 'InfoNCE'), row
            negatives = 'i != j' if crd.get('exclude') == 'instance' else 'y_i != y_j'
            assert row.note.startswith(f'negatives {negatives},'), row
        if probed:
            probe = parsed(CONFIGS / row.config)
            assert data_of(probe) == probed, row
            assert key_of(probe.model.backbone) == key_of(nets[0].backbone), row


@pytest.mark.parametrize('folder', sorted(path.parent.name for path in CONFIGS.glob('*/README.md')))
def test_readme_shows_the_figures(folder):
    """All of its configs, equal ones once; errors as accuracies."""
    figures = NUMBERS[NUMBERS['config'].str.startswith(f'{folder}/')]
    shown = 0
    for row in rows_of(folder):
        if 'Paper' not in row:
            continue
        config, checkpoint = (
            ''.join(re.findall(r'\]\((?:\.\./)?(.*)\)', row.get(key, '')))
            for key in ('Config', 'Checkpoint')
        )
        own = figures[
            figures['config'].eq(f'{folder}/{config}') & figures['checkpoint'].eq(checkpoint)
        ]
        for title, metric in METRICS.items():
            found = own[own['metric'].str.contains(metric)].drop_duplicates('published')
            assert row.get(title, '') == '; '.join(map('{:.2f}'.format, found['published'])), config
            if title == 'Paper':
                assert row['Source'] == '; '.join(found['title']), config
        shown += len(own)
    assert shown == len(figures)
