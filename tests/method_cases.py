"""What the tests of the comparison methods share.

Their golden files, ``zoo_*.npz``, were made by running ``distiller_zoo/`` of
HobbitLong/RepDistiller @ b84f547 on seeded inputs.
"""

import pytest
import torch

from tests import golden

DTYPES = (torch.float32, torch.float64)


def leaves(tensors, dtype):
    """Copies that collect a gradient."""
    return [x.detach().to(dtype).clone().requires_grad_() for x in tensors]


def features(case, dtype):
    """Student's inputs, as leaves, and the teacher's, as they are listed."""
    names = [name for name in case if name[0] == 's' and name[1:].isdigit()]
    student = leaves([case[name] for name in names], dtype)
    teacher = [case[f't{name[1:]}'].to(dtype) for name in names]
    return student, teacher


def random_maps(*shapes, dtype=torch.float64, seed=0):
    """Student's or teacher's maps, as leaves."""
    generator = torch.Generator().manual_seed(seed)
    return leaves([torch.randn(s, generator=generator) for s in shapes], dtype)


def check(loss, case, dtype, one=False):
    """Value and student gradients of one call.

    Args:
        loss (nn.Module): Loss in training mode, of any dtype.
        case (dict): Golden arrays.
        dtype (torch.dtype): What it is computed in.
        one (bool): Give the only feature itself instead of a list.
    """
    student, teacher = features(case, dtype)
    loss.to(dtype).zero_grad()
    if one:
        value = loss(student[0], teacher[0])
    else:
        value = loss(student, teacher)
    assert value.shape == () and value.dtype == dtype
    value.backward()
    suffix = '_f64' if dtype == torch.float64 else ''
    golden.assert_value(value, case[f'loss{suffix}'])
    for i, feat in enumerate(student):
        golden.assert_grad(feat.grad, case[f'grad_s{i}'])
    # Layer by layer too, where there are several.
    for i, (s, t) in enumerate(zip(student, teacher)):
        if len(student) > 1:
            golden.assert_value(loss(s, t), case[f'loss_{i}{suffix}'])


def load_parameters(module, case, prefix):
    """Give a module the parameters and buffers of a case, all of them."""
    start = f'param.{prefix}.'
    module.load_state_dict(
        {name[len(start) :]: value for name, value in case.items() if name.startswith(start)}
    )


def check_parameters(module, case, prefix):
    """Gradients of a module's parameters and its buffers after the call."""
    parameters = dict(module.named_parameters())
    buffers = dict(module.named_buffers())
    for group, tensors in (('grad', parameters), ('after', buffers)):
        start = f'{group}.{prefix}.'
        expected = {
            name[len(start) :]: value for name, value in case.items() if name.startswith(start)
        }
        assert set(expected) == set(tensors)
        for name, value in expected.items():
            if group == 'after':
                golden.assert_value(tensors[name], value)
            elif value.abs().max() < 1e-5:
                # A bias in front of batch norm: zero up to rounding.
                assert tensors[name].grad.abs().max() < 2e-5
            else:
                golden.assert_grad(tensors[name].grad, value)


def check_against_loop(loss, loop, student, teacher, rtol=1e-9):
    """Value and gradient against a plain loop over Python numbers.

    Args:
        loss (nn.Module): Loss, in float64.
        loop (callable): The same from the same arguments.
        student (list[Tensor]): Leaves.
        teacher (list[Tensor]): Their gradient must stay None.
        rtol (float): Relative tolerance of values and gradients.
    """
    expected = loop(student, teacher)
    gradients = torch.autograd.grad(expected, student)
    value = loss(student, teacher)
    value.backward()
    torch.testing.assert_close(value, expected, rtol=rtol, atol=1e-12)
    for feat, gradient in zip(student, gradients):
        torch.testing.assert_close(feat.grad, gradient, rtol=rtol * 10, atol=1e-12)
    assert all(feat.grad is None for feat in teacher)


def check_weight(build, student, teacher):
    """``loss_weight`` is a factor, and has to be finite.

    Args:
        build (callable): ``build(loss_weight=...)`` makes the loss.
        student (list[Tensor]): Student's features.
        teacher (list[Tensor]): Teacher's features.
    """
    values = []
    for weight in (1.0, 2.5, 0.0, -1.0):
        torch.manual_seed(0)
        loss = build(loss_weight=weight).to(student[0].dtype)
        if getattr(loss, 'needs_width', False):
            loss.infer_width(student, teacher)
            loss.to(student[0].dtype)
        values.append(loss(student, teacher).detach())
    assert values[0] != 0 and values[2] == 0
    torch.testing.assert_close(values[1], 2.5 * values[0])
    torch.testing.assert_close(values[3], -values[0])
    for weight in (float('nan'), float('inf')):
        with pytest.raises(ValueError, match='loss_weight is (nan|inf)'):
            build(loss_weight=weight)


def check_half_precision(loss, student, teacher, rtol=1e-6):
    """Half-precision features give the numbers of float32, finite ones.

    Once as they are, for losses without layers, and once under autocast.

    Args:
        loss (nn.Module): Loss, in float32.
        student (list[Tensor]): Student's features.
        teacher (list[Tensor]): Teacher's features.
        rtol (float): How far layers under autocast may bring the value away.
    """
    layers = any(True for _ in loss.parameters())
    for dtype in (torch.float16, torch.bfloat16):
        halves = [leaves(side, dtype) for side in (student, teacher)]
        singles = [leaves(side, torch.float32) for side in halves]
        expected = loss(*singles)
        gradients = torch.autograd.grad(expected, singles[0])
        assert torch.isfinite(expected)
        with torch.autocast('cpu', dtype):
            values = [loss(*(singles if layers else halves))]
        if not layers:
            values.append(loss(*halves))
        for value in values:
            assert value.dtype == torch.float32
            torch.testing.assert_close(value, expected, rtol=rtol, atol=0)
            leaf = singles[0] if layers else halves[0]
            ours = torch.autograd.grad(value, leaf)
            for gradient, reference in zip(ours, gradients):
                scale = float(reference.abs().max())
                assert torch.isfinite(gradient).all() and scale > 0
                torch.testing.assert_close(
                    gradient.float(), reference, rtol=max(rtol, 0.01), atol=max(rtol, 0.01) * scale
                )
