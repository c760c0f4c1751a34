"""The documents: what they name exists, what they show loads, runs and prints that."""

import ast
import os
import re
import runpy
import socket
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

import crd_plugin
from crd_plugin import __main__ as command
from crd_plugin.cli.dry_run import dry_run_file
from crd_plugin.compat.mmpretrain_tools import scripts
from crd_plugin.registry import MODELS
from tests import small_runs
from tests.config_files import APART

REPO = small_runs.REPO
DOCS = REPO / 'docs'
PAGES = sorted([REPO / 'README.md', REPO / 'CONTRIBUTING.md', *DOCS.rglob('*.md')])
EXAMPLES = sorted(DOCS.glob('examples/*_imagenet.py'))
OWN_IMAGES = DOCS / 'examples' / 'own_images'
PATH = re.compile(
    r'(?<![\w$./-])(?:configs|crd_plugin|docs|requirements|tests|tools)/[\w./-]*[\w/](?![\w*$<{…-])'
)
# MMRazor's configs, and names of files that a reader may write.
NOT_HERE = re.compile(r'configs/distill/|.*(\b|_)(logit|my|x)(\b|_)')
# Millions of parameters of student and teacher, from MMPretrain's metafiles and, for the student
# of timm, its model card.
PUBLISHED = {
    'crd_convnext-tiny_mobilenetv3_imagenet': (5.48, 28.589),
    'crd-kd_resnet34_resnet10t_imagenet': (5.44, 21.798),
}


def pages(path):
    """Id of a page in the names of tests."""
    return path.relative_to(REPO).as_posix()


def blocks(path, language):
    """Code blocks of a page in one language."""
    return re.findall(rf'```{language}\n(.*?)```', path.read_text(), re.DOTALL)


def python_blocks(wanted):
    """Python blocks of all pages that satisfy a condition, with the page as id."""
    found = [(path, code) for path in PAGES for code in blocks(path, 'python')]
    found = [(path, code) for path, code in found if wanted(path, code)]
    return [pytest.param(code, id=f'{pages(p)}-{n}') for n, (p, code) in enumerate(found)]


def commands(path):
    """Commands of a page, each in one line, with the variables that it sets put in."""
    text = '\n'.join(blocks(path, 'bash')).replace('\\\n', ' ')
    values = dict(re.findall(r'^(\w+)=(\S+)', text, re.MULTILINE))
    values['T'] = 'tools'
    for line in text.splitlines():
        for name, value in values.items():
            line = re.sub(rf'\${name}\b', value, line)
        yield line.split('#')[0].strip()


@pytest.mark.parametrize('path', PAGES, ids=pages)
def test_links_and_paths_exist(path):
    text = path.read_text()
    for link, anchor in re.findall(r'\]\((?!http)([^)#]*)(?:#([^)]+))?\)', text):
        target = path.parent / link if link else path
        assert target.exists(), link
        if anchor:
            titles = re.findall(r'^#+ (.*)', target.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r'[^\w -]', '', t.lower()).replace(' ', '-') for t in titles]
    for name in PATH.findall(text):
        assert NOT_HERE.match(name) or (REPO / name).exists(), name


@pytest.mark.parametrize('path', PAGES, ids=pages)
def test_commands_name_files_and_flags_that_exist(path):
    for line in commands(path):
        words = line.split()
        tools = [word for word in words if re.fullmatch(r'tools/[\w/]+\.(py|sh)', word)]
        if not tools:
            continue
        source = (REPO / tools[0]).read_text()
        if tools[0].endswith('.sh'):
            source += (REPO / 'tools/train.py').read_text()
        modules = ', '.join(re.findall(r'from crd_plugin\.cli import (.*)', source) + ['arguments'])
        for module in re.findall(r'(?:^|, )(\w+)', modules):
            source += (REPO / f'crd_plugin/cli/{module}.py').read_text()
        if tools[0] == 'tools/mmpretrain_tool.py' and words[2] != 'NAME':
            source += scripts()[words[2]].read_text()
        for module in (REPO / tools[0]).parent.glob('timing.py'):
            source += module.read_text()
        for flag in re.findall(r'(?<!\S)--[\w-]+', line):
            assert f"'{flag}'" in source or f'{flag}"' in source, line
        for word in words:
            if re.fullmatch(r'configs/[\w/.-]+\.py', word):
                assert NOT_HERE.match(word) or (REPO / word).is_file(), line


def test_python_names_can_be_imported():
    """The table of README, and what the pages import."""
    text = (REPO / 'README.md').read_text().split('## What is inside')[1].split('## Speed')[0]
    names = set(re.findall(r'`crd_plugin\.(\w+)`', text))
    assert {'CRDLoss', 'MemoryBankHook', 'SampleIndexDataset', 'ops'} <= names
    for name in names:
        assert hasattr(crd_plugin, name) or hasattr(crd_plugin, f'{name}Recorder'), name
    for path in PAGES:
        imports = re.findall(r'from (crd_plugin[\w.]*) import (\w+(?:, \w+)*)', path.read_text())
        for module, found in imports:
            assert all(hasattr(import_module(module), name) for name in found.split(', ')), found


