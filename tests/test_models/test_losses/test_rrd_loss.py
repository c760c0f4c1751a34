"""RRDLoss against a plain loop and numbers of the published code.

Those are of ``RRD_FifoMemory_Loss`` of giakoumoglou/distillers ``cifar/distillers/RRD.py`` @
a2ee80b in float64, with the layers, the queue and the features of :func:`build` and
:func:`features`. It returns the cross-entropy: the teacher's entropy was subtracted.
"""

import copy

import pytest
import torch
import torch.nn.functional as F

from crd_plugin.models.losses import RRDLoss
from tests import method_cases, small_runs
from tests.config_files import fragment
from tests.test_models.test_losses.test_logit_losses import divergence, softmax

N = torch.arange(60, dtype=torch.float64)
# Temperatures: value, gradients of the student's features and of its layer's first row.
PUBLISHED = {
    (0.1, 0.02): (
        10.032047139451285,
        [
            [0.9475490320476165, -1.83886544538068, 0.5829270438144274],
            [-0.15188362024935853, 0.30731535099814766, -0.10389300203114944],
        ],
        [-0.2749321048244763, 0.5146771164865634, 1.0509645815807398],
    ),
    (0.5, 0.5): (
        1.0909375504574153,
        [
            [0.078974710172425, -0.16136070446482592, 0.05532478323968631],
            [-0.05820847712829466, 0.17435389067169246, -0.08690516295712758],
        ],
        [-0.1084753978932778, -0.028332856276506627, 0.0657549894555914],
    ),
}


@torch.no_grad()
def build(*temperatures, **kwargs):
    """A loss with known layers and a queue of eight rows."""
    loss = RRDLoss(3, 5, 4, 8, *temperatures, **kwargs).double()
    loss.embed_s.weight.copy_((2 * N[:12]).sin().view(4, 3))
    loss.embed_s.bias.copy_(N[:4].cos())
    loss.embed_t.weight.copy_((3 * N[:20]).sin().view(4, 5))
    loss.embed_t.bias.copy_((2 * N[:4]).cos())
    loss.queue.keys.copy_(F.normalize((5 * N[:32]).sin().view(8, 4), dim=1))
    return loss


def features():
    student, teacher = (7 * N[:6]).cos().view(2, 3), (11 * N[:10]).cos().view(2, 5)
    return [method_cases.leaves([x], torch.float64)[0] for x in (student, teacher)]


@pytest.mark.parametrize('temperatures', PUBLISHED)
def test_published_rrd(temperatures):
    loss, (student, teacher) = build(*temperatures), features()
    value = loss(student, teacher)
    value.backward()
    expected, gradient, row = PUBLISHED[temperatures]
    assert value.item() == pytest.approx(expected, rel=1e-9)
    for found, wanted in zip(student.grad.tolist(), gradient, strict=True):
        assert found == pytest.approx(wanted, rel=1e-9)
    assert loss.embed_s.weight.grad[0].tolist() == pytest.approx(row, rel=1e-9)
    assert teacher.grad is None and all(p.grad is None for p in loss.embed_t.parameters())
    assert not loss.queue.keys.requires_grad


def test_published_settings():
    loss = RRDLoss(3, 5)
    assert loss.queue.keys.shape == (16384, 128)
    assert (loss.s_temperature, loss.t_temperature, loss.loss_weight) == (0.1, 0.02, 1)


def test_against_a_loop():
    loss = build(0.3, 0.2, loss_weight=0.7)

    def unit(layer, x):
        y = layer(x)
        return y / sum(v**2 for v in y).sqrt()

    def loop(students, teachers):
        s, t = (
            [unit(e, x) for x in y[0]]
            for e, y in ((loss.embed_s, students), (loss.embed_t, teachers))
        )
        rows = [*t, *loss.queue.keys[len(t) :]]
        total = 0.0
        for a, b in zip(s, t, strict=True):
            p = softmax([(a * row).sum() / 0.3 for row in rows])
            q = softmax([(b * row).sum() / 0.2 for row in rows])
            total = total + divergence(q, p)
        return 0.7 * total / len(s)

    student, teacher = features()
    method_cases.check_against_loop(loss, loop, [student], [teacher])


def test_batches_enter_the_queue_in_training_alone():
    loss, (student, teacher) = build(), features()
    before = copy.deepcopy(loss.queue.state_dict())
    value = loss.eval()(student, teacher)
    assert torch.equal(loss(student, teacher), value)
    assert torch.equal(loss.queue.keys, before['keys']) and int(loss.queue.pointer) == 0
    loss.train()(student, teacher)
    keys = F.normalize(loss.embed_t(teacher), dim=1)
    torch.testing.assert_close(loss.queue.keys[:2], keys)
    assert torch.equal(loss.queue.keys[2:], before['keys'][2:]) and int(loss.queue.pointer) == 2


def test_two_forward_passes_before_one_backward():
    """The second pass changes the queue that the first has read."""
    loss, (student, teacher) = build(), features()
    (loss(student, teacher) + loss(student * 2, teacher)).backward()
    assert torch.isfinite(student.grad).all()


def test_restored_state_goes_on_exactly():
    loss, (student, teacher) = build(), features()
    loss(student, teacher)
    other = RRDLoss(3, 5, 4, 8).double()
    other.load_state_dict(loss.state_dict())
    for _ in range(3):
        assert torch.equal(other(student, teacher), loss(student, teacher))
    with pytest.raises(ValueError, match='has 8 keys of width 4, this one 9 .*of the loss to'):
        RRDLoss(3, 5, 4, 9).load_state_dict(loss.state_dict())


def test_resumed_run_is_exact(tmp_path):
    distiller = fragment('rrd').distiller.to_dict()
    distiller['distill_losses']['loss_rrd'].update(queue_size=16, embed_dim=8)
    changes = dict(
        model=dict(small_runs.model(), distiller=distiller),
        train_cfg__max_epochs=3,
        **small_runs.without_validation(),
    )
    whole = small_runs.build(tmp_path / 'whole', **changes)
    whole.train()
    resumed = small_runs.build(
        tmp_path / 'resumed',
        **changes,
        load_from=str(tmp_path / 'whole' / 'epoch_1.pth'),
        resume=True,
    )
    resumed.train()
    found = resumed.model.state_dict()
    assert int(found['distiller.distill_losses.loss_rrd.queue.pointer']) == 3 * 20 % 16
    assert all(torch.equal(found[key], value) for key, value in whole.model.state_dict().items())


def work(rank, folder):
    """One rank with one or two samples of its own."""
    with small_runs.process_group(rank, folder) as result:
        loss = build()
        student, teacher = (x.detach().repeat(2, 1)[rank : rank + 2 - rank] for x in features())
        losses = [loss(student, teacher).detach() for _ in range(2)]
        result.update(loss.queue.state_dict(), losses=losses)


@pytest.mark.slow
def test_ranks_hold_one_queue(tmp_path):
    """It has the keys of both, in rank order, and each rank compares its samples with them."""
    first, second = small_runs.run_ranks(work, tmp_path)
    whole, (student, teacher) = build(), features()
    for step in range(2):
        # Samples 0 and 1 of rank 0, sample 1 of rank 1.
        value = whole(student[[0, 1, 1]], teacher[[0, 1, 1]])
        mean = (2 * first['losses'][step] + second['losses'][step]) / 3
        torch.testing.assert_close(mean, value.detach())
    for rank in (first, second):
        assert int(rank['pointer']) == int(whole.queue.pointer) == 6
        torch.testing.assert_close(rank['keys'], whole.queue.keys)
