"""Hooks of mkdocs.yml: pages that lie outside docs/, the tutorial, the reference, links."""

import re
from fnmatch import fnmatch
from importlib import import_module
from itertools import chain
from pathlib import Path
from posixpath import dirname, normpath, relpath

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r'(?<=\]\()([\w./-]+)(?=[#)])')


def on_files(files, config):
    """Add the pages that are not in docs/, and find what the navigation has by ``*``."""
    for path in chain(ROOT.glob('*.md'), ROOT.glob('configs/*/README.md')):
        source = path.relative_to(ROOT).as_posix()
        add(files, config, site_path(source), abs_src_path=str(path))
    for module, text in reference():
        add(files, config, f'reference/{module}.md', content=text)
    for name, content in tutorial().items():
        add(files, config, name, content=content)
    pages = {file.src_uri: file for file in files.documentation_pages()}
    named = set(names(config.nav))
    config.nav = list(expand(config.nav, {uri: pages[uri] for uri in sorted(pages.keys() - named)}))
    return files


def on_page_markdown(markdown, page, config, files):
    """Let links lead to where the site has the file; files that are not pages come with it."""
    if page.file.abs_src_path is None:
        return markdown
    folder = Path(page.file.abs_src_path).parent.relative_to(ROOT).as_posix()

    def rewrite(match):
        source = normpath(f'{folder}/{match[1]}')
        if not (ROOT / source).is_file():
            return match[1]  # MkDocs says that it is missing
        target = site_path(source)
        if target not in files.src_uris:
            add(files, config, target, abs_src_path=str(ROOT / source))
        return relpath(target, dirname(page.file.src_uri))

    return LINK.sub(rewrite, markdown)


def add(files, config, uri, **content):
    """Add a file to those of the site."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, uri, **content))


def site_path(source):
    """Return where the site has a file of the repository."""
    if '/' not in source:
        return {'README.md': 'index.md'}.get(source, source.lower())
    return source.removeprefix('docs/').replace('.ipynb', '.md')


def names(nav):
    """Yield the pages that a navigation names."""
    for entry in nav:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            yield from [value] if isinstance(value, str) else names(value)


def expand(nav, others):
    """Replace each pattern by the pages that match it, with the start of their heading as title."""
    for entry in nav:
        if isinstance(entry, dict):
            yield {
                k: v if isinstance(v, str) else list(expand(v, others)) for k, v in entry.items()
            }
        elif '*' in entry:
            for uri, file in others.items():
                if fnmatch(uri, entry) and uri.count('/') == entry.count('/'):
                    heading = re.search('^# (.*)', file.content_string, re.MULTILINE)[1]
                    yield {heading.split(':')[0]: uri}
        else:
            yield entry


def reference():
    """Yield each module with public names, and a page that documents them."""
    from crd_plugin.models import MODULES

    for module in (
        *MODULES,
        'crd_plugin.datasets',
        'crd_plugin.engine',
        'crd_plugin.ops',
        'crd_plugin.fragments',
    ):
        title = module.split('.')[-1].replace('_', ' ').capitalize()
        public = import_module(module).__all__
        yield module, '\n\n'.join([f'# {title}', *(f'::: {module}.{name}' for name in public)])


def tutorial():
    """Run the notebook; return its page and its pictures."""
    import nbformat
    from nbconvert import MarkdownExporter
    from nbconvert.preprocessors import ExecutePreprocessor
    from traitlets.config import Config

    notebook = nbformat.read(ROOT / 'docs/examples/tutorial.ipynb', as_version=4)
    # By sockets of this machine, since TCP makes the kernel warn.
    settings = Config(KernelManager=dict(transport='ipc'))
    ExecutePreprocessor(timeout=300, config=settings).preprocess(notebook)
    for cell in notebook.cells:
        # Warnings of other packages; an error ends the build.
        cell.outputs = [o for o in cell.get('outputs', []) if o.get('name') != 'stderr']
    page, resources = MarkdownExporter().from_notebook_node(notebook)
    return {f'examples/{k}': v for k, v in {'tutorial.md': page, **resources['outputs']}.items()}
