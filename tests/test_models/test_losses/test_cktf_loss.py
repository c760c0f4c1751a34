"""CKTFLoss: the numbers of kaiqi123/CKTF, shared negatives, widths, errors."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from crd_plugin.models.losses import CKTFLoss, CRDLoss
from tests import golden, small_runs

CASES = ('cktf_resnet', 'cktf_wrn', 'cktf_vgg', 'cktf_resnet_mlp')
# Golden file and choice of blocks.
PAIRINGS = [
    ('cktf_resnet', 'First'),
    ('cktf_resnet', 'Largest'),
    *((name, 'Smallest') for name in CASES[:3]),
    *((name, 'Last') for name in CASES),
]
# Names of our levels in the golden files.
LEVELS = dict(stem='f0', penultimate='pen', **{f'group{i + 1}': f'g{i}' for i in range(4)})
LEAF = small_runs.REPO / 'configs/cktf/cktf_resnet14_resnet8w4_b20-100e_digits.py'


def inputs_of(case):
    """Arguments of ``forward`` from a golden file; the student's are leaves."""

    def blocks(side):
        stages = [[] for _ in range(int(case['n_groups']))]
        for key, value in case.items():
            if key.startswith(f'block_{side}_g'):
                stage = stages[int(key[len('block_s_g') :].split('_')[0])]
                stage.append(value.clone().requires_grad_(side == 's'))
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


def features_of(inputs):
    return {key: value for key, value in inputs.items() if not key.endswith('_idx')}


def loss_of(case, name, **kwargs):
    """The loss of a golden file, heads and banks included, and its inputs."""
    inputs = inputs_of(case)
    settings = dict(
        embed_dim=int(case['feat_dim']),
        num_negatives=int(case['K']),
        # Rounded to float32, as there.
        temperature=float(np.float32(case['T'])),
        momentum=float(np.float32(case['momentum'])),
        num_samples=int(case['n_data']),
        head='mlp' if name.endswith('mlp') else 'linear',
        beta=float(case['beta']),
        theta=float(case['theta']),
    )
    loss = CKTFLoss(**{**settings, **kwargs})
    loss.infer_width(**features_of(inputs))
    with torch.no_grad():
        for level, crd in loss.losses.items():
            crd.bank.student.copy_(case[f'{LEVELS[level]}.memory_v1_init'])
            crd.bank.teacher.copy_(case[f'{LEVELS[level]}.memory_v2_init'])
        for name, parameter in loss.named_parameters():
            parameter.copy_(case[golden_name(name)])
    return loss, inputs


def golden_name(parameter):
    side, level, rest = parameter.split('.', 2)
    return f'{LEVELS[level]}.embed_{side[0]}.{rest}'


def random_inputs(batch=4, pixels=16):
    """A small pair of three groups, with two blocks each in the teacher."""
    return dict(
        s_stem=torch.randn(batch, 4, pixels, pixels, requires_grad=True),
        t_stem=torch.randn(batch, 6, pixels, pixels),
        s_blocks=[torch.randn(batch, 4, 8, 8, requires_grad=True) for _ in range(3)],
        t_blocks=[tuple(torch.randn(2, batch, 6, 8, 8)) for _ in range(3)],
        s_feats=torch.randn(batch, 6, requires_grad=True),
        t_feats=torch.randn(batch, 10),
        sample_idx=torch.arange(batch),
    )


def cast(inputs, dtype):
    if isinstance(inputs, dict):
        return {
            key: value if key.endswith('_idx') else cast(value, dtype)
            for key, value in inputs.items()
        }
    if isinstance(inputs, (list, tuple)):
        return [cast(value, dtype) for value in inputs]
    return inputs.detach().to(dtype)


def random_ids(inputs):
    ids = torch.randint(20, (4, 7))
    ids[:, 0] = inputs['sample_idx']
    return ids


def small_loss(**kwargs):
    loss = CKTFLoss(**{**dict(embed_dim=8, num_negatives=6), **kwargs})
    loss.infer_width(**features_of(random_inputs()))
    for number, crd in enumerate(loss.losses.values()):
        crd.bank.resize(20, torch.arange(20) % 4, number)
    return loss


