"""Real runs with and without the hook, and its numbers against plain loops."""

import math
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from crd_plugin.engine import LiveViewHook
from crd_plugin.engine.hooks import live_view_hook
from crd_plugin.models import CRDLoss
from tests import small_runs


def both_losses():
    """Changes that put an in-batch loss beside the one with a bank."""
    distiller = small_runs.distiller()
    loss = dict(type='crd_plugin.CRDLoss', embed_dim=8, negatives='batch')
    distiller['distill_losses']['loss_batch'] = loss
    mappings = distiller['loss_forward_mappings']
    mappings['loss_batch'] = mappings['loss_crd']
    return dict(model__distiller=dict(distiller, _delete_=True))


class Record(LiveViewHook):
    """Keep what a loss was given, and whether an iteration was looked at."""

    def __init__(self, interval):
        super().__init__(interval)
        self.given, self.looked, self.images = {}, [], []

    def before_train_iter(self, runner, *args, **kwargs):
        super().before_train_iter(runner, *args, **kwargs)
        self.looked.append(len(runner.model._forward_hooks))

    def _look_at_embeddings(self, name, loss, args, kwargs, output):
        super()._look_at_embeddings(name, loss, args, kwargs, output)
        self.given[name] = {key: value.detach().clone() for key, value in kwargs.items()}
        bank = loss.bank and dict(
            teacher=loss.bank.teacher.clone(), student=loss.bank.student.clone()
        )
        self.given[name].update(bank=bank, cosines=self._cosines[name], loss=loss)


def train(work_dir, *hooks, **changes):
    runner = small_runs.train(work_dir, *hooks, **changes)
    return runner, [line for line in small_runs.scalars(work_dir) if 'live/' in str(line)]


@pytest.fixture(scope='module')
def watched(tmp_path_factory):
    """Four iterations with two losses: alone, and with a look at the first and the fourth."""
    folder = tmp_path_factory.mktemp('live')
    plain, _ = train(folder / 'plain', **both_losses())
    state = torch.get_rng_state()
    hook = Record(interval=3)
    with mock.patch('torch.autograd.grad', side_effect=torch.autograd.grad) as grad:
        runner, lines = train(folder / 'live', hook, **both_losses())
    found = dict(plain=plain, runner=runner, lines=lines, hook=hook, state=state)
    return dict(found, calls=grad.call_count, folder=folder / 'live')


def test_the_run_is_the_same_to_the_bit(watched):
    assert torch.equal(torch.get_rng_state(), watched['state'])
    ours, theirs = (watched[key].model.state_dict() for key in ('runner', 'plain'))
    assert any('bank.student' in key for key in ours)
    for key, value in theirs.items():
        assert torch.equal(ours[key], value), key


def test_only_the_iterations_whose_turn_it_is_are_looked_at(watched):
    assert watched['hook'].looked == [1, 0, 0, 1]
    assert [line['step'] for line in watched['lines']] == [1, 4]
    assert watched['calls'] == 2 * 3  # the student's own loss and two others
    model = watched['runner'].model
    assert not any(
        module._forward_hooks for module in [model, *model.distiller.distill_losses.values()]
    )


def test_numbers_equal_plain_loops(watched):
    line = watched['lines'][-1]
    for name, given in watched['hook'].given.items():
        x, y = (given[key].double().numpy() for key in ('s_feats', 't_feats'))
        assert len(x) == 2  # the last batch of the epoch
        distance = np.mean([((a - b) ** 2).sum() for a, b in zip(x, y)])
        assert line[f'live/{name}/alignment'] == pytest.approx(distance, rel=1e-5)
        for side, z in (('student', x), ('teacher', y)):
            kernel = math.exp(-2 * ((z[0] - z[1]) ** 2).sum())
            found = line[f'live/{name}/uniformity_{side}']
            assert found == pytest.approx(math.log(kernel), rel=1e-4)
        assert line[f'live/{name}/mi_bound'] == pytest.approx(float(given['loss'].mi_bound))
    assert line['live/loss_crd/log_k'] == pytest.approx(math.log(8))  # num_negatives
    assert line['live/loss_batch/log_k'] == 0  # one other sample
    shares = [value for key, value in line.items() if 'gradient_share/' in key]
    assert len(shares) == 3 and sum(shares) == pytest.approx(1)


