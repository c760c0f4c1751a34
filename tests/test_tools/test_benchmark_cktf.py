"""The benchmark of CKTF runs and writes what it promises."""

import json
import subprocess
import sys

import pytest

from tests import small_runs

_SCRIPT = small_runs.REPO / 'tools' / 'benchmarks' / 'cktf.py'


def run(*args):
    return subprocess.run([sys.executable, str(_SCRIPT), *args], capture_output=True, text=True)


def test_cktf(tmp_path):
    target = tmp_path / 'cases.json'
    done = run(
        '--size',
        'smoke',
        '--rounds',
        '1',
        '--threads',
        '1',
        '--levels',
        '1',
        '4',
        '--clock',
        'cpu',
        '--json',
        str(target),
    )
    assert done.returncode == 0, done.stderr
    cases = {case['name']: case for case in json.loads(target.read_text())}
    assert list(cases) == ['crd', 'pairing', '1 level', '4 levels', '4 apart']
    for name, case in cases.items():
        assert case['seconds'] > 0 and case['peak_mib'] > 0
        assert case['ratio'] == pytest.approx(case['seconds'] / cases['crd']['seconds'])
        assert f'{name:<10}' in done.stdout
    # Rows are each level's own, labels and their index are held once.
    held = {name: case['held_mib'] for name, case in cases.items()}
    assert held['1 level'] == pytest.approx(held['crd'])
    assert held['4 apart'] == pytest.approx(4 * held['crd'])
    assert 3 * held['crd'] < held['4 levels'] < 3.9 * held['crd']
    assert held['pairing'] == 0
    assert 'B=4 N=200 K=32 D=8' in done.stdout


@pytest.mark.parametrize(
    'args, message',
    [
        (('--rounds', '0'), '--rounds and --threads must be at least 1'),
        (('--levels', '2'), 'invalid choice: 2'),
    ],
)
def test_wrong_arguments(args, message):
    done = run(*args)
    assert done.returncode != 0
    assert message in done.stderr
    assert 'Traceback' not in done.stderr
