"""Losses of logits against plain loops and numbers of the published code.

Those are of ``dkd_loss`` of megvii-research/mdistiller @ a08d46f and ``kd_loss`` of
sunshangquan/logit-standardization-KD @ f6e5aa5, run in float64 on the logits of :func:`logits`.
"""

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmrazor.models.losses import KLDivergence

from crd_plugin.cli.dry_run import dry_run_file
from crd_plugin.models.losses import DKDLoss, EnsembleKDLoss, LSKDLoss
from tests import method_cases, small_runs
from tests.config_files import CONFIGS, fragment

LABELS = torch.tensor([0, 2, 3])
# alpha, beta, tau: value and gradient of the second sample.
DKD = {
    (1, 8, 4): (
        70.76441508281899,
        [-1.7063362685551577, -2.9421226585078593, -0.09670938788108928, 4.745168314944106],
    ),
    (1, 2, 4): (
        20.55663901929006,
        [-0.4177654266432605, -0.7066339335422083, -0.09670938788108928, 1.2211087480665581],
    ),
    (0.5, 3, 1): (
        10.019215962448772,
        [-0.02656226155041382, -0.6494504062606609, -0.0008632869125809142, 0.6768759547236555],
    ),
}
# tau: the same; 1e-7 beside the standard deviation makes the difference of the tolerance.
LSKD = {
    2: (
        0.7564808961166166,
        [-0.00391006001594592, -0.03053079810979272, 0.0069659001297645, 0.027474957995974145],
    ),
    4: (
        0.785514480200265,
        [-0.0037715421123136333, -0.031237314110743382, 0.006929024599118372, 0.028079831623938647],
    ),
}


@pytest.fixture(autouse=True)
def no_run(request):
    """A training that failed in an earlier test is not one that still goes on."""
    MessageHub.get_instance(request.node.nodeid)


def logits(dtype=torch.float64):
    n = torch.arange(12, dtype=torch.float64)
    student, teacher = (3 * n).sin() * 4, (5 * n).cos() * 6
    return [method_cases.leaves([x.view(3, 4)], dtype)[0] for x in (student, teacher)]


def check(value, student, teacher, expected, rtol):
    value.backward()
    assert value.detach().item() == pytest.approx(expected[0], rel=rtol)
    assert student.grad[1].tolist() == pytest.approx(expected[1], rel=rtol)
    assert teacher.grad is None


def divergence(target, values):
    return sum(t * (t / s).log() for t, s in zip(target, values, strict=True))


def softmax(row):
    powers = [x.exp() for x in row]
    return [x / sum(powers) for x in powers]


@pytest.mark.parametrize('settings', DKD)
def test_published_dkd(settings):
    alpha, beta, tau = settings
    student, teacher = logits()
    value = DKDLoss(alpha=alpha, beta=beta, tau=tau)(student, teacher, LABELS)
    check(value, student, teacher, DKD[settings], 1e-9)
    student, teacher = logits(torch.float32)
    value = DKDLoss(alpha, beta, tau)(student, [teacher], LABELS)
    check(value, student, teacher, DKD[settings], 1e-4)


@pytest.mark.parametrize('tau', LSKD)
def test_published_lskd(tau):
    student, teacher = logits()
    check(LSKDLoss(tau)(student, teacher), student, teacher, LSKD[tau], 1e-6)


@pytest.mark.parametrize('members', [1, 2])
def test_kd_against_a_loop(members):
    """MMRazor's of one teacher, ours of several."""

    def loop(students, teachers):
        total = 0.0
        for s, *rows in zip(students[0], *teachers, strict=True):
            each = [softmax(t / 3) for t in rows]
            mean = [sum(column) / members for column in zip(*each)]
            total = total + divergence(mean, softmax(s / 3))
        return 0.9 * 9 * total / 3

    student, teacher = logits()
    teachers = [teacher, teacher.detach().roll(1, 0).requires_grad_()][:members]
    ours = EnsembleKDLoss(3, 0.9)
    method_cases.check_against_loop(lambda s, t: ours(s[0], t), loop, [student], teachers)
    if members == 1:
        expected = KLDivergence(tau=3, loss_weight=0.9)(student, teacher)
        torch.testing.assert_close(ours(student, teacher), expected)


