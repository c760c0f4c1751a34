"""Numbers that describe a training without changing it."""

from collections.abc import Sequence

import torch
from torch import Tensor


def alignment(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean squared distance of positive pairs of unit embeddings, ``(B, D)`` each."""
    # Wang and Isola, arXiv:2005.10242, section 4.1, alpha = 2: 2 without relation.
    return (first - second).square().sum(1).mean()


def uniformity(embeddings: Tensor) -> Tensor:
    r"""Return how far the embeddings are from being spread over the sphere.

    :math:`\log \frac{1}{|P|} \sum_{(i, j) \in P} e^{-2 \|x_i - x_j\|^2}` over the pairs P of two
    samples: 0 if all are equal, near -4 if they are spread over many dimensions.

    Args:
        embeddings (Tensor): Unit embeddings, ``(B, D)``, at least two.

    Returns:
        Tensor: Scalar. Source: Wang and Isola, arXiv:2005.10242, section 4.1, with t = 2.
    """
    return torch.pdist(embeddings).square().mul(-2).exp().mean().log()


def gradient_norm(loss: Tensor, parameters: Sequence[Tensor]) -> float | None:
    """Return the L2 norm of the gradient of a loss by parameters; None if it reaches none."""
    if not parameters or not loss.requires_grad:
        return None
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    norms = [gradient.float().norm() for gradient in gradients if gradient is not None]
    return float(torch.stack(norms).norm()) if norms else None
