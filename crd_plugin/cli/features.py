"""Run trained networks over images, and measure what their features and logits are worth."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from torch import nn

from crd_plugin.checkpoints.publish import student_config
from crd_plugin.compat import load_checkpoint_file
from crd_plugin.models.recorders._classifier import find_classification_layer

from .arguments import UsageError


class Outputs(NamedTuple):
    """What a network makes of N images."""

    features: np.ndarray  # (N, C), the input of the classification layer
    logits: np.ndarray  # (N, classes)
    labels: np.ndarray  # (N,)

    @property
    def top1(self) -> float:
        """float: Accuracy of the logits, percent."""
        return 100 * float((self.logits.argmax(1) == self.labels).mean())


def load_network(cfg: Config, filename: str, role: str = 'architecture') -> Any:
    """Build one network of a config, with its data preprocessor, and load its weights.

    Args:
        cfg (Config): Config of a distillation, or of plain training.
        filename (str): Checkpoint of a distillation, of plain training, or a published one.
        role (str): 'architecture', the student, or 'teacher'. Defaults to 'architecture'.

    Returns:
        nn.Module: The network in evaluation mode, on MMEngine's device.

    Raises:
        UsageError: If the weights do not fit.
        CheckpointError: If the file is no checkpoint.
    """
    content = cfg.to_dict()
    if role != 'architecture':
        content['model'] = dict(architecture=content['model'][role])
    plain = student_config(content)
    with DefaultScope.overwrite_default_scope(plain.get('default_scope', 'mmpretrain')):
        network = MODELS.build(
            dict(plain['model'], data_preprocessor=plain.get('data_preprocessor'))
        )
    loaded = load_checkpoint_file(filename)
    weights = loaded.get('state_dict', loaded)
    own = {key[len(role) + 1 :]: weights[key] for key in weights if key.startswith(f'{role}.')}
    try:
        network.load_state_dict(own or weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = ' '.join(str(error).split())[:300]
        raise UsageError(
            f'checkpoint {filename} does not fit the {role} of the config: {reason}; give '
            'checkpoints of networks of this config.'
        ) from error
    return network.to(get_device()).eval()


@torch.inference_mode()
def run_network(network: Any, dataset: dict[str, Any]) -> Outputs:
    """Run a network over a data set, in its order.

    Args:
        network (nn.Module): As from :func:`load_network`.
        dataset (dict): Config of a data set with labels.

    Returns:
        Outputs: Features, logits and labels.
    """
    loader = dict(
        batch_size=250,
        num_workers=0,
        persistent_workers=False,
        dataset=dataset,
        sampler=dict(type='DefaultSampler', shuffle=False),
    )
    features, logits, labels = [], [], []

    def record(layer: nn.Module, inputs: Any, output: Any) -> None:
        features.append(inputs[0].flatten(1).cpu())
        logits.append(output.flatten(1).cpu())

    hook = find_classification_layer(network).register_forward_hook(record)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        for batch in Runner.build_dataloader(loader, seed=0):
            data = network.data_preprocessor(batch)
            network(data['inputs'], mode='tensor')
            labels += [sample.gt_label.item() for sample in data['data_samples']]
    hook.remove()
    return Outputs(torch.cat(features).numpy(), torch.cat(logits).numpy(), np.array(labels))


def own_data(cfg: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    """Configs of the training images, without augmentation, and of the validation images."""
    train, val = (
        copy.deepcopy(cfg[name].dataset.to_dict())
        for name in ('train_dataloader', 'val_dataloader')
    )
    # Ids, and data that stay on the device, are for training.
    while isinstance(train.get('dataset'), dict):
        train = train['dataset']
    while isinstance(val.get('dataset'), dict):
        val = val['dataset']
    return {**train, 'pipeline': val['pipeline']}, val


def digits(height: int, width: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Configs of scikit-learn's 797 training and 1,000 test digits, resized."""
    pipeline = [dict(type='Resize', scale=(width, height)), dict(type='PackInputs')]
    train, test = (
        dict(type='crd_plugin.Digits', split=split, pipeline=pipeline)
        for split in ('train', 'test')
    )
    return train, test


def linear_probe(train: Outputs, test: Outputs) -> float:
    """Fit a linear classifier on frozen features: logistic regression of scikit-learn.

    Features are standardised, the penalty is the default: no random numbers, nothing to choose.

    Args:
        train (Outputs): What the classifier is fitted on.
        test (Outputs): What it is measured on.

    Returns:
        float: Accuracy on ``test``, percent.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return 100 * probe.fit(train.features, train.labels).score(test.features, test.labels)


def class_correlation(outputs: Outputs) -> np.ndarray:
    """Correlation of the logits of each two classes over the images, ``(classes, classes)``."""
    return np.corrcoef(outputs.logits, rowvar=False)
