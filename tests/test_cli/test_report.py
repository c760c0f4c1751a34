"""The page of a table: what is in it, what it refers to, and what it says is missing."""

import base64
import re
from xml.etree import ElementTree

import pandas as pd
import pytest
from PIL import Image

from crd_plugin.cli import comparison, features, report
from tests import tables
from tests.config_files import parsed
from tests.tables import KD

TABLE = '| method | top-1 |\n| ------ | ----: |\n| a < b  | 1 ± 0 |'


def test_markdown_becomes_html():
    text = f'{TABLE}\n\nA line & `code`\ngoes on, _as_ [it] *is*.\n\n- one\n- two: <b>'
    page = report.render_report('', [('', text)])
    right = ' style="text-align:right"'
    assert [line for line in page.split('<h2></h2>')[1].split('\n') if line] == [
        *('<table>', '<thead>', '<tr>', '<th>method</th>', f'<th{right}>top-1</th>', '</tr>'),
        *('</thead>', '<tbody>', '<tr>', '<td>a &lt; b</td>', f'<td{right}>1 ± 0</td>', '</tr>'),
        *('</tbody>', '</table>'),
        *('<p>A line &amp; <code>code</code>', 'goes on, _as_ [it] *is*.</p>'),
        *('<ul>', '<li>one</li>', '<li>two: &lt;b&gt;</li>', '</ul>'),
        *('</section>', '</body>', '</html>'),
    ]


def test_a_page_refers_to_nothing_outside(tmp_path):
    Image.new('RGB', (300, 20)).save(tmp_path / 'a.png')
    page = report.render_report('A & B', [('Table', TABLE, ''), ('Plot', tmp_path / 'a.png', 'x')])
    tags = list(ElementTree.fromstring(page).iter())  # closed in order
    (image,) = (tag.attrib for tag in tags if {'src', 'href'} & tag.attrib.keys())
    source = base64.b64encode((tmp_path / 'a.png').read_bytes()).decode()
    assert image == dict(alt='Plot', width='200', src=f'data:image/png;base64,{source}')
    assert [tag.text for tag in tags if tag.tag in ('h1', 'h2')] == ['A & B', 'Table', 'Plot']
    assert not {'script', 'link', 'iframe'} & {tag.tag for tag in tags}
    assert not re.search(r'url\(|@import|https?:', page)


def run(name, folder, seed=0, config=KD):
    """Return a row of finished runs."""
    last = dict(epoch=2, top1=50.0 + seed, top5=90.0)
    curve = dict(epochs=[1, 2], top1=[40.0, 50.0 + seed], last=last)
    return dict(name=name, seed=seed, config=str(config), run_dir=str(folder), **curve)


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """Runs of random networks: a teacher, students alone and of it, and another teacher's."""
    root, cfg = tmp_path_factory.mktemp('report'), parsed(KD)
    cfg.val_dataloader.dataset.indices = 40
    kinds = dict(teacher='teacher', alone='student', wide='teacher')
    tables.save_networks(root, kinds | dict(kd='distilled', other='distilled'))
    (root / 'pruned').mkdir()
    (root / 'ensemble').mkdir()
    (root / 'ensemble' / 'epoch_2.pth').touch()
    teachers = dict(
        kd=f'{root}/teacher/epoch_2.pth',
        other=f'{root}/wide/epoch_2.pth',
        ensemble=['a.pth', 'b.pth'],
    )
    for folder in root.iterdir():
        cfg.model.teacher_ckpt = teachers.get(folder.name)
        cfg.dump(folder / KD.name)
    return root


@pytest.fixture
def shown(monkeypatch):
    """Names in every t-SNE, which is not computed, and images of each network."""
    monkeypatch.setattr(features, 'get_device', lambda: 'cpu')
    found = []

    def draw(networks, path, images):
        sizes = {len(one.labels) for one in networks.values()}
        found.append((list(networks), sizes, networks['teacher'].classes[3]))
        Image.new('RGB', (3, 2)).save(path)

    monkeypatch.setattr(features, 'plot_embedding', draw)
    return found


