"""README, metafile and files of each folder of configs agree."""

import re
from pathlib import Path

import pytest
from mmengine.fileio import load

from tests import small_runs
from tests.config_files import (
    CONFIGS,
    FOLDERS,
    build,
    facts,
    leaves_of,
    networks_of,
    parsed,
    plain,
    rows_of,
)

pytestmark = pytest.mark.usefixtures('mmpretrain_scope')


def table(folder):
    """Rows of a folder's README, by the name of the config."""
    rows = rows_of(folder)
    links = [re.fullmatch(r'\[config\]\(([\w.-]+)\.py\)', row['Config'])[1] for row in rows]
    assert len(set(links)) == len(links)
    return dict(zip(links, rows, strict=True))


@pytest.mark.parametrize('folder', FOLDERS)
def test_readme_metafile_and_files_agree(folder):
    files = {leaf.stem for leaf in leaves_of(folder)}
    rows = table(folder)
    meta = load(str(CONFIGS / folder / 'metafile.yml'))
    models = {model['Name']: model for model in meta['Models']}
    assert len(models) == len(meta['Models'])
    assert set(rows) == files and set(models) == files
    # Each method has one title in the table.
    titles = {facts(leaf)['method']: rows[leaf.stem].get('Method') for leaf in leaves_of(folder)}
    assert len(set(titles.values())) == len(titles)
    (collection,) = meta['Collections']
    assert (small_runs.REPO / collection['README']).is_file()
    for stem, model in models.items():
        row = rows[stem]
        leaf = CONFIGS / folder / f'{stem}.py'
        name, data = facts(leaf), model['Metadata']
        assert small_runs.REPO / model['Config'] == leaf
        assert model['In Collection'] == collection['Name']
        assert data['Epochs'] == int(name['epochs'])
        assert data['Batch Size'] == parsed(leaf).auto_scale_lr.base_batch_size
        trained = networks_of(parsed(leaf))[0]
        assert data['Parameters'] == build(plain(trained))
        assert re.sub(r'\W', '', data['Training Data']).lower() == re.sub(r'\W', '', name['data'])
        for key in ('Network', 'Teacher', 'Student'):
            assert data.get(key) == row.get(key)
        assert [str(data.get('Teachers', '')), row.get('Teachers')] in (
            ['', None],
            [name['members']] * 2,
        )
        nets = [data[key] for key in ('Network', 'Teacher', 'Student') if key in data]
        assert re.sub('-', '', '_'.join(nets)).lower() == re.sub('-', '', name['nets'])
        assert row.get('Method') == titles[name['method']]
        # What was measured is in both or in neither.
        results = model.get('Results')
        assert bool(results) == bool(row['Ours'])


@pytest.mark.parametrize('folder', FOLDERS)
def test_commands_of_the_readme_name_what_exists(folder):
    text = (CONFIGS / folder / 'README.md').read_text()
    block = re.search(r'```shell\n(.*?)```', text, re.DOTALL)[1]
    paths = re.findall(r'(?:configs|tools)/[\w./-]+', block)
    assert len(paths) >= 4
    for path in paths:
        assert (small_runs.REPO / path).is_file(), path
    stem, epoch = re.search(r'work_dirs/([\w-]+)/epoch_(\d+)\.pth', block).groups()
    leaf = CONFIGS / folder / f'{stem}.py'
    assert parsed(leaf).train_cfg.max_epochs == int(epoch)
    eight = re.search(r'dist_train.sh (\S+) 8', block)
    large = any(facts(path)['gpus'] for path in leaves_of(folder))
    assert bool(eight) == large
    if eight:
        assert facts(Path(eight[1]))['gpus'] == '8'
    for link in re.findall(r'\]\((?!http)([^)]+)\)', text):
        assert (CONFIGS / folder / link).exists(), link


def test_model_index_imports_every_metafile():
    index = load(str(small_runs.REPO / 'model-index.yml'))
    metafiles = sorted(small_runs.REPO.glob('configs/*/metafile.yml'))
    assert sorted(index['Import']) == [str(p.relative_to(small_runs.REPO)) for p in metafiles]
