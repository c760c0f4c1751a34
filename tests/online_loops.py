"""The objective of OnlineEnsembleDistill, sample by sample, for its tests."""

import torch

from crd_plugin.registry import MODELS


def full_networks(model, cfg):
    """Build each branch as a network of its own, with the weights of the trunk.

    Args:
        model (OnlineEnsembleDistill): The algorithm.
        cfg (dict): Config of its architecture.

    Returns:
        list[nn.Module]: The student first.
    """
    nets = []
    for branch in (model.architecture, *model.branches):
        whole = MODELS.build(cfg).to(next(model.parameters()).dtype)
        whole.load_state_dict({**model.architecture.state_dict(), **branch.state_dict()})
        nets.append(whole.train(model.training))
    return nets


def _log_softmax(row, tau=1.0):
    return row / tau - torch.exp(row / tau).sum().log()


def looped_loss(model, nets, images, labels):
    """Compute the objective as it stands in the paper, sample by sample.

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
    fc, bn, size = model.gate.fc, model.gate.bn, len(labels)
    # Pooling and FC, then the statistics of the batch norm.
    scores = [fc.weight @ (x.flatten(1).sum(1) / x[0].numel()) + fc.bias for x in feature[0]]
    mean = sum(scores) / size
    variance = sum((score - mean) ** 2 for score in scores) / size
    total = 0.0
    for b, label in enumerate(labels):
        score = bn.weight * (scores[b] - mean) / (variance + bn.eps).sqrt() + bn.bias
        gate = torch.exp(score.clamp(min=0))
        rows = [one[b] for one in logits]
        ensemble = sum(g / gate.sum() * row for g, row in zip(gate, rows))
        for row in rows:
            total = total - model.branch_weight * _log_softmax(row)[label]
        total = total - model.ensemble_weight * _log_softmax(ensemble)[label]
        taught = _log_softmax(ensemble.detach() if model.detach_ensemble else ensemble, model.tau)
        for row in rows:
            gap = taught - _log_softmax(row, model.tau)
            total = total + model.kl_weight * model.tau**2 * (taught.exp() * gap).sum()
    return total / size