@pytest.mark.parametrize('name, method', PAIRINGS)
def test_losses_of_every_level(name, method):
    case = golden.load(name)
    loss, inputs = loss_of(case, name, method=method.lower())
    each = {}
    for level, crd in loss.losses.items():
        crd.register_forward_hook(lambda module, args, out, level=level: each.update({level: out}))
    total = loss(**inputs)
    assert len(each) == int(case['n_groups']) + 2
    for level, value in each.items():
        golden.assert_value(value, case[f'{method}.loss_{LEVELS[level]}'])
    below = sum(value for level, value in each.items() if level != 'penultimate')
    golden.assert_value(below, case[f'{method}.loss_intermediate'])
    penultimate, below = (case[f'{method}.loss_{part}'] for part in ('pen', 'intermediate'))
    golden.assert_value(total, (case['beta'] * penultimate + case['theta'] * below).float())
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
        golden.assert_grad(parameter.grad, case[f'Last.grad.{golden_name(name)}'])
    for level, crd in loss.losses.items():
        crd.bank.commit()
        key = f'Last.{LEVELS[level]}'
        golden.assert_value(crd.bank.student, case[f'{key}.memory_v1_after'])
        golden.assert_value(crd.bank.teacher, case[f'{key}.memory_v2_after'])
        golden.assert_value(crd.bank.log_z_student.exp().float(), case[f'{key}.Z_v1'])
        golden.assert_value(crd.bank.log_z_teacher.exp().float(), case[f'{key}.Z_v2'])


@pytest.mark.parametrize('name, method', PAIRINGS)
def test_beside_another_method(name, method):
    """One weight for all levels; the published code stops at three groups."""
    case = golden.load(name)
    settings = dict(method=method.lower(), beta=1, theta=1, loss_weight=float(case['kd2weights']))
    for groups, key in ((None, 'all_groups'), (3, 'published')):
        loss, inputs = loss_of(case, name, num_groups=groups, **settings)
        golden.assert_value(loss(**inputs), case[f'{method}.loss_kd2_{key}'])
    values = (case[f'{method}.loss_kd2_{key}'] for key in ('published', 'all_groups'))
    assert torch.equal(*values) == (name != 'cktf_vgg')


