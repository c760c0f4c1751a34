"""CKTFLoss: the numbers of kaiqi123/CKTF, sharing, widths, errors."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from crd_plugin.models.losses import CKTFLoss
from crd_plugin.models.sharded_bank import ShardedBank
from tests import golden

CASES = ('cktf_resnet', 'cktf_wrn', 'cktf_vgg', 'cktf_resnet_mlp')
# Those of the files.
PAIRINGS = [
    ('cktf_resnet', 'First'),
    ('cktf_resnet', 'Largest'),
    *((name, 'Smallest') for name in CASES[:3]),
    *((name, 'Last') for name in CASES),
]
LEVELS = dict(stem='f0', penultimate='pen', **{f'group{i + 1}': f'g{i}' for i in range(4)})


def inputs_of(case):
    """Arguments of ``forward`` from a golden file; the student's are leaves."""
    groups = range(int(case['n_groups']))

    def blocks(side):
        stages = [[] for _ in groups]
        for key, value in case.items():
            if key.startswith(f'block_{side}_g'):
                stages[int(key[len('block_s_g') :].split('_')[0])].append(
                    value.clone().requires_grad_(side == 's')
                )
        return stages

    return dict(
        s_stem=case['f0_s'].clone().requires_grad_(),
        t_stem=case['f0_t'],
        s_blocks=blocks('s'),
        t_blocks=blocks('t'),
        s_feats=case['pen_s'].clone().requires_grad_(),
        t_feats=case['pen_t'],
        sample_idx=case['idx'],
        contrast_idx=case['contrast_idx'],
    )


def loss_of(case, name='cktf_resnet', **kwargs):
    """The loss of a golden file, heads and banks included."""
    head = 'mlp' if name.endswith('mlp') else 'linear'
    inputs = inputs_of(case)
    settings = dict(
        embed_dim=int(case['feat_dim']),
        num_negatives=int(case['K']),
        # Rounded once, as there.
        temperature=float(np.float32(case['T'])),
        momentum=float(np.float32(case['momentum'])),
        num_samples=int(case['n_data']),
        head=head,
        beta=float(case['beta']),
        theta=float(case['theta']),
    )
    loss = CKTFLoss(**{**settings, **kwargs})
    loss.infer_width(**{key: value for key, value in inputs.items() if not key.endswith('_idx')})
    state = loss.state_dict()
    for level, crd in loss.losses.items():
        key = LEVELS[level]
        with torch.no_grad():
            crd.bank.student.copy_(case[f'{key}.memory_v1_init'])
            crd.bank.teacher.copy_(case[f'{key}.memory_v2_init'])
    for name in state:
        side, level, rest = name.split('.', 2)
        if side.endswith('connectors'):
            head = f'{LEVELS[level]}.embed_{side[0]}.{rest}'
            state[name].copy_(case[head])
    return loss, inputs


def random_inputs(batch=4, pixels=16, generator=None):
    """A small pair of three groups, two blocks in the teacher's."""

    def maps(*shape):
        return torch.randn(batch, *shape, generator=generator)

    return dict(
        s_stem=maps(4, pixels, pixels).requires_grad_(),
        t_stem=maps(6, pixels, pixels),
        s_blocks=[maps(4, 8, 8).requires_grad_() for _ in range(3)],
        t_blocks=[(maps(6, 8, 8), maps(6, 8, 8)) for _ in range(3)],
        s_feats=maps(6).requires_grad_(),
        t_feats=maps(10),
        sample_idx=torch.arange(batch),
    )


def small_loss(labels=None, **kwargs):
    """A loss for :func:`random_inputs` with sized banks."""
    loss = CKTFLoss(**{**dict(embed_dim=8, num_negatives=6), **kwargs})
    inputs = random_inputs()
    inputs.pop('sample_idx')
    loss.infer_width(**inputs)
    for number, crd in enumerate(loss.losses.values()):
        if crd.bank is not None:
            crd.bank.resize(20, torch.arange(20) % 4 if labels is None else labels, number)
    return loss


def partition_constants(crd):
    return crd.bank.log_z_student.exp(), crd.bank.log_z_teacher.exp()


# --- numbers ---------------------------------------------------------------


