"""KD is MMRazor's loss: it gives the published numbers."""

import pytest
import torch
from mmengine.config import Config

from crd_plugin.registry import MODELS
from tests import golden, method_cases, small_runs

KD = Config.fromfile(small_runs.REPO / 'configs/_base_/distillers/kd.py').kd


def build(**kwargs):
    return MODELS.build({**KD.distiller.distill_losses.loss_kd, **kwargs})


@pytest.mark.parametrize('dtype', method_cases.DTYPES)
@pytest.mark.parametrize('name', ['zoo_kd', 'zoo_kd_T2'])
def test_published_numbers(name, dtype):
    case = golden.load(name)
    loss = build(tau=float(case['temperature']), loss_weight=1.0)
    method_cases.check(loss, case, dtype)


def test_published_settings():
    loss = build()
    assert loss.tau == 4 and loss.loss_weight == 1
    loss = build(**KD.alone.distiller.distill_losses.loss_kd)
    assert loss.tau == 4 and loss.loss_weight == 0.9


def test_against_a_loop():
    student, teacher = method_cases.random_maps((3, 4), (3, 4))
    value = build(tau=3.0, loss_weight=0.9)(student, teacher)
    expected = 0.0
    for s, t in zip(student.tolist(), teacher.tolist()):
        s, t = (torch.tensor(x, dtype=torch.float64).div(3).exp() for x in (s, t))
        s, t = s / s.sum(), t / t.sum()
        expected += sum(float(q * (q / p).log()) for p, q in zip(s, t))
    assert float(value.detach()) == pytest.approx(0.9 * 9 * expected / 3)
