"""EnsembleCRDLoss: the sum of CRD over teachers, shared labels and negatives, widths, errors."""

import copy

import pytest
import torch

from crd_plugin.models import EnsembleCRDLoss

WIDTHS = (10, 12, 7)
SETTINGS = dict(embed_dim=8, num_negatives=6)


def features():
    student = torch.randn(4, 5, requires_grad=True)
    return student, [torch.randn(4, width, requires_grad=True) for width in WIDTHS]


def sized(**kwargs):
    """A loss whose banks have twenty rows of four classes and share the labels."""
    loss = EnsembleCRDLoss(**{**SETTINGS, **kwargs}, in_channels=(5, WIDTHS))
    for number, crd in enumerate(loss.losses.values()):
        crd.bank.resize(20, torch.arange(20) % 4, seed=number)
        if number:
            crd.bank.share_labels(loss.losses['0'].bank)
    return loss


@pytest.mark.parametrize('objective', ['nce', 'infonce'])
def test_sum_over_teachers(objective):
    torch.manual_seed(0)
    loss, (student, teachers) = sized(objective=objective, loss_weight=0.8), features()
    ids, contrast_idx = torch.arange(4), torch.randint(20, (4, 7))
    contrast_idx[:, 0] = ids
    expected = 0.0
    for number, teacher in enumerate(teachers):
        crd = copy.deepcopy(loss.losses[str(number)])
        embeddings = (
            connectors[str(number)](feats)
            for connectors, feats in (
                (loss.student_connectors, student),
                (loss.teacher_connectors, teacher),
            )
        )
        expected = expected + 0.8 * crd(*embeddings, ids, ids % 4, contrast_idx)
    value = loss(student, teachers, ids, ids % 4, contrast_idx)
    torch.testing.assert_close(value, expected)
    value.backward()
    assert student.grad.abs().sum() > 0
    for name, parameter in loss.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_labels_are_shared_and_rows_are_not():
    """Negatives too: see test_cktf_loss.py."""
    loss = sized()
    loss(*features(), torch.arange(4), torch.arange(4) % 4)
    banks = [crd.bank for crd in loss.losses.values()]
    assert len({bank.labels.data_ptr() for bank in banks}) == 1
    assert len({bank.keys('class') for bank in banks}) == 1
    for side in ('student', 'teacher'):
        assert len({getattr(bank.pending, side).sum().item() for bank in banks}) == len(WIDTHS)


def test_without_a_bank():
    loss = EnsembleCRDLoss(8, negatives='batch', objective='infonce', exclude='instance')
    student, teachers = features()
    loss.infer_width(s_feats=student, t_feats=teachers)
    loss(student, teachers).backward()
    assert student.grad.abs().sum() > 0 and len(loss.losses) == len(WIDTHS)
    one = EnsembleCRDLoss(8, negatives='batch', exclude='instance', in_channels=(5, [10]))
    assert torch.equal(one.eval()(student, teachers[0]), one(student, teachers[:1]))


def test_widths_are_inferred_or_given():
    loss, (student, teachers) = EnsembleCRDLoss(**SETTINGS, num_samples=20), features()
    assert loss.needs_width
    with pytest.raises(ValueError, match='in_channels of EnsembleCRDLoss are not'):
        loss(student, teachers, torch.arange(4))
    loss.infer_width(s_feats=student, t_feats=teachers)
    given = EnsembleCRDLoss(**SETTINGS, num_samples=20, in_channels=(5, WIDTHS))
    assert not loss.needs_width and not given.needs_width
    shapes = [{k: v.shape for k, v in each.state_dict().items()} for each in (loss, given)]
    assert shapes[0] == shapes[1]


def test_wrong_numbers_are_refused():
    student, teachers = features()
    with pytest.raises(ValueError, match="of 0, 1, but was made for 0, 1, 2; .* record_idx='all'"):
        sized()(student, teachers[:2], torch.arange(4))
    for setting in (dict(temperature=0), dict(head='deep')):
        with pytest.raises(ValueError, match=next(iter(setting))):
            EnsembleCRDLoss(**setting)
