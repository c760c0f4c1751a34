"""What the tests of the comparison methods share.

Their golden files, ``zoo_*.npz``, were made by running ``distiller_zoo/`` of
HobbitLong/RepDistiller @ b84f547 on seeded inputs.
"""

import torch

from tests import golden

DTYPES = (torch.float32, torch.float64)


def leaves(tensors, dtype):
    """Copies that collect a gradient."""
    return [x.detach().to(dtype).clone().requires_grad_() for x in tensors]


def features(case, dtype):
    """Student's inputs of a golden case, as leaves, and the teacher's."""
    names = [name for name in case if name[0] == 's' and name[1:].isdigit()]
    student = leaves([case[name] for name in names], dtype)
    teacher = [case[f't{name[1:]}'].to(dtype) for name in names]
    return student, teacher


def random_maps(*shapes, dtype=torch.float64, seed=0):
    """Seeded random features, as leaves."""
    generator = torch.Generator().manual_seed(seed)
    return leaves([torch.randn(s, generator=generator) for s in shapes], dtype)


def random_pair(s_shapes, t_shapes, dtype=torch.float64):
    """Seeded features of student and teacher, as leaves."""
    return random_maps(*s_shapes, dtype=dtype), random_maps(*t_shapes, dtype=dtype, seed=1)


def halved(x):
    """Average a map of even height and width over windows of two by two."""
    return sum(x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4


def check(loss, case, dtype, by_layer=True):
    """Compare the value and the student's gradients of one call with golden numbers.

    Args:
        loss (callable): Loss in training mode, of any dtype, or a function.
        case (dict): Golden arrays.
        dtype (torch.dtype): Type to compute in.
        by_layer (bool): Where there are several layers, also compare each alone.
    """
    student, teacher = features(case, dtype)
    if isinstance(loss, torch.nn.Module):
        loss.to(dtype).zero_grad()
    value = loss(student[0], teacher[0]) if len(student) == 1 else loss(student, teacher)
    assert value.shape == () and value.dtype == dtype
    value.backward()
    suffix = '_f64' if dtype == torch.float64 else ''
    golden.assert_value(value, case[f'loss{suffix}'])
    for i, feat in enumerate(student):
        golden.assert_grad(feat.grad, case[f'grad_s{i}'])
    if by_layer and len(student) > 1:
        for i, (s, t) in enumerate(zip(student, teacher)):
            golden.assert_value(loss(s, t), case[f'loss_{i}{suffix}'])


def load_parameters(module, case, prefix):
    """Load all parameters and buffers of a case into a module."""
    start = f'param.{prefix}.'
    module.load_state_dict(
        {name[len(start) :]: value for name, value in case.items() if name.startswith(start)}
    )


def check_parameters(module, case, prefix):
    """Compare the gradients of a module's parameters, and its buffers after the call."""
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
    """Compare value and gradient with a plain loop over numbers.

    Args:
        loss (nn.Module): Loss, in float64.
        loop (callable): The same from the same arguments.
        student (list[Tensor]): Leaves.
        teacher (list[Tensor]): Leaves, whose gradient must stay None.
        rtol (float): Relative tolerance of values; ten times as much for gradients.
    """
    expected = loop(student, [t.detach() for t in teacher])
    gradients = torch.autograd.grad(expected, student)
    value = loss(student, teacher)
    value.backward()
    torch.testing.assert_close(value, expected, rtol=rtol, atol=1e-12)
    for feat, gradient in zip(student, gradients):
        torch.testing.assert_close(feat.grad, gradient, rtol=rtol * 10, atol=1e-12)
    assert all(feat.grad is None for feat in teacher)
