"""Reading published figures and runs, and setting them side by side."""

import csv
import json
import re

import pytest

from crd_plugin.cli.arguments import UsageError
from crd_plugin.cli.comparison import (
    compare,
    read_published,
    read_table_runs,
    render_csv,
    render_markdown,
)
from tests.tables import CONFIGS, write_run

STL10 = CONFIGS / 'transfer' / 'probe_wrn16-2_b64-120e_stl10.py'
HEADER = 'source,table,dataset,method,metric,value,config,checkpoint\n'
PUBLISHED = (
    HEADER
    + """CRD paper,1,CIFAR100,CRD,top-5 %,93.1,crd/crd_a.py,
CRD paper,1,CIFAR100,CRD,top-1 %,75.48,crd/crd_a.py,
a README,,CIFAR100,CRD,top-1 %,75.50,crd/crd_a.py,
CRD paper,1,CIFAR100,CRD,top-1 %,70.5,crd/crd_b.py,
CRD paper,1,CIFAR100,CRD,top-1 %,n/a,crd/crd_c.py,
CRD paper,3,ImageNet,CRD,top-1 error %,28.83,crd/crd_d.py,
CRD paper,figure 4,CIFAR100,KD,top-1 %,70,kd/kd_a.py,
CRD paper,4,CIFAR100->STL10,CRD,linear probe top-1 %,71.6,transfer/probe.py,crd/crd_a.py
CRD paper,4,CIFAR100->STL10,KD,linear probe top-1 %,70.9,transfer/probe.py,kd/kd_a.py
"""
)


@pytest.fixture
def published(tmp_path):
    path = tmp_path / 'published.csv'
    path.write_text(PUBLISHED)
    return path


def _rows(folder, published):
    rows = compare(read_table_runs([folder]), read_published(published))
    return {row['config']: row for row in rows}


def test_published_figures(published):
    figures = read_published(published).fillna({'published': -1})
    columns = figures[['name', 'group', 'title', 'published']].values.tolist()
    a = ['crd_a', 'crd CIFAR100', 'CRD paper, table 1']
    assert columns[:2] == [[*a, 93.1], [*a, 75.48]]
    assert columns[2][2] == 'a README' and columns[6][2] == 'CRD paper, figure 4'
    assert [row[-1] for row in columns[2:7]] == [75.5, 70.5, -1, 71.17, 70.0]
    assert columns[7] == ['probe of crd_a', 'transfer CIFAR100->STL10', 'CRD paper, table 4', 71.6]


def test_metrics_in_any_case(tmp_path, published):
    rows = ('top-1 Error %,6.5,crd/crd_a.py', 'Top-1,70,crd/crd_b.py')
    published.write_text(HEADER + ''.join(f'own,,D,CRD,{row},\n' for row in rows))
    assert read_published(published)['published'].tolist() == [93.5, 70.0]
    write_run(tmp_path, 'crd_b', 0, (1.0, 2.0, 75.0))
    assert _rows(tmp_path, published)['crd_b']['difference'] == 5


@pytest.mark.parametrize(
    'text, message',
    [
        ('', 'No columns to parse'),
        ('Models: []\n', 'the column source is missing'),
        (PUBLISHED.replace('70.5', '7o.5'), "Unable to parse string '7o.5'"),
        (PUBLISHED + ',' * 9, 'Expected 8 fields in line 11, saw 10'),
        (PUBLISHED.replace('70.5', '-inf'), '-inf is not a finite number'),
        (HEADER + 'a,1,b,CRD,accuracy,70,crd/crd_a.py,\n', 'no figure is a top-1, .*: accuracy;'),
        (HEADER, 'no figure is a top-1, .*: no row;'),
    ],
)
def test_other_files_are_refused(published, text, message):
    published.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        read_published(published)
    assert str(published) in str(caught.value) and '\n' not in str(caught.value)


@pytest.fixture
def table(tmp_path, published):
    """A finished cell, one without a run, and one of a config that was never published."""
    write_run(tmp_path, 'crd_a', 0, (70.0, 76.0, 75.0))
    write_run(tmp_path, 'crd_a', 1, (78.0, 76.0, 77.0))
    write_run(tmp_path, 'own', 10, (50.0, 52.0, 51.0), teacher='', options=['a.b=1'])
    return _rows(tmp_path, published)