@pytest.mark.parametrize('name, method', PAIRINGS)
def test_losses_of_every_level(name, method):
    case = golden.load(name)
    loss, inputs = loss_of(case, name, method=method.lower())
    each = {}
    for level, crd in loss.losses.items():
        crd.register_forward_hook(lambda module, args, out, level=level: each.update({level: out}))
    total = loss(**inputs)
    for level, value in each.items():
        golden.assert_value(value, case[f'{method}.loss_{LEVELS[level]}'])
    assert len(each) == int(case['n_groups']) + 2
    groups = sum(value for level, value in each.items() if level != 'penultimate')
    golden.assert_value(groups, case[f'{method}.loss_intermediate'])
    expected = (
        case['beta'] * case[f'{method}.loss_pen']
        + case['theta'] * case[f'{method}.loss_intermediate']
    )
    golden.assert_value(total, expected.float())
    # Beside cross-entropy, as the config adds it.
    whole = case['gamma'] * case[f'{method}.loss_ce'] + total
    golden.assert_value(whole, case[f'{method}.loss_total_cktf'])


@pytest.mark.parametrize('name', CASES)
def test_gradients_banks_and_constants(name):
    case = golden.load(name)
    loss, inputs = loss_of(case, name)
    loss(**inputs).backward()
    golden.assert_grad(inputs['s_stem'].grad, case['Last.grad_f0_s'])
    golden.assert_grad(inputs['s_feats'].grad, case['Last.grad_pen_s'])
    for i, blocks in enumerate(inputs['s_blocks']):
        golden.assert_grad(blocks[-1].grad, case[f'Last.grad_block_s_g{i}_last'])
        assert all(block.grad is None for block in blocks[:-1])
    for name, parameter in loss.named_parameters():
        side, level, rest = name.split('.', 2)
        golden.assert_grad(
            parameter.grad, case[f'Last.grad.{LEVELS[level]}.embed_{side[0]}.{rest}']
        )
    for level, crd in loss.losses.items():
        crd.bank.commit()
        key = f'Last.{LEVELS[level]}'
        golden.assert_value(crd.bank.student, case[f'{key}.memory_v1_after'])
        golden.assert_value(crd.bank.teacher, case[f'{key}.memory_v2_after'])
        for side, z in enumerate(partition_constants(crd), start=1):
            golden.assert_value(z.float(), case[f'{key}.Z_v{side}'])


@pytest.mark.parametrize('name, method', PAIRINGS)
def test_beside_another_method(name, method):
    """One weight for all levels; the published code stops at three groups."""
    case = golden.load(name)
    weight = float(case['kd2weights'])
    for groups, key in ((None, 'all_groups'), (3, 'published')):
        loss, inputs = loss_of(
            case,
            name,
            method=method.lower(),
            beta=1,
            theta=1,
            num_groups=groups,
            loss_weight=weight,
        )
        golden.assert_value(loss(**inputs), case[f'{method}.loss_kd2_{key}'])
    if name == 'cktf_vgg':
        assert not torch.equal(
            case[f'{method}.loss_kd2_published'], case[f'{method}.loss_kd2_all_groups']
        )


def test_naive_loss():
    """Every level by its definition, in float64."""
    torch.manual_seed(0)
    loss = small_loss(beta=0.7, theta=0.3, loss_weight=2.0).double()
    inputs = {
        key: (
            [[b.double() for b in g] if isinstance(g, tuple) else g.double() for g in value]
            if isinstance(value, list)
            else value.double()
            if value.is_floating_point()
            else value
        )
        for key, value in random_inputs().items()
    }
    ids = torch.randint(20, (4, 7))
    ids[:, 0] = inputs['sample_idx']
    expected = 0.0
    for level, (student, teacher) in loss.features(
        **{k: v for k, v in inputs.items() if k != 'sample_idx'}
    ).items():
        crd = loss.losses[level]
        unit = [
            F.normalize(getattr(loss, f'{side}_connectors')[level].linear(x))
            for side, x in (('student', student), ('teacher', teacher))
        ]
        for anchor, rows in zip(unit, (crd.bank.teacher, crd.bank.student)):
            e = (rows[ids] @ anchor[:, :, None]).squeeze(2).div(0.1).exp()
            p, c = e / (20 * e.mean()), 6 / 20
            value = (
                -(p[:, 0] / (p[:, 0] + c + 1e-7)).log().sum()
                - (c / (p[:, 1:] + c + 1e-7)).log().sum()
            )
            expected += 2 * (0.7 if level == 'penultimate' else 0.3) * value / 4
    torch.testing.assert_close(loss(**inputs, contrast_idx=ids), expected, rtol=1e-9, atol=1e-10)


# --- sharing ---------------------------------------------------------------