def test_students_are_shown_beside_their_teacher(folders, shown, tmp_path):
    names = ('teacher', 'wide', 'alone', 'kd', 'pruned', 'ensemble')
    rows = [run(name, folders / name, seed) for seed in (0, 1) for name in names]
    sections = report.draw_sections(pd.DataFrame(rows), tmp_path, 'digits')
    titles = ['Curves', 'Seeds', 'Features and logits', 'Not shown']
    assert [heading for heading, *_ in sections] == titles
    assert shown == [(['teacher', 'alone', 'kd'], {40}, '3')]  # each once
    teacher = folders / 'teacher' / 'epoch_2.pth'
    assert sections[-1][1].split('\n') == [
        f'- pruned, t-SNE and correlation: no checkpoint in {folders}/pruned.',
        '- ensemble, t-SNE and correlation: it has several teachers.',
        f'- wide, beside {teacher}: not the network of its students.',
    ]
    ElementTree.fromstring(report.render_report('digits', sections))
    for name in ('curves', 'accuracies', 'embedding', 'correlation'):
        assert (tmp_path / f'{name}.png').read_bytes()[:4] == b'\x89PNG'


def test_each_teacher_has_its_own_figures(folders, shown, tmp_path):
    rows = [run(name, folders / name) for name in ('alone', 'kd', 'other')]
    sections = report.draw_sections(pd.DataFrame(rows), tmp_path, 'digits')
    names = [['teacher', 'alone', 'kd'], ['teacher', 'alone', 'other']]
    assert [found for found, *_ in shown] == names
    for (heading, first, _, second, _), name, end in zip(
        sections[2:], ('teacher', 'wide'), ('.png', '_2.png'), strict=True
    ):
        assert heading == f'Beside the teacher {folders}/{name}/epoch_2.pth'
        assert (first.name, second.name) == (f'embedding{end}', f'correlation{end}')


def test_a_figure_that_fails_is_said(folders, shown, tmp_path, monkeypatch):
    def fail(*args):
        raise OSError('the images\nare gone')

    monkeypatch.setattr(features, 'run_network', fail)
    sections = report.draw_sections(pd.DataFrame([run('kd', folders / 'kd')]), tmp_path, 'digits')
    assert [heading for heading, *_ in sections[:2]] == ['Curves', 'Seeds']
    assert sections[2] == ('Features and logits', 'Not drawn: the images are gone')
    alone = report.draw_sections(pd.DataFrame([run('x', tmp_path)]), tmp_path, '')[2:]
    assert alone == [
        (
            'Not shown',
            f'- x, t-SNE and correlation: no checkpoint in {tmp_path}.\n'
            '- t-SNE and correlations: no run that can be shown has a teacher.',
        )
    ]


def test_a_table_has_figures_for_each_student(tmp_path):
    for name in ('kd_t_s_1e_data', 'vanilla_s_1e_data', 'kd_t_other_1e_data,tau=2'):
        tables.write_run(tmp_path, name, 0, [50.0, 60.0, 70.0])
    tables.write_run(tmp_path, 'kd_t_s_1e_data', 1, finished=False)
    runs = comparison.read_table_runs([tmp_path])
    page = report.report_table('Runs', runs, TABLE)
    headings = re.findall('<h2>(.*)</h2>', page)
    parts = ('Curves', 'Seeds', 'Not shown')
    assert headings == [
        'Accuracy',
        *(f'{part}: other_1e_data' for part in parts),
        *(f'{part}: s_1e_data' for part in parts),
    ]
    for name in ('kd_t,tau=2', 'kd_t', 'vanilla'):
        assert page.count(f'<li>{name}, t-SNE and correlation: no checkpoint in') == 1
    page = report.report_table('Runs', runs[~runs['finished']], TABLE)
    assert 'No run has finished.' in page
