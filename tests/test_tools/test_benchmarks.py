"""The benchmark scripts run and write what they promise."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

_SCRIPT = Path(__file__).parents[2] / 'tools' / 'benchmarks' / 'crd_loss.py'


def run(*args):
    """Run the benchmark of the objective."""
    return subprocess.run([sys.executable, str(_SCRIPT), *args], capture_output=True, text=True)


def test_crd_loss(tmp_path):
    target = tmp_path / 'cases.json'
    done = run(
        '--size', 'smoke', '--rounds', '2', '--modes', 'sampled', 'all', '--json', str(target)
    )
    assert done.returncode == 0, done.stderr
    cases = json.loads(target.read_text())
    assert [case['name'] for case in cases] == ['mmrazor', 'sampled', 'all']
    for case in cases:
        assert {'seconds', 'reference_seconds', 'ratio', 'peak_mib'} <= set(case)
        assert case['seconds'] > 0 and case['peak_mib'] > 0
        assert case['reference_seconds'] == cases[0]['seconds']
        assert case['ratio'] == pytest.approx(case['reference_seconds'] / case['seconds'])
        assert f'{case["name"]:<18}' in done.stdout
        assert case['ceiling_gflop_per_second'] > 0
        assert case['ceiling_gbyte_per_second'] > 0
        assert case['gflop_per_second'] == pytest.approx(case['flop'] / case['seconds'] / 1e9)
        assert case['gbyte_per_second'] == pytest.approx(case['bytes'] / case['seconds'] / 1e9)
    # Two directions, two products each, 2 FLOP a multiplication; `sampled`
    # draws 12 parts of (64 + 100) / 3 rows with three places in each.
    flop = {case['name']: case['flop'] for case in cases}
    assert flop == {
        'mmrazor': 2 * 2 * 2 * 8 * 65 * 16,
        'sampled': 2 * 2 * 2 * 12 * 55 * 3 * 16,
        'all': 2 * 2 * 2 * 8 * 1000 * 16,
    }
    assert cases[0]['draw_seconds'] == 0 < cases[1]['draw_seconds']
    assert 'B=8 N=1000 K=64 D=16' in done.stdout


def test_crd_loss_of_another_size_and_dtype(tmp_path):
    target = tmp_path / 'cases.json'
    done = run(
        '--size',
        'smoke',
        '--rounds',
        '1',
        '--modes',
        'shared',
        '--samples',
        '600',
        '--negatives',
        '32',
        '--dtypes',
        'float32',
        'bfloat16',
        '--json',
        str(target),
    )
    assert done.returncode == 0, done.stderr
    assert 'B=8 N=600 K=32 D=16' in done.stdout
    cases = json.loads(target.read_text())
    assert [case['name'] for case in cases] == ['mmrazor', 'shared', 'shared bfloat16']
    assert cases[1]['flop'] == cases[2]['flop'] == 2 * 2 * 2 * 8 * 32 * 16


@pytest.mark.parametrize(
    'args, message',
    [
        (('--rounds', '0'), '--rounds and --threads must be at least 1'),
        (('--size', 'huge'), "invalid choice: 'huge'"),
        (('--width', '0'), '--width is 0, expected at least 1'),
        (('--device', 'tpu'), "invalid choice: 'tpu'"),
        (
            ('--size', 'smoke', '--classes', '1'),
            '--classes is 1, expected 2 to the 1000 of --samples',
        ),
        (
            ('--size', 'smoke', '--batch-size', '1001'),
            '--batch-size is 1001, expected at most the 1000 of --samples',
        ),
        (
            ('--json', 'no/such/folder.json'),
            '--json is no/such/folder.json, expected a file in a folder',
        ),
    ],
)
def test_wrong_arguments(args, message):
    done = run(*args)
    assert done.returncode != 0
    assert message in done.stderr
    assert 'Traceback' not in done.stderr
