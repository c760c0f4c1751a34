"""Differences paired by seed, their intervals, and the figure of accuracies."""

import pandas as pd
import pytest

from crd_plugin.cli.statistics import paired_differences, plot_accuracies, render_differences


def _runs(**top1):
    """One run per method and seed, from seed 0."""
    rows = [
        dict(name=name, seed=seed, last=dict(top1=value))
        for name, values in top1.items()
        for seed, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


def test_difference_is_paired_and_its_interval_is_that_of_t():
    # The seeds differ by tens, the methods by 2, 3 and 1: mean 2, deviation 1.
    runs = _runs(kd=(50.0, 60.0, 70.0), crd=(52.0, 63.0, 71.0), at=(51.0, 59.0, 70.0))
    found = paired_differences(runs, 'kd')
    half = 4.302653 / 3**0.5  # t of two degrees of freedom, 97.5 %
    assert found['crd'] == dict(
        mean=2.0,
        low=pytest.approx(2 - half, abs=1e-6),
        high=pytest.approx(2 + half, abs=1e-6),
        seeds=[0, 1, 2],
        clear=False,
    )
    assert found['at']['mean'] == 0 and not found['at']['clear']
    assert list(found) == ['crd', 'at']
    # Less noise, the same mean: zero is outside, above or below.
    clear = paired_differences(_runs(kd=(50.0, 60.0), crd=(52.0, 62.0), at=(47.9, 58.0)), 'kd')
    assert clear['crd'] == dict(mean=2.0, low=2.0, high=2.0, seeds=[0, 1], clear=True)
    assert clear['at']['clear'] and clear['at']['high'] < 0


def test_seeds_that_one_method_lacks_do_not_count():
    found = paired_differences(_runs(kd=(50.0, 60.0, 99.0), crd=(51.0, 62.0), at=(51.0,)), 'kd')
    assert found['crd']['mean'] == 1.5 and found['crd']['seeds'] == [0, 1]
    assert found['at'] == dict(mean=1.0, low=None, high=None, seeds=[0], clear=False)
    apart = _runs(kd=(50.0,), crd=(51.0,)).assign(seed=[0, 1])
    assert paired_differences(apart, 'kd') == {}


def test_table_of_differences():
    runs = _runs(alone=(50.0, 60.0), kd=(52.0, 62.0), crd=(49.0, 61.0))
    columns = {name: paired_differences(runs, name) for name in ('alone', 'kd')}
    lines = render_differences(['teacher', 'alone', 'kd', 'crd'], columns).splitlines()
    cells = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]
    assert cells[0] == ['method', 'alone', 'kd'] and len(cells) == 5
    assert cells[2:4] == [
        ['alone', '-', '-2.00 [-2.00, -2.00] *'],
        ['kd', '+2.00 [+2.00, +2.00] *', '-'],
    ]
    assert cells[4] == ['crd', '+0.00 [-12.71, +12.71]', '-2.00 [-14.71, +10.71]']


def test_figure_has_a_row_per_method(tmp_path):
    from PIL import Image

    sizes = []
    for runs in (_runs(kd=(50.0,)), _runs(kd=(50.0, 51.0), crd=(51.0, 53.0), at=(50.0, 49.0))):
        plot_accuracies(runs, tmp_path / 'accuracies.png', title='digits')
        with Image.open(tmp_path / 'accuracies.png') as image:
            sizes.append(image.size)
            colours = {pixel for _, pixel in image.convert('RGB').getcolors(10**6)}
        assert {(0x1F, 0x77, 0xB4), (0x99, 0x99, 0x99)} <= colours
    assert sizes == [(1050, 210), (1050, 330)]
