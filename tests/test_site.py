"""docs/hooks.py, which `make docs` runs: pages, navigation, links. The build itself is the rest."""

import json
import re
from types import SimpleNamespace

import pytest

import crd_plugin
from tests import small_runs, tables

REPO = small_runs.REPO
HOOKS = tables.load_tool('../docs/hooks.py')


@pytest.fixture
def rewrite(monkeypatch):
    """Links of a page behind the hook, and the files that it adds to those that the site has."""

    def call(markdown, source, uri, *have):
        added = []
        monkeypatch.setattr(HOOKS, 'add', lambda files, config, uri, **_: added.append(uri))
        page = SimpleNamespace(file=SimpleNamespace(abs_src_path=str(REPO / source), src_uri=uri))
        files = SimpleNamespace(src_uris=have)
        return HOOKS.on_page_markdown(markdown, page, None, files), added

    return call


@pytest.mark.parametrize(
    'source, uri, link, target',
    [
        ('README.md', 'index.md', 'docs/methods/crd.md', 'methods/crd.md'),
        ('README.md', 'index.md', 'CONTRIBUTING.md', 'contributing.md'),
        ('docs/concepts.md', 'concepts.md', '../README.md', 'index.md'),
        ('docs/methods/at.md', 'methods/at.md', '../choosing.md', '../choosing.md'),
        (
            'configs/crd/README.md',
            'configs/crd/README.md',
            '../../docs/choosing.md',
            '../../choosing.md',
        ),
        ('docs/how_to.md', 'how_to.md', 'examples/tutorial.ipynb', 'examples/tutorial.md'),
        ('docs/how_to.md', 'how_to.md', 'not_there.md', 'not_there.md'),
    ],
)
def test_links_lead_to_pages_of_the_site(rewrite, source, uri, link, target):
    have = ('index.md', 'contributing.md', 'choosing.md', 'methods/crd.md', 'examples/tutorial.md')
    text = 'A [page]({}), an [anchor]({}#x) and [another site](https://a.b/{}).'
    markdown, added = rewrite(text.format(link, link, link), source, uri, *have)
    assert markdown == text.format(target, target, link)
    assert added == []


def test_files_that_are_not_pages_come_with_the_site(rewrite):
    link = '../../configs/_base_/distillers/at.py'
    markdown, added = rewrite(f'[at.py]({link})', 'docs/methods/at.md', 'methods/at.md')
    assert markdown == '[at.py](../configs/_base_/distillers/at.py)'
    assert added == ['configs/_base_/distillers/at.py']


def test_a_new_page_is_found_by_the_navigation():
    nav = [{'Start': 'index.md'}, {'How to': ['a.md', '*.md']}, {'Methods': ['methods/*']}]
    assert list(HOOKS.names(nav)) == ['index.md', 'a.md', '*.md', 'methods/*']
    others = {
        uri: SimpleNamespace(content_string=f'# {title}\n')
        for uri, title in (('methods/x.md', 'X: ex'), ('new.md', 'New'), ('other/y.md', 'Y'))
    }
    assert list(HOOKS.expand(nav, others)) == [
        {'Start': 'index.md'},
        {'How to': ['a.md', {'New': 'new.md'}]},
        {'Methods': [{'X': 'methods/x.md'}]},
    ]


def test_reference_has_every_public_class():
    text = '\n'.join(page for _, page in HOOKS.reference())
    public = {name for name in dir(crd_plugin) if name[0].isupper()} - {'TYPE_CHECKING'}
    assert public <= set(re.findall(r'^::: crd_plugin[\w.]*\.(\w+)$', text, re.MULTILINE))


def test_notebook_is_kept_without_outputs():
    notebook = json.loads((REPO / 'docs/examples/tutorial.ipynb').read_text())
    assert not any(cell.get('outputs') for cell in notebook['cells'])


def test_nothing_comes_from_another_host():
    settings = (REPO / 'mkdocs.yml').read_text()
    assert 'font: false' in settings and 'http' not in settings
    for path in (REPO / 'docs' / 'images').glob('*.svg'):
        assert re.findall(r'https?://[^"]*', path.read_text()) == ['http://www.w3.org/2000/svg']