def test_negatives_are_drawn_once(monkeypatch):
    calls, seen = [], []
    from crd_plugin.models.losses import crd_loss

    draw = crd_loss.draw_negatives

    def count(*args, **kwargs):
        calls.append(args)
        return draw(*args, **kwargs)

    monkeypatch.setattr(crd_loss, 'draw_negatives', count)
    loss = small_loss()
    for crd in loss.losses.values():
        crd.register_forward_pre_hook(lambda module, args: seen.append(args[-1]))
    loss(**random_inputs())
    assert len(calls) == 1 and len(seen) == 5
    assert all(negatives is seen[0] for negatives in seen)
    # As one level draws them: of another class each.
    own = torch.arange(4)[:, None] % 4
    assert (seen[0].ids % 4 != own).all()


def test_equal_to_levels_that_draw_alone():
    """Only what is random is shared: explicit ids give the same numbers."""
    loss, inputs = small_loss(), random_inputs()
    alone = copy.deepcopy(loss)
    ids = torch.randint(20, (4, 7))
    ids[:, 0] = inputs['sample_idx']
    total = loss(**inputs, contrast_idx=ids)
    expected = 0.0
    features = {k: v for k, v in inputs.items() if k != 'sample_idx'}
    for level, (student, teacher) in alone.features(**features).items():
        weight = 0.8 if level == 'penultimate' else 0.1
        expected += weight * alone.losses[level](
            alone.student_connectors[level](student),
            alone.teacher_connectors[level](teacher),
            inputs['sample_idx'],
            contrast_idx=ids,
        )
    torch.testing.assert_close(total, expected)


def test_each_level_has_its_own_rows_and_constants():
    loss = small_loss()
    loss(**random_inputs())
    pending = [crd.bank.pending for crd in loss.losses.values()]
    for crd in loss.losses.values():
        crd.bank.commit()
    for i, one in enumerate(pending):
        for other in pending[:i]:
            assert not torch.equal(one.teacher, other.teacher)
    constants = {float(crd.bank.log_z_student) for crd in loss.losses.values()}
    assert len(constants) == 5


def test_sharded_banks_of_one_process_are_plain_ones():
    plain, sharded = small_loss(), small_loss(sharded=True)
    assert type(sharded.losses['stem'].bank) is ShardedBank
    sharded.load_state_dict(plain.state_dict())
    inputs, ids = random_inputs(), torch.randint(20, (4, 7))
    ids[:, 0] = inputs['sample_idx']
    values = [loss(**inputs, contrast_idx=ids) for loss in (plain, sharded)]
    torch.testing.assert_close(*values)


def test_without_a_bank():
    loss = CKTFLoss(embed_dim=8, negatives='batch', objective='infonce', exclude='instance')
    inputs = random_inputs()
    inputs.pop('sample_idx')
    loss.infer_width(**inputs)
    value = loss(**inputs)
    assert torch.isfinite(value)
    value.backward()
    assert inputs['s_stem'].grad.abs().sum() > 0


# --- arguments -------------------------------------------------------------


def test_widths_are_inferred_or_given():
    loss = CKTFLoss(embed_dim=8, num_samples=20, num_negatives=6, exclude='instance')
    assert loss.needs_width
    with pytest.raises(ValueError, match='in_channels of CKTFLoss are not'):
        loss(**random_inputs())
    inputs = random_inputs()
    ids = inputs.pop('sample_idx')
    loss.infer_width(**inputs)
    assert not loss.needs_width
    # Stems of 4 and 6 channels, 2 x 2 windows; groups as wide as the teacher.
    widths = [(16, 24)] + 3 * [(6, 6)] + [(6, 10)]
    given = CKTFLoss(
        embed_dim=8, in_channels=widths, num_samples=20, num_negatives=6, exclude='instance'
    )
    shapes = {k: v.shape for k, v in loss.state_dict().items()}
    assert shapes == {k: v.shape for k, v in given.state_dict().items()}
    assert not given.needs_width
    given(**inputs, sample_idx=ids)
    with pytest.raises(ValueError, match='model.input_shape'):
        given(**random_inputs(pixels=24))
    with pytest.raises(ValueError, match='a pair of widths'):
        CKTFLoss(in_channels=[5, 6, 7])
    with pytest.raises(ValueError, match='in_channels is 64, expected a pair'):
        CKTFLoss(in_channels=64)
    with pytest.raises(ValueError, match='a pair of widths'):
        CKTFLoss(in_channels=[(5, 6), (7, 8)])