def test_last_best_difference_and_missing_cells(table):
    # No cell is missing where nothing was published (crd_c), or where nothing
    # of the data set was trained (crd_d).
    assert list(table) == ['crd_a', 'crd_b', 'own']
    a, b, own = table.values()
    assert a['published'] == 75.48 and a['source'] == 'CRD paper, table 1'
    assert a['last'] == dict(mean=76.0, std=pytest.approx(2**0.5))
    assert a['best'] == dict(mean=77.0, std=pytest.approx(2**0.5))
    assert a['best_epoch']['mean'] == 1.5 and a['teacher'] == 'abcdef01'
    assert a['difference'] == pytest.approx(0.52)
    assert a['difference_best'] == pytest.approx(1.52)
    assert a['seeds'] == [0, 1] and a['missing_seeds'] == [10]
    for key in ('last', 'best', 'best_epoch', 'difference', 'teacher'):
        assert b[key] is None
    assert b['published'] == 70.5 and b['missing_seeds'] == [0, 1, 10]
    assert own['last'] == dict(mean=51.0, std=None) and own['missing_seeds'] == [0, 1]
    assert own['published'] is own['difference'] is own['teacher'] is None


def test_formats(table):
    rows = list(table.values())
    lines = render_markdown(rows).splitlines()
    titles, _, *cells = [re.split(r' *\| *', line)[1:-1] for line in lines if line[:1] == '|']
    expected = 'config,published,last epoch,best epoch,difference,seeds,teacher'
    assert titles == expected.split(',')
    seeds = '2 of 3, missing 10'
    assert cells == [
        ['crd_a', '75.48', '76.00 ± 1.41', '77.00 ± 1.41', '+0.52', seeds, 'abcdef01'],
        ['crd_b', '70.50', 'missing', 'missing', '-', '0 of 3, missing 0 1 10', '-'],
        ['own', '-', '51.00', '52.00', '-', '1 of 3, missing 0 1', '-'],
    ]
    assert lines[-1] == '- own: trained with a.b=1'

    first, second, *_ = csv.DictReader(render_csv(rows).splitlines())
    assert float(first['last_mean']) == 76 and first['seeds'] == '0 1'
    assert float(first['difference']) == pytest.approx(0.52)
    assert second['last_mean'] == second['difference'] == ''
    assert second['missing_seeds'] == '0 1 10'
    assert json.loads(json.dumps(rows)) == rows


def test_differences_to_kd_and_to_the_student_alone(tmp_path, published):
    """By the names of the configs."""
    for seed, top1 in enumerate([(70.0, 76.0, 75.0), (78.0, 76.0, 78.0)]):
        write_run(tmp_path, 'crd_t_s_b1_d', seed, top1)
        write_run(tmp_path, 'kd_t_s_b1_d', seed, (0.0, 0.0, 75.5 + seed))
    write_run(tmp_path, 'vanilla_s_b1_d', 1, (0.0, 0.0, 70.0))
    write_run(tmp_path, 'own-kd_s_b1_d', 1, (0.0, 0.0, 69.0))  # without a teacher
    rows = _rows(tmp_path, published)
    found = {
        name: [row[key] and row[key]['mean'] for key in ('to_alone', 'to_kd')]
        for name, row in rows.items()
    }
    assert found == {
        'crd_t_s_b1_d': [8.0, 0.5],
        'kd_t_s_b1_d': [6.5, None],
        'own-kd_s_b1_d': [-1.0, None],
        'vanilla_s_b1_d': [None, None],
    }
    text = render_markdown(list(rows.values()))
    # -0.5 and 1.5; t of one degree of freedom is 12.7062, the deviation sqrt(2).
    assert re.search(r'crd_t_s_b1_d +\| +\+8.00 \| \+0.50 \[-12.21, \+13.21\] \|', text)
    assert 'vanilla_s_b1_d' not in text.split('- student alone')[1].split('Differences')[0]
    (line,) = render_csv([rows['crd_t_s_b1_d']]).splitlines()[1:]
    assert line.endswith(',8.0,,,0.5,-12.2062,13.2062')


