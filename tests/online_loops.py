"""The objective of OnlineEnsembleDistill by plain loops, for its tests."""

import torch

from crd_plugin.registry import MODELS


def full_networks(model, cfg):
    """Each branch as a network of its own, with the weights of the trunk.

    Args:
        model (OnlineEnsembleDistill): The algorithm.
        cfg (dict): Config of its architecture.

    Returns:
        list[nn.Module]: The student first.
    """
    nets = []
    for branch in (model.architecture, *model.branches):
        whole = MODELS.build(cfg).to(next(model.parameters()).dtype)
        weights = {**model.architecture.state_dict(), **branch.state_dict()}
        whole.load_state_dict(weights)
        nets.append(whole.train(model.training))
    return nets


def _gates(model, feature):
    """Pooling, FC, batch norm of the batch, ReLU and softmax, one by one."""
    fc, bn = model.gate.fc, model.gate.bn
    size, width, height, _ = feature.shape
    scores = [
        [
            fc.bias[i]
            + sum(fc.weight[i, c] * feature[b, c].sum() / height**2 for c in range(width))
            for i in range(model.num_branches)
        ]
        for b in range(size)
    ]
    gates = [[] for _ in range(size)]
    for i in range(model.num_branches):
        mean = sum(row[i] for row in scores) / size
        variance = sum((row[i] - mean) ** 2 for row in scores) / size
        for b in range(size):
            score = (scores[b][i] - mean) / (variance + bn.eps).sqrt()
            score = bn.weight[i] * score + bn.bias[i]
            gates[b].append(torch.exp(score.clamp(min=0)))
    return [[one / sum(row) for one in row] for row in gates]


def _log_softmax(row, tau=1.0):
    total = sum(torch.exp(value / tau) for value in row)
    return [value / tau - total.log() for value in row]


def looped_loss(model, nets, images, labels):
    """The objective as in the paper, number by number.

    Args:
        model (OnlineEnsembleDistill): Gives gate and weights of the terms.
        nets (list[nn.Module]): Its branches as full networks.
        images (Tensor): (B, C, H, W).
        labels (Tensor): (B,) int64.

    Returns:
        Tensor: Sum of all terms.
    """
    feature = []
    handle = nets[0].backbone.layer3.register_forward_pre_hook(
        lambda module, args: feature.append(args[0])
    )
    logits = [one(images, None, mode='tensor') for one in nets]
    handle.remove()
    gates = _gates(model, feature[0])
    size, classes = logits[0].shape
    ensemble = [
        [sum(gates[b][i] * logits[i][b, c] for i in range(len(nets))) for c in range(classes)]
        for b in range(size)
    ]

    def cross_entropy(rows):
        return -sum(_log_softmax(rows[b])[labels[b]] for b in range(size)) / size

    branches = sum(cross_entropy(one) for one in logits)
    divergence, tau = 0.0, model.tau
    for one in logits:
        for b in range(size):
            row = ensemble[b]
            if model.detach_ensemble:
                row = [value.detach() for value in row]
            taught = _log_softmax(row, tau)
            learnt = _log_softmax(one[b], tau)
            for t, s in zip(taught, learnt):
                divergence = divergence + tau**2 * t.exp() * (t - s) / size
    return (
        model.branch_weight * branches
        + model.ensemble_weight * cross_entropy(ensemble)
        + model.kl_weight * divergence
    )