@pytest.mark.parametrize(
    'code', python_blocks(lambda path, code: path.parent.name == 'methods' and 'type=' in code)
)
def test_loss_of_a_method(code):
    assert MODELS.build(eval(code)).loss_weight is not None


@pytest.mark.parametrize(
    'code',
    python_blocks(
        lambda path, code: (
            '_base_ = ' in code and not re.search(r"'\./|root|stack_edges|LoadImage", code)
        )
    ),
)
def test_config_loads_and_runs_a_step(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for prefix in ('../../configs/', 'crd_plugin::', '../'):
        code = code.replace(f"'{prefix}", f"'{REPO}/configs/")
    Path('leaf.py').write_text(code)
    # TensorBoard is not installed for the tests.
    monkeypatch.setattr('mmengine.visualization.TensorboardVisBackend.experiment', Mock())
    report = dry_run_file('leaf.py', use_teacher_ckpt=False, batch_size=2)
    assert report.problems == []
    assert all(row.student != 'none' for row in report.losses if row.summed)


@pytest.mark.parametrize('path', EXAMPLES, ids=lambda path: path.stem)
def test_example_of_own_networks(path, tmp_path, monkeypatch):
    """Built at full size; one step on two images of 64x64 instead of 224."""
    assert path.read_text().rstrip() in '\n'.join(blocks(DOCS / 'your_own_pair.md', 'python'))
    monkeypatch.chdir(tmp_path)
    scale = {'train_dataloader.dataset.dataset.pipeline.1.scale': 64}
    report = dry_run_file(str(path), {'model.teacher_ckpt': None, **scale}, batch_size=2)
    assert report.problems == []
    assert '2 x 3 x 64 x 64' in report.images
    parts = {part.part: part.total / 1e6 for part in report.parts}
    student, teacher = PUBLISHED[path.stem]
    assert parts['student'] == pytest.approx(student, abs=0.006)
    assert parts['teacher'] == pytest.approx(teacher, abs=0.0006)
    assert all(row.student > 0 for row in report.losses if row.summed)


def test_example_of_own_images(tmp_path, monkeypatch):
    """Files as shown; the images that are drawn are what the settings read."""
    shown = '\n'.join(blocks(DOCS / 'your_own_images.md', 'python'))
    files = {path.stem: path.read_text() for path in OWN_IMAGES.glob('*.py')}
    assert all(text.rstrip() in shown for name, text in files.items() if name != 'make_images')
    write_files(tmp_path, monkeypatch, **files)
    runpy.run_path('make_images.py')
    for name in ('teacher', 'student', 'crd-kd'):
        report = dry_run_file(f'{name}.py', use_teacher_ckpt=False, batch_size=2)
        assert report.problems == []
        assert report.data == 'crd_plugin.SampleIndexDataset, 240 samples, 4 classes'
        assert report.images == '2 x 3 x 64 x 64 uint8 (training samples)'
    assert [row.rows for row in report.banks] == [240]


def test_example_of_a_plain_loop(tmp_path):
    """It needs torch, MMEngine and the digits alone, and prints what the page says."""
    path = DOCS / 'examples' / 'plain_loop.py'
    page = (DOCS / 'training.md').read_text()
    assert f'```python\n{path.read_text()}```' in page
    code = (
        f'import runpy, sys; runpy.run_path({str(path)!r})\n'
        "print({'mmpretrain', 'mmrazor', 'mmcv', 'cv2'} & {*sys.modules})"
    )
    result = subprocess.run(
        [sys.executable, '-c', code], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    *printed, imported = result.stdout.splitlines(keepends=True)
    assert imported == 'set()\n'
    (shown,) = re.findall(r'```\n(teacher .*?)```', page, re.DOTALL)
    words = [re.split(r'([\d.]+)', line)[::2] for line in printed]
    assert words == [re.split(r'([\d.]+)', line)[::2] for line in shown.splitlines(keepends=True)]
    numbers = [
        [float(x) for x in re.findall(r'[\d.]+', text)] for text in (''.join(printed), shown)
    ]
    assert numbers[0] == pytest.approx(numbers[1], abs=5)


def test_example_of_one_call(tmp_path, monkeypatch):
    """The command of the page, for one epoch, on what the example writes."""
    (line,) = (line for line in commands(DOCS / 'one_call.md') if 'crd_plugin distill' in line)
    source = (DOCS / 'examples' / 'one_call' / 'digits.py').read_text()
    (tmp_path / 'digits.py').write_text(source.replace('range(8)', 'range(1)'))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    runpy.run_path('digits.py', run_name='__main__')
    assert len(list(Path('digits/train').rglob('*.png'))) == 1000
    workers = [f'{loader}_dataloader.num_workers=0' for loader in ('train', 'val')]
    command.main([*line.split()[3:], *workers, '--epochs', '1'])
    (checkpoint,) = Path().glob('work_dirs/crd_digits.teacher_resnet8/epoch_1.pth')
    weights = small_runs.load(checkpoint)['state_dict']
    assert weights['distiller.distill_losses.loss_crd.bank.teacher'].shape == (1000, 128)


def run_plain_loop(rank, folder):
    """One rank of the plain loop; saves the state of its loss and of its networks."""
    address = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=(Path(folder) / 'port').read_text())
    os.environ.update(address, RANK=str(rank), WORLD_SIZE='2')
    found = runpy.run_path(str(DOCS / 'examples' / 'plain_loop.py'))
    state = {**found['crd'].state_dict(), **found['model'].state_dict()}
    torch.save(state, f'{folder}/rank_{rank}.pth')


@pytest.mark.slow
def test_example_of_a_plain_loop_in_two_processes(tmp_path):
    """Banks and networks of both ranks are equal bit for bit."""
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        (tmp_path / 'port').write_text(str(server.getsockname()[1]))
    first, second = small_runs.run_ranks(run_plain_loop, tmp_path)
    assert {'bank.student', 'bank.log_z_student', 'embed_t.linear.weight'} <= set(first)
    for key, value in first.items():
        # Batch statistics are each rank's own.
        if 'running' not in key:
            assert torch.equal(value, second[key]), key


def test_example_of_other_losses_in_a_plain_loop():
    """All rows are written, the queue is, and the averages move."""
    (code,) = (x for x in blocks(DOCS / 'training.md', 'python') if 'EnsembleCRDLoss' in x)
    torch.manual_seed(0)
    exec(code, found := {})
    ones = torch.ones(40)
    assert len(found['banks']) == 2
    for bank in found['banks']:
        torch.testing.assert_close(bank.student.norm(dim=1), ones)
        assert bank.has_z
    cocord = found['cocord']
    assert cocord.queue.pointer == 40
    torch.testing.assert_close(cocord.queue.keys[:40].norm(dim=1), ones)
    assert not torch.equal(cocord.slow_projector[0].weight, cocord.projector[0].weight)
    assert not torch.equal(found['slow_student'].weight, found['student'].weight)


def write_files(folder, monkeypatch, **files):
    """Write modules into the working directory, with our configs as bases."""
    for name, code in files.items():
        code = code.replace('crd_plugin::', f'{REPO}/configs/')
        (folder / f'{name}.py').write_text(code)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))


