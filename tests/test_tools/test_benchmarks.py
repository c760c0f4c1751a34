"""The benchmark scripts run and write what they promise."""
import json
import subprocess
import sys
from pathlib import Path

import pytest

_SCRIPT = (
    Path(__file__).parents[2] / 'tools' / 'benchmarks' / 'crd_loss.py')


def run(*args):
    """Run the benchmark of the objective."""
    return subprocess.run([sys.executable, str(_SCRIPT), *args],
                          capture_output=True,
                          text=True)


def test_crd_loss(tmp_path):
    target = tmp_path / 'cases.json'
    done = run('--size', 'smoke', '--rounds', '2', '--modes', 'sampled',
               'all', '--json', str(target))
    assert done.returncode == 0, done.stderr
    cases = json.loads(target.read_text())
    assert [case['name'] for case in cases] == ['mmrazor', 'sampled', 'all']
    for case in cases:
        assert {'seconds', 'reference_seconds', 'ratio',
                'peak_mib'} <= set(case)
        assert case['seconds'] > 0 and case['peak_mib'] > 0
        assert case['reference_seconds'] == cases[0]['seconds']
        assert case['ratio'] == pytest.approx(
            case['reference_seconds'] / case['seconds'])
        assert f'{case["name"]:<10}' in done.stdout
    assert 'B=8 N=1000 K=64 D=16' in done.stdout


@pytest.mark.parametrize('args, message', [
    (('--rounds', '0'), '--rounds and --threads must be at least 1'),
    (('--size', 'huge'), "invalid choice: 'huge'"),
])
def test_wrong_arguments(args, message):
    done = run(*args)
    assert done.returncode != 0
    assert message in done.stderr
    assert 'Traceback' not in done.stderr