def test_levels_are_those_of_the_widths():
    loss = CKTFLoss(
        embed_dim=8,
        in_channels=[(16, 24), (6, 6), (6, 10)],
        num_samples=20,
        num_negatives=6,
        exclude='instance',
    )
    with pytest.raises(ValueError, match="'group3'.*made for"):
        loss(**random_inputs())


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(method='middle'), "method is 'middle', expected one of"),
        (dict(pool='max'), "pool is 'max', expected one of"),
        (dict(head='conv'), "head is 'conv'"),
        (dict(beta=math.nan), 'beta is nan'),
        (dict(theta=math.inf), 'theta is inf'),
        (dict(loss_weight=math.nan), 'loss_weight is nan'),
        (dict(num_groups=0), 'num_groups is 0'),
        (dict(num_groups='3'), "num_groups is '3', expected an integer, or None"),
        (dict(embed_dim=0), 'embed_dim'),
        (dict(temperature=0), 'temperature is 0'),
        (dict(num_negatives=0), 'num_negatives is 0'),
        (dict(exclude='none'), "exclude is 'none'"),
    ],
)
def test_wrong_arguments_are_told_at_once(kwargs, message):
    with pytest.raises(ValueError, match=message):
        CKTFLoss(**kwargs)


def test_every_weight_counts():
    inputs, ids = random_inputs(), torch.randint(20, (4, 7))
    ids[:, 0] = inputs['sample_idx']

    reference = small_loss().state_dict()

    def value(**kwargs):
        loss = small_loss(**kwargs)
        own = loss.state_dict()
        loss.load_state_dict(
            {
                key: reference[key]
                if key in reference and value.shape == reference[key].shape
                else value
                for key, value in own.items()
            }
        )
        with torch.no_grad():
            return float(loss(**inputs, contrast_idx=ids))

    pen, rest = value(beta=1, theta=0), value(beta=0, theta=1)
    assert value() == pytest.approx(0.8 * pen + 0.1 * rest, rel=1e-5)
    assert value(loss_weight=3) == pytest.approx(3 * value(), rel=1e-5)
    assert value(loss_weight=0) == 0
    fewer = value(beta=0, theta=1, num_groups=1)
    assert 0 < fewer < rest
    changed = (
        dict(temperature=0.07),
        dict(pool='global'),
        dict(method='first'),
        dict(embed_dim=6),
        dict(head='pad'),
        dict(objective='infonce'),
    )
    for kwargs in changed:
        assert value(**kwargs) != value()


def test_levels_without_weight_are_left_out():
    alone = small_loss(theta=0)
    assert list(alone.losses) == list(alone.student_connectors) == ['penultimate']
    blocks = small_loss(beta=0)
    assert list(blocks.losses) == ['stem', 'group1', 'group2', 'group3']
    for loss, at in ((alone, 's_feats'), (blocks, 's_stem')):
        inputs = random_inputs()
        loss(**inputs).backward()
        other = dict(s_feats='s_stem', s_stem='s_feats')[at]
        assert inputs[at].grad is not None and inputs[other].grad is None
    CKTFLoss(theta=0, in_channels=[(5, 6)])
    with pytest.raises(ValueError, match='a pair of widths'):
        CKTFLoss(theta=0, in_channels=[(5, 6), (7, 8)])
    with pytest.raises(ValueError, match='both 0, so no level is left'):
        CKTFLoss(beta=0, theta=0)


def test_first_groups_only_make_no_other_banks():
    loss = small_loss(num_groups=2)
    assert list(loss.losses) == ['penultimate', 'stem', 'group1', 'group2']
    loss(**random_inputs()).backward()


def test_autocast_computes_in_float32():
    loss = small_loss()
    with torch.autocast('cpu', torch.bfloat16):
        value = loss(**random_inputs())
    assert value.dtype == torch.float32


def test_training_lowers_it():
    torch.manual_seed(0)
    loss, inputs = small_loss(num_samples=20), random_inputs()
    student = [inputs['s_stem'], inputs['s_feats'], *inputs['s_blocks']]
    optimizer = torch.optim.SGD([*student, *loss.parameters()], lr=0.05)
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        value = loss(**inputs)
        value.backward()
        optimizer.step()
        for crd in loss.losses.values():
            crd.bank.commit()
        values.append(value.item())
    assert sum(values[-5:]) < 0.5 * sum(values[:5])


def test_state_dict_round_trip():
    loss, inputs = small_loss(), random_inputs()
    loss(**inputs)
    for crd in loss.losses.values():
        crd.bank.commit()
    other = small_loss()
    other.load_state_dict(loss.state_dict())
    ids = torch.randint(20, (4, 7))
    ids[:, 0] = inputs['sample_idx']
    assert torch.equal(loss(**inputs, contrast_idx=ids), other(**inputs, contrast_idx=ids))