def test_stacked_modalities(tmp_path, monkeypatch):
    """The transform and the config of two inputs; each network sees what the page says."""
    transform, leaf = blocks(DOCS / 'two_inputs.md', 'python')[:2]
    write_files(tmp_path, monkeypatch, stack_edges=transform, edges=leaf)
    report = dry_run_file('edges.py', use_teacher_ckpt=False)
    assert report.problems == []
    assert [row.images for row in report.inputs] == ['(4, 1, 16, 16)', '(4, 3, 16, 16)']
    # Black is normalised by each network's own mean and std.
    lowest = [row.min for row in report.inputs]
    assert lowest == pytest.approx([-28.9 / 28.7, -78 / 81.4], abs=1e-4)


def test_own_method(tmp_path, monkeypatch):
    """The three files of a project of one's own."""
    loss, fragment, leaf = blocks(DOCS / 'adding_a_method.md', 'python')[:3]
    write_files(tmp_path, monkeypatch, my_logit=loss, logit=fragment, my_run=leaf)
    report = dry_run_file('my_run.py', use_teacher_ckpt=False)
    assert report.problems == []
    assert [row.name for row in report.losses] == ['student.loss', 'distill.loss_logit']


def test_messages_that_troubleshooting_explains_are_raised():
    """Each is a string of the package, filled in."""
    templates = []
    for path in Path(crd_plugin.__file__).parent.rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            parts = getattr(node, 'values', [node]) if isinstance(node, ast.JoinedStr) else [node]
            fixed = [p.value if isinstance(p, ast.Constant) else None for p in parts]
            if sum(len(part) for part in fixed if isinstance(part, str)) > 20:
                pattern = ''.join('.+' if part is None else re.escape(part) for part in fixed)
                templates.append(re.compile(pattern))
    messages = blocks(DOCS / 'troubleshooting.md', 'text')
    assert len(messages) >= 10
    for message in messages:
        assert any(template.fullmatch(message.strip()) for template in templates), message


def test_every_method_has_a_page():
    folders = {path.name for path in (REPO / 'configs').iterdir() if path.is_dir()}
    # Configs that are not of one method have pages by task.
    others = {'_base_', 'ablation', 'ensemble', 'vanilla', '__pycache__', *APART}
    methods = folders - others
    assert methods == {path.stem for path in (DOCS / 'methods').glob('*.md')}
    readme = (REPO / 'README.md').read_text()
    for name in methods:
        assert f'(docs/methods/{name}.md)' in readme