def test_cosines_of_positives_and_negatives_equal_plain_loops(watched):
    given = watched['hook'].given['loss_crd']
    labels = given['loss'].bank.labels
    assert not torch.equal(given['bank']['teacher'], given['loss'].bank.teacher)  # seen in time
    sides = (('s_feats', 'teacher'), ('t_feats', 'student'))
    for (anchors, rows), (positives, negatives) in zip(sides, given['cosines'], strict=True):
        stored, ids = given['bank'][rows], given['sample_idx'].tolist()
        pairs = list(zip(given[anchors], ids, strict=True))
        expected = [float(x @ stored[i]) for x, i in pairs]
        assert positives.tolist() == pytest.approx(expected, abs=1e-6)
        expected = [
            float(x @ stored[j]) for x, i in pairs for j in range(20) if labels[j] != labels[i]
        ]
        assert len(negatives) == 2 * 18
        assert sorted(negatives.tolist()) == pytest.approx(sorted(expected), abs=1e-6)
    given = watched['hook'].given['loss_batch']
    (positives, negatives), (_, others) = given['cosines']
    x, y, label = given['s_feats'], given['t_feats'], given['labels'].tolist()
    assert positives.tolist() == pytest.approx([float(x[i] @ y[i]) for i in range(2)])
    pairs = [(i, j) for i in range(2) for j in range(2) if label[i] != label[j]]
    assert negatives.tolist() == pytest.approx([float(x[i] @ y[j]) for i, j in pairs])
    assert others.tolist() == pytest.approx([float(x[j] @ y[i]) for i, j in pairs])


def test_a_figure_is_written(watched):
    images = sorted(watched['folder'].glob('*/vis_data/vis_image/live_*.png'))
    assert [path.name for path in images] == ['live_1.png', 'live_4.png']
    with Image.open(images[-1]) as image:
        assert image.size == (1040, 768)  # a row per contrastive loss, one for the gradients


class TwoLosses(nn.Module):
    """Losses whose gradients with respect to the backbone are known."""

    def __init__(self):
        super().__init__()
        self.backbone, self.head = nn.Linear(2, 1, bias=False), nn.Linear(1, 1)

    def forward(self, x):
        loss = self.backbone(x).sum()
        # The gradient of the head does not count, nor does what MMEngine does not add up.
        return dict(
            loss_a=self.head.weight.sum() * 100 + loss, loss_b=[loss, 2 * loss], top=9 * loss
        )


def test_shares_of_the_gradient():
    hook, model = LiveViewHook(), TwoLosses()
    for scale in (1.0, 65536.0):
        hook._look_at_gradients(scale, model, (), model(torch.tensor([[3.0, 4.0]])))
        shares = hook._scalars
        assert shares == {
            'gradient_share/loss_a': pytest.approx(0.25),
            'gradient_share/loss_b': pytest.approx(0.75),
        }
    assert all(parameter.grad is None for parameter in model.parameters())


def test_rows_of_other_ranks_are_left_out(monkeypatch):
    """What rank 1 of two keeps: the odd rows."""
    loss = CRDLoss(4, num_negatives=3)
    loss.bank.resize(9, torch.arange(9) % 3)
    whole = loss.bank.teacher.clone()
    for side in ('student', 'teacher'):
        setattr(loss.bank, side, getattr(loss.bank, side)[1::2].clone())
    shards = mock.Mock(rank=1, world=2)
    monkeypatch.setattr(loss.bank, 'shards', lambda: shards)
    x, ids = torch.eye(4)[:3], torch.tensor([4, 5, 8])
    (positives, negatives), _ = live_view_hook.bank_cosines(loss, x, x, ids)
    assert positives.tolist() == pytest.approx([float(x[1] @ whole[5])])
    expected = [float(x[i] @ whole[j]) for i in range(3) for j in (1, 3, 5, 7) if (ids[i] - j) % 3]
    assert sorted(negatives.tolist()) == pytest.approx(sorted(expected))


def test_without_labels_other_rows_are_negatives():
    loss = CRDLoss(4, num_negatives=3, bank_dtype='float16')
    loss.bank.resize(5)
    x, ids, rows = torch.eye(4)[:2], (0, 3), loss.bank.teacher
    (_, negatives), _ = live_view_hook.bank_cosines(loss, x, x, torch.tensor(ids))
    expected = [float(rows[j, i]) for i in range(2) for j in range(5) if j != ids[i]]
    assert sorted(negatives.tolist()) == pytest.approx(sorted(expected))


def test_histogram():
    heights = live_view_hook.histogram(torch.tensor([-1.0, 0.01, 0.02, 1.0000001]))
    assert heights.shape == (40,) and heights[[0, 20, 39]].tolist() == [0.25, 0.5, 0.25]
    assert live_view_hook.histogram(torch.zeros(0)).sum() == 0


def test_what_does_not_apply_is_left_out(tmp_path):
    """A student alone has one loss, and parts that are run again have no gradients."""
    runner, (line,) = train(
        tmp_path / 'alone',
        LiveViewHook(),
        model=dict(small_runs.net(6), _delete_=True),
        custom_hooks=[],
    )
    assert line == {'live/gradient_share/loss': 1.0, 'step': 1}
    runner = small_runs.build(tmp_path / 'cp', LiveViewHook(), **small_runs.without_validation())
    runner.model.architecture.backbone.with_cp = True
    runner.train()
    keys = {key for line in small_runs.scalars(tmp_path / 'cp') for key in line if 'live/' in key}
    assert 'live/loss_crd/alignment' in keys and not any('gradient' in key for key in keys)
    assert 'with_cp=True repeats' in next((tmp_path / 'cp').glob('*/*.log')).read_text()
