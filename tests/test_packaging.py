"""The package installs with its configs and tools, and as documented."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """A copy of what a build reads, so that the checkout stays clean."""
    folder = tmp_path_factory.mktemp('build') / 'source'
    folder.mkdir()
    for name in ('crd_plugin', 'configs', 'tools', 'requirements'):
        shutil.copytree(
            ROOT / name, folder / name, ignore=shutil.ignore_patterns('__pycache__', '.mim')
        )
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    return folder


def build(source, kind):
    """Call a hook of the build backend, as pip does, without a network."""
    out = source.parent / kind
    out.mkdir()
    code = f'import setuptools.build_meta as b; b.build_{kind}(r"{out}")'
    subprocess.run([sys.executable, '-c', code], cwd=source, check=True, capture_output=True)
    (built,) = out.iterdir()
    return built


def relative_files(folder):
    """Files of a folder of the checkout, without caches."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / folder).rglob('*')
        if path.is_file() and '__pycache__' not in path.parts
    }


def names_in(wheel):
    """Sorted names of the files in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return sorted(archive.namelist())


@pytest.fixture(scope='module')
def wheel(source):
    return build(source, 'wheel')


def test_wheel_holds_configs_and_tools(wheel):
    names = set(names_in(wheel))
    wanted = relative_files('configs') | relative_files('tools')
    assert any(name.startswith('configs/_base_/') for name in wanted)
    assert {f'crd_plugin/.mim/{name}' for name in wanted} <= names
    assert {name for name in relative_files('crd_plugin') if '/.mim/' not in name} <= names
    tops = {name.split('/')[0] for name in names}
    assert tops == {'crd_plugin', next(t for t in tops if 'dist-info' in t)}
    assert not any('__pycache__' in name for name in names)


def test_installed_config_is_inherited_by_package_name(source, wheel):
    site, config = source.parent / 'site', source.parent / 'mine.py'
    shutil.unpack_archive(wheel, site, 'zip')
    config.write_text("_base_ = 'crd_plugin::crd/crd_resnet14_resnet8w4_b20-100e_digits.py'\n")
    # The types of the config keep their own scope.
    code = (
        'import crd_plugin; from mmengine.config import Config;'
        f'cfg = Config.fromfile(r"{config}");'
        'print(crd_plugin.__file__, cfg.default_scope);'
        'assert "_scope_" not in repr(cfg)'
    )
    environment = dict(os.environ, PYTHONPATH=str(site))
    command = [sys.executable, '-c', code]
    out = subprocess.check_output(command, env=environment, cwd=source.parent, text=True)
    assert out.split() == [str(site / 'crd_plugin' / '__init__.py'), 'mmpretrain']


def test_source_distribution_builds_the_same_wheel(source, wheel):
    shutil.unpack_archive(build(source, 'sdist'), source.parent / 'unpacked')
    (unpacked,) = (source.parent / 'unpacked').iterdir()
    assert not (unpacked / 'crd_plugin' / '.mim').exists()
    assert names_in(build(unpacked, 'wheel')) == names_in(wheel)


def test_editable_install_links_to_the_checkout(source):
    build(source, 'editable')
    mim = source / 'crd_plugin' / '.mim'
    for name in ('configs', 'tools'):
        assert (mim / name).is_symlink()
        assert not os.path.isabs(os.readlink(mim / name))
        assert (mim / name).resolve() == (source / name).resolve()


# --- requirements ---------------------------------------------------------- #


def requirements(name):
    """The lines of a requirements file."""
    lines = (ROOT / 'requirements' / name).read_text().splitlines()
    lines = [line.split('#')[0].strip() for line in lines]
    return [Requirement(line) for line in lines if line and not line.startswith('-')]


def declared(*options):
    """Requirements of setup.cfg."""
    parser = configparser.ConfigParser(comment_prefixes='#')
    parser.read(ROOT / 'setup.cfg')
    lines = '\n'.join(parser.get(*option) for option in options).splitlines()
    return [Requirement(line) for line in lines if line.strip()]


def test_every_tested_version_is_exact():
    for path in (ROOT / 'requirements').glob('*.txt'):
        for requirement in requirements(path.name):
            assert re.fullmatch(r'==[\w.]+', str(requirement.specifier)), path


def test_ranges_admit_the_tested_versions():
    tested = {}
    for name in ('runtime.txt', 'demo.txt', 'export.txt', 'tests.txt'):
        for requirement in requirements(name):
            tested.setdefault(requirement.name, []).append(requirement)
    extras = [('options.extras_require', name) for name in ('mim', 'demo', 'export', 'tests')]
    ranges = declared(('options', 'install_requires'), *extras)
    assert len(ranges) > 10
    for wanted in ranges:
        assert wanted.name in tested, f'{wanted.name} is not pinned'
        for requirement in tested[wanted.name]:
            version = str(requirement.specifier)[2:]
            assert wanted.specifier.contains(version), wanted


def test_pip_overwrites_no_distribution_of_the_same_package():
    names = {r.name for r in declared(('options', 'install_requires'))}
    assert not names & {'mmengine', 'mmpretrain'}
    for file in (ROOT / 'requirements').glob('*.txt'):
        if file.name != 'mmcv.txt':
            names |= {r.name for r in requirements(file.name)}
    assert not names & {'mmcv', 'mmcv-lite', 'mmcv-full'}
    assert [r.name for r in requirements('mmcv.txt')] == ['mmcv-lite']


# --- make ------------------------------------------------------------------ #


def make(*argv):
    """Run make in the checkout."""
    command = ['make', '--no-print-directory', *map(str, argv)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture
def planned(tmp_path):
    """Return what make would run for a target, in one line, with tmp_path/v as environment."""

    def plan(*argv):
        text = make('--dry-run', *argv, f'VENV={tmp_path}/v').stdout
        return ' '.join(text.replace('\\\n', ' ').split())

    return plan


@pytest.mark.parametrize(
    'words, command',
    [
        (
            ['demo', 'SEEDS=5', 'METHODS=kd crd', 'WORK_DIR=my runs'],
            'tools/demo.py --seeds 5 --methods "kd crd" --work-dir "my runs"',
        ),
        (['fashion', 'JOBS=2'], 'tools/demo.py --data fashion-mnist --resume --jobs 2'),
        (['gpu-report', 'WORK_DIR=my report'], 'tools/benchmarks/gpu_report.py --out "my report"'),
    ],
)
def test_make_passes_its_variables(planned, words, command):
    assert command in planned(*words)
    assert '--seeds' not in planned('demo') and '--data' not in planned('demo')


def test_make_says_how_to_activate_the_environment(planned, tmp_path):
    for target in ('install', 'demo'):
        assert f'source {tmp_path}/v/bin/activate' in planned(target)


def test_lint_runs_every_tool_with_a_pinned_version(planned, tmp_path):
    pinned = {requirement.name for requirement in requirements('lint.txt')} - {'tomli'}
    hooks = (ROOT / '.pre-commit-config.yaml').read_text()
    for command in ('ruff format', 'ruff check', 'codespell', 'mypy'):
        assert f'{tmp_path}/v/bin/{command}' in planned('lint')
        assert f'entry: {command}' in hooks
        pinned.discard(command.split()[0])
    assert not pinned


def test_mmcv_is_installed_only_where_there_is_none(planned):
    found = r'find_spec\("mmcv"\) is None\)\' \|\| \S+ -m pip install \S+ +-r requirements/mmcv.txt'
    assert re.search(found, planned('install'))


@pytest.mark.parametrize(
    'body, message',
    [
        ('exit 1', 'is older than Python 3.10 or missing'),
        ('case "$2" in *ensurepip*) exit 1;; esac', 'apt install python3-venv'),
    ],
)
def test_unfit_python_is_told_in_one_line(tmp_path, body, message):
    python = tmp_path / 'python'
    python.write_text(f'#!/bin/sh\n{body}\n')
    python.chmod(0o755)
    result = make('install', f'PYTHON={python}', f'VENV={tmp_path}/v')
    assert result.returncode != 0
    errors = [line for line in result.stderr.splitlines() if line.startswith('error: ')]
    assert len(errors) == 1 and message in errors[0]
    assert not (tmp_path / 'v').exists()