def test_runs_of_a_sweep_have_references_too(tmp_path, published):
    """Those with the same values if there are any, else those without."""
    for name, top1 in {
        'vanilla_s_b1_d': 60.0,
        'kd_t_s_b1_d': 70.0,
        'kd_t_s_b1_d,lr=2': 72.0,
        'crd_t_s_b1_d,lr=2': 75.0,
        'crd_t_s_b1_d,path=a_b': 71.0,
    }.items():
        write_run(tmp_path, name, 0, (0.0, 0.0, top1))
    rows = _rows(tmp_path, published)
    found = {
        name: [row[key] and row[key]['mean'] for key in ('to_alone', 'to_kd')]
        for name, row in rows.items()
    }
    assert found == {
        'vanilla_s_b1_d': [None, None],
        'kd_t_s_b1_d': [10.0, None],
        'kd_t_s_b1_d,lr=2': [12.0, 2.0],
        'crd_t_s_b1_d,lr=2': [15.0, 3.0],
        'crd_t_s_b1_d,path=a_b': [11.0, 1.0],
    }


def test_a_finished_run_without_accuracy_is_noted(tmp_path, published):
    write_run(tmp_path, 'crd_a', 0, (1.0, 2.0, 75.0))
    run_dir = write_run(tmp_path, 'crd_b', 0)
    write_run(tmp_path, 'crd_b', 1).joinpath('20260101_000000/vis_data/scalars.json').unlink()
    a, b = _rows(tmp_path, published).values()
    assert a['last']['mean'] == 75.0 and not a['notes']
    assert b['last'] is None and b['missing_seeds'] == [0, 1]
    assert b['notes'][0].startswith(
        f'seed 0 is finished, but not in the numbers: {run_dir} has no accuracy/top1, which'
    )
    assert 'seed 1 is finished, but not in the numbers: no */vis_data' in b['notes'][1]
    assert f'- crd_b: {b["notes"][0]}' in render_markdown([a, b])
    log = run_dir / '20260101_000000/vis_data/scalars.json'
    log.write_text('{damaged\n{"step": 1}\n')
    with pytest.raises(UsageError, match='line 1 is not JSON'):
        read_table_runs([tmp_path])


def test_links_to_runs_are_followed_and_count_once(tmp_path):
    store, table = tmp_path / 'store', tmp_path / 'table'
    for number, folder in enumerate(('a', 'b', 'c')):
        write_run(store, folder, number, (1.0,))
    (table / 'kd').mkdir(parents=True)
    (table / 'crd').symlink_to(store / 'a')  # a config on another disk
    (table / 'kd' / 'seed_1').symlink_to(store / 'b' / 'seed_1')
    write_run(table, 'own', 2, (1.0,))
    (table / 'alias').symlink_to(table / 'own')
    (table / 'loop').symlink_to(table)
    (tmp_path / 'link').symlink_to(table)
    for folder in ('table', 'link'):
        runs = read_table_runs([tmp_path / folder])
        assert runs['name'].tolist() == ['crd', 'kd', 'own']
        assert runs['run_dir'].tolist()[0] == f'{tmp_path}/{folder}/crd/seed_0'
    (tmp_path / 'config').symlink_to(table / 'own')
    assert read_table_runs([tmp_path / 'config'])['name'].tolist() == ['own']


def test_unfinished_runs_do_not_count(tmp_path, published):
    run_dir = write_run(tmp_path, 'crd_a', 1, (90.0, 90.0), finished=False)
    rows = _rows(tmp_path, published)
    assert list(rows) == ['crd_a', 'crd_b']
    assert rows['crd_a']['last'] is None and rows['crd_a']['missing_seeds'] == [1]
    assert render_csv(list(rows.values())).splitlines()[1:] == [
        'crd_a,75.48,"CRD paper, table 1",,,,,,,,1,abcdef01,seed 1 is at epoch 2 of 3,,,,,,',
        'crd_b,70.5,"CRD paper, table 1",,,,,,,,1,,,,,,,,',
    ]
    write_run(tmp_path, 'crd_a', 0, (70.0, 76.0, 75.0))
    (run_dir / 'train.log').write_text('Epoch(train) [3]\nerror: loss_crd is NaN\n')
    write_run(tmp_path, 'crd_b', 0, finished=False)
    # Killed after the last validation, before the record said so.
    write_run(tmp_path, 'crd_b', 1, (1.0, 2.0, 3.0), finished=False)
    a, b = _rows(tmp_path, published).values()
    assert a['last']['mean'] == 75.0
    assert a['notes'] == ['seed 1 failed at epoch 2 of 3: error: loss_crd is NaN']
    assert b['last']['mean'] == 3.0 and b['notes'] == ['seed 0 is at epoch 0 of 3']
    assert [run['last'] and run['last']['top1'] for run in b['runs']] == [None, 3.0]