def test_published_settings_of_kd():
    kd = fragment('kd')
    both, alone = (one.distiller.distill_losses.loss_kd for one in (kd, kd.alone))
    assert (both.tau, both.loss_weight, alone.loss_weight) == (4, 1, 0.9) and 'tau' not in alone


def test_ensemble_kd_of_an_empty_batch():
    with pytest.raises(ValueError, match='s_feats holds no sample'):
        EnsembleKDLoss()(torch.randn(0, 4), [torch.randn(0, 4)] * 2)


def test_ensemble_kd_of_far_logits_and_of_other_classes():
    student, teacher = logits(torch.float32)
    loss = EnsembleKDLoss()
    assert loss(1e4 * student, [1e4 * teacher, -1e4 * teacher]).isfinite()
    with pytest.raises(ValueError, match=r'\[4, 3\] classes by the teachers and 4 by the stud'):
        loss.infer_width(student, [teacher, teacher[:, :3]])
    assert loss.needs_width
    loss.infer_width(student, teacher)
    assert not loss.needs_width
    with pytest.raises(ValueError, match='expected logits'):
        loss(student, [teacher[:, :3]])


def test_dkd_against_a_loop():
    def loop(students, teachers):
        total = 0.0
        for s, t, y in zip(students[0], teachers[0], LABELS.tolist(), strict=True):
            parts = []
            for p in (softmax(s / 3), softmax(t / 3)):
                rest = [x / (1 - p[y]) for c, x in enumerate(p) if c != y]
                parts.append(([p[y], 1 - p[y]], rest))
            (s_binary, s_rest), (t_binary, t_rest) = parts
            total = total + 2 * divergence(t_binary, s_binary) + 5 * divergence(t_rest, s_rest)
        return 0.7 * 9 * total / 3

    loss = DKDLoss(2, 5, 3, loss_weight=0.7)
    student, teacher = logits()
    method_cases.check_against_loop(
        lambda s, t: loss(s[0], t[0], LABELS), loop, [student], [teacher]
    )


def test_lskd_against_a_loop():
    def standard(row):
        mean = sum(row) / len(row)
        deviation = (sum((x - mean) ** 2 for x in row) / (len(row) - 1)).sqrt()
        return [(x - mean) / deviation / 3 for x in row]

    def loop(students, teachers):
        rows = zip(students[0], teachers[0], strict=True)
        total = sum(divergence(softmax(standard(t)), softmax(standard(s))) for s, t in rows)
        return 0.7 * 9 * total / 3

    student, teacher = logits()
    method_cases.check_against_loop(LSKDLoss(3, loss_weight=0.7), loop, [student], [teacher])


def test_kd_is_the_sum_of_the_parts():
    """With the teacher's 1 - p as beta, sample by sample."""
    student, teacher = logits()
    for s, t, y in zip(student[:, None], teacher[:, None], LABELS[:, None], strict=True):
        beta = 1 - float((t.detach() / 4).softmax(1)[0, int(y)])
        kd = 16 * torch.nn.functional.kl_div(
            (s / 4).log_softmax(1), (t / 4).softmax(1), reduction='batchmean'
        )
        torch.testing.assert_close(DKDLoss(1, beta)(s, t, y), kd)


def test_lskd_ignores_size_and_offset():
    student, teacher = logits()
    loss = LSKDLoss()
    torch.testing.assert_close(loss(5 * student + 3, teacher / 7), loss(student, teacher))
    assert float(loss(teacher * 2 - 1, teacher)) == pytest.approx(0, abs=1e-12)