def test_naive_loss():
    """Every level by its definition, in float64."""
    torch.manual_seed(0)
    loss = small_loss(beta=0.7, theta=0.3, loss_weight=2.0).double()
    inputs = cast(random_inputs(), torch.float64)
    ids = random_ids(inputs)
    expected = 0.0
    for level, (student, teacher) in loss.features(**features_of(inputs)).items():
        unit = [
            F.normalize(getattr(loss, f'{side}_connectors')[level].linear(x))
            for side, x in (('student', student), ('teacher', teacher))
        ]
        bank = loss.losses[level].bank
        for anchor, rows in zip(unit, (bank.teacher, bank.student)):
            e = (rows[ids] @ anchor[:, :, None]).squeeze(2).div(0.1).exp()
            p, c = e / (20 * e.mean()), 6 / 20
            value = (
                -(p[:, 0] / (p[:, 0] + c + 1e-7)).log().sum()
                - (c / (p[:, 1:] + c + 1e-7)).log().sum()
            )
            expected += 2 * (0.7 if level == 'penultimate' else 0.3) * value / 4
    torch.testing.assert_close(loss(**inputs, contrast_idx=ids), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize('pool, window', [('auto', 8), ('global', 16)])
def test_map_of_a_stem_is_averaged(pool, window):
    """In the windows that the blocks are pooled in."""
    inputs = random_inputs()
    pair = CKTFLoss(pool=pool).features(**features_of(inputs))['stem']
    for feature, name in zip(pair, ('s_stem', 't_stem')):
        stem = inputs[name]
        corners = range(0, 16, window)
        means = [
            stem[:, channel, y : y + window, x : x + window].sum((1, 2)) / window**2
            for channel in range(stem.size(1))
            for y in corners
            for x in corners
        ]
        torch.testing.assert_close(feature, torch.stack(means, dim=1))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_features_are_cast(dtype):
    """As if they had been cast before; under autocast the loss is float32 too."""
    loss, inputs = small_loss(), cast(random_inputs(), dtype)
    ids = random_ids(inputs)
    expected = copy.deepcopy(loss)(**cast(inputs, torch.float32), contrast_idx=ids)
    mixed = copy.deepcopy(loss)
    value = loss(**inputs, contrast_idx=ids)
    assert value.dtype == torch.float32 and torch.equal(value, expected)
    with torch.autocast('cpu', dtype):
        assert mixed(**inputs, contrast_idx=ids).dtype == torch.float32


def test_negatives_are_drawn_once(monkeypatch):
    drawn, used = [], []
    draw = CRDLoss.draw
    monkeypatch.setattr(CRDLoss, 'draw', lambda *args: drawn.append(draw(*args)) or drawn[-1])
    loss = small_loss()
    for crd in loss.losses.values():
        crd.register_forward_pre_hook(lambda module, args: used.append(args[-1]))
    loss(**random_inputs())
    assert len(drawn) == 1 and len(used) == 5
    assert all(negatives is drawn[0] for negatives in used)
    # Rows and constants are each level's own.
    banks = [crd.bank for crd in loss.losses.values()]
    assert len({bank.pending.teacher.sum().item() for bank in banks}) == 5
    for bank in banks:
        bank.commit()
    assert len({float(bank.log_z_student) for bank in banks}) == 5


def test_levels_without_weight_are_left_out():
    alone, blocks = small_loss(theta=0), small_loss(beta=0)
    assert list(alone.losses) == list(alone.student_connectors) == ['penultimate']
    assert list(blocks.losses) == ['stem', 'group1', 'group2', 'group3']
    for loss, used, unused in ((alone, 's_feats', 's_stem'), (blocks, 's_stem', 's_feats')):
        inputs = random_inputs()
        loss(**inputs).backward()
        assert inputs[used].grad is not None and inputs[unused].grad is None
    first = small_loss(num_groups=2)
    assert list(first.losses) == ['penultimate', 'stem', 'group1', 'group2']
    without_bank = CKTFLoss(8, negatives='batch', objective='infonce', exclude='instance')
    inputs = features_of(random_inputs())
    without_bank.infer_width(**inputs)
    without_bank(**inputs).backward()
    assert inputs['s_stem'].grad.abs().sum() > 0


def test_every_setting_counts():
    inputs = random_inputs()
    ids = random_ids(inputs)
    reference = small_loss().state_dict()

    def value(**kwargs):
        loss = small_loss(**kwargs)
        for key, own in loss.state_dict().items():
            if key in reference and own.shape == reference[key].shape:
                own.copy_(reference[key])
        return loss(**inputs, contrast_idx=ids).item()

    whole, penultimate, below = value(), value(beta=1, theta=0), value(beta=0, theta=1)
    assert whole == pytest.approx(0.8 * penultimate + 0.1 * below, rel=1e-5)
    assert value(loss_weight=3) == pytest.approx(3 * whole, rel=1e-5)
    assert 0 < value(beta=0, theta=1, num_groups=1) < below
    settings = dict(temperature=0.07, pool='global', method='first', embed_dim=6, head='pad')
    for setting in dict(settings, objective='infonce').items():
        assert value(**dict([setting])) != whole


# --- arguments -------------------------------------------------------------


def test_widths_are_inferred_or_given():
    settings = dict(embed_dim=8, num_samples=20, num_negatives=6, exclude='instance')
    loss, inputs = CKTFLoss(**settings), random_inputs()
    assert loss.needs_width
    with pytest.raises(ValueError, match='in_channels of CKTFLoss are not'):
        loss(**inputs)
    loss.infer_width(**features_of(inputs))
    # Stems of 4 and 6 channels, 2 x 2 windows; groups as wide as the teacher.
    given = CKTFLoss(**settings, in_channels=[(16, 24)] + 3 * [(6, 6)] + [(6, 10)])
    assert not loss.needs_width and not given.needs_width
    shapes = [{k: v.shape for k, v in each.state_dict().items()} for each in (loss, given)]
    assert shapes[0] == shapes[1]
    given(**inputs)
    with pytest.raises(ValueError, match='model.input_shape'):
        given(**random_inputs(pixels=24))
    fewer = CKTFLoss(**settings, in_channels=[(16, 24), (6, 6), (6, 10)])
    with pytest.raises(ValueError, match='of stem, .*group3, penultimate, but was made for stem'):
        fewer(**inputs)
    CKTFLoss(theta=0, in_channels=[(5, 6)])


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(method='middle'), "method is 'middle', expected one of"),
        (dict(pool='max'), "pool is 'max', expected one of"),
        (dict(head='conv'), "head is 'conv'"),
        (dict(beta=0, theta=0), 'both 0, so no level is left'),
        (dict(exclude='none'), "exclude is 'none'"),
        (dict(in_channels=64), 'in_channels is 64, expected a pair of widths'),
        (dict(in_channels=[5, 6, 7]), 'a pair of widths'),
        (dict(in_channels=[(5, 6), (7, 8)]), 'a pair of widths'),
    ],
)
def test_wrong_arguments_are_reported_at_once(kwargs, message):
    with pytest.raises(ValueError, match=message):
        CKTFLoss(**kwargs)