def test_a_finished_run_without_its_last_validation_is_noted(tmp_path, published):
    log = (
        write_run(tmp_path, 'crd_a', 0, (60.0, 70.0, 75.0))
        / '20260101_000000/vis_data/scalars.json'
    )
    log.write_text(log.read_text()[:-5])  # cut off
    row = _rows(tmp_path, published)['crd_a']
    assert row['last']['mean'] == 70.0
    assert row['notes'] == ['the last validation of seed 0 is of epoch 2 of 3']


def test_what_makes_seeds_differ_is_noted(tmp_path, published):
    write_run(tmp_path, 'crd_a', 0, (1.0,) * 3, options=['a.b=1'], signature='t')
    write_run(tmp_path, 'crd_a', 1, (1.0,) * 3, teacher='9999999999')
    url = 'https://example.com/resnet50_b16x8_20210528-f54bfad9.pth'
    write_run(tmp_path, 'crd_b', 0, (1.0,) * 3, teacher=url)
    write_run(tmp_path, 'ensemble', 0, (1.0,) * 3, teacher=f'9999999999 {url}')
    rows = _rows(tmp_path, published)
    assert rows['crd_a']['notes'] == [
        'the seeds were trained with different settings',
        'the seeds were trained with different teachers',
        'trained with a.b=1',
    ]
    assert rows['crd_a']['teacher'] == 'abcdef01 99999999'
    assert rows['crd_b']['teacher'] == 'f54bfad9'
    assert rows['ensemble']['teacher'] == '99999999 f54bfad9'


def test_runs_that_cannot_be_read(tmp_path):
    old = write_run(tmp_path, 'crd_a', 0, (1.0,))
    old.rename(old.with_name('seed_0_old1'))
    with pytest.raises(UsageError, match='no run in .*seed_.*run.json'):
        read_table_runs([tmp_path])
    write_run(tmp_path, 'crd_a', 0, (1.0,))
    (run,) = read_table_runs([tmp_path, tmp_path / 'crd_a']).to_dict('records')  # once
    assert run['name'] == 'crd_a' and run['finished']
    write_run(tmp_path / 'other', 'crd_a', 0, (2.0,))
    with pytest.raises(UsageError, match='both crd_a with seed 0; leave one'):
        read_table_runs([tmp_path])


def test_probes_beside_the_published_figures(tmp_path):
    """Also the other columns of the published table, and differences to KD on the same images."""
    crd, kd = (f'{method}_wrn40-2_wrn16-2_b64-240e_cifar100' for method in ('crd', 'kd'))
    for name, seed, top1 in ((crd, 0, 70.0), (crd, 1, 72.0), (kd, 1, 71.0), ('own', 0, 50.0)):
        more = dict(config=STL10.as_posix(), signature=str(top1), teacher=str(top1))
        more['options'] = [f'model.backbone_ckpt={top1}.pth', 'a=1']
        write_run(tmp_path / STL10.stem, name, seed, [1.0, 2.0, top1], **more)
    write_run(tmp_path, kd, 1, [1.0, 2.0, 99.0])  # on the images of its training
    rows = {row['config']: row for row in compare(read_table_runs([tmp_path]), read_published())}
    probe = rows[f'{STL10.stem} of {crd}']
    assert probe['published'] == 71.6 and probe['last']['mean'] == 71 and probe['seeds'] == [0, 1]
    assert probe['to_kd']['mean'] == 1 and probe['to_kd']['seeds'] == [1]
    assert rows[f'{STL10.stem} of own']['published'] is None
    missing = rows[f'{STL10.stem} of crd-{kd}']
    assert missing['published'] == 72.2 and missing['last'] is None
    # That the seeds probe different networks is not worth a note.
    assert all(
        row['notes'] == ['trained with a=1'] * bool(row['last'])
        for row in rows.values()
        if ' of ' in row['config']
    )