def test_first_step_of_lskd_on_the_digits_is_not_too_large():
    """With MMPretrain's initial weights of the head its gradient norm is 220."""
    leaf = CONFIGS / 'lskd' / 'lskd_resnet14_resnet8w4_b20-100e_digits.py'
    torch.manual_seed(0)
    report = dry_run_file(leaf, use_teacher_ckpt=False)
    assert report.problems == []
    (row,) = [row for row in report.losses if row.name == 'distill.loss_lskd']
    assert 0 < row.student < 60


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_dkd_of_half_precision_logits(dtype):
    """They give the numbers of float32, with autocast and without; published code gives inf."""
    student, teacher = logits(dtype)
    student.data[0] = torch.tensor([-300.0, 0, 0, 300])
    singles = method_cases.leaves([student, teacher], torch.float32)
    expected = DKDLoss()(*singles, LABELS)
    expected.backward()
    assert torch.isfinite(expected) and torch.isfinite(singles[0].grad).all()
    for autocast in (False, True):
        with torch.autocast('cpu', dtype, enabled=autocast):
            value = DKDLoss()(student, teacher, LABELS)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected)
        (gradient,) = torch.autograd.grad(value, student)
        torch.testing.assert_close(gradient.float(), singles[0].grad, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize('epoch, share', [(0, 0.05), (4, 0.25), (19, 1.0), (239, 1.0)])
def test_warmup(monkeypatch, epoch, share):
    """Epoch e, counted from 1, has min(e / 20, 1) of the loss, as in mdistiller."""
    hub = MessageHub.get_instance(f'warmup-{epoch}')
    monkeypatch.setattr(MessageHub, 'get_current_instance', classmethod(lambda cls: hub))
    whole = DKDLoss()(*logits(), LABELS)
    for key, value in dict(loop_stage='train', epoch=epoch, max_epochs=240).items():
        hub.update_info(key, value)
    torch.testing.assert_close(DKDLoss()(*logits(), LABELS), share * whole)
    torch.testing.assert_close(DKDLoss(warmup_epochs=1)(*logits(), LABELS), whole)


class ShareHook(Hook):
    """Notes the share of the loss in each epoch."""

    def __init__(self):
        self.shares = []

    def after_train_epoch(self, runner):
        self.shares.append(runner.model.distiller.distill_losses['loss_dkd']._warmup())


def run(tmp_path, epochs, **changes):
    """Train with DKD alone, warmed up for four epochs; return the shares and the weights."""
    dkd = fragment('dkd').distiller.to_dict()
    dkd['distill_losses']['loss_dkd']['warmup_epochs'] = 4
    hook = ShareHook()
    model = dict(small_runs.model(), distiller=dkd)
    changes.update(model=model, train_cfg__max_epochs=epochs, **small_runs.without_validation())
    runner = small_runs.build(tmp_path, hook, **changes)
    runner.train()
    return hook.shares, runner.model.state_dict()


def test_resumed_warmup(tmp_path):
    shares, expected = run(tmp_path / 'whole', 5)
    assert shares == [0.25, 0.5, 0.75, 1.0, 1.0]
    changes = dict(load_from=str(tmp_path / 'whole' / 'epoch_2.pth'), resume=True)
    shares, found = run(tmp_path / 'resumed', 5, **changes)
    assert shares == [0.75, 1.0, 1.0]
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_warmup_longer_than_training_is_noticed(tmp_path):
    run(tmp_path, 2)
    (log,) = tmp_path.glob('*/*.log')
    text = ' '.join(log.read_text().split())
    assert text.count('warmup_epochs=4 of DKDLoss is more than the 2 of train_cfg.max_epochs') == 1


@pytest.mark.parametrize(
    's_shape, t_shape',
    [((3, 4), (3, 5)), ((3, 1), (3, 1)), ((3, 4, 2, 2), (3, 4, 2, 2)), ((3, 4), (3, 2, 2))],
)
def test_what_are_not_logits_of_the_same_classes(s_shape, t_shape):
    student, teacher = torch.randn(s_shape), torch.randn(t_shape)
    text = r's_feats has shape .* and t_feats .*, expected logits \(B, C\) of the same two or more'
    with pytest.raises(ValueError, match=text):
        LSKDLoss()(student, teacher)
    with pytest.raises(ValueError, match=text):
        DKDLoss()(student, teacher, LABELS)


@pytest.mark.parametrize(
    'labels, text',
    [
        (torch.tensor([0, 4, 1]), 'labels are 0 to 4, expected 0 to 3, the classes of the logits'),
        (torch.tensor([0, -1, 1]), 'labels are -1 to 1, expected 0 to 3'),
        (torch.tensor([0, 1]), r'expected int64 of shape \(3,\)'),
        (torch.tensor([0.0, 1, 1]), 'labels is torch.float32'),
    ],
)
def test_labels_of_other_classes(labels, text):
    with pytest.raises(ValueError, match=text):
        DKDLoss()(*logits(), labels)
