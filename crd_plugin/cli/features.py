"""Run trained networks over images; measure and draw their features and logits."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import nn

from crd_plugin.checkpoints.publish import build_student, student_config
from crd_plugin.compat import load_checkpoint_file
from crd_plugin.datasets.sample_index import check_sources, find_sources
from crd_plugin.models.algorithms.checkpoints import find_weights
from crd_plugin.models.recorders.classifier_recorders import find_classification_layer
from crd_plugin.registry import DATASETS

from .arguments import UsageError
from .lookup import wants_complete


class Outputs(NamedTuple):
    """What a network makes of N images."""

    features: np.ndarray  # (N, C), the input of the classification layer
    logits: np.ndarray  # (N, classes)
    labels: np.ndarray  # (N,)
    classes: tuple[str, ...] = ()
    size: tuple[int, int] = (0, 0)  # height and width of the images

    @property
    def top1(self) -> float:
        """float: Accuracy of the logits, percent."""
        return 100 * float((self.logits.argmax(1) == self.labels).mean())


def load_network(cfg: Config, filename: str, role: str = 'architecture') -> Any:
    """Build the student or 'teacher' of a config, to evaluate, with weights of any checkpoint."""
    content = cfg.to_dict()
    if role != 'architecture':
        content['model'] = dict(architecture=content['model'][role])
    loaded = load_checkpoint_file(filename)
    try:
        weights = find_weights(loaded, filename)
        own = {key[len(role) + 1 :]: weights[key] for key in weights if key.startswith(f'{role}.')}
        network = build_student(student_config(content), own or weights, filename)
    except ValueError as error:
        raise UsageError(
            f'checkpoint {filename} is not of the {role} of the config; give checkpoints of its '
            f'networks: {error}'
        ) from error
    return network.to(get_device())


@torch.inference_mode()
def run_network(network: Any, dataset: Any) -> Outputs:
    """Run a network, as from :func:`load_network`, over a set with labels, or its config's."""
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
        batches = Runner.build_dataloader(loader, seed=0)
        for batch in batches:
            data = network.data_preprocessor(batch)
            network(data['inputs'], mode='tensor')
            labels += [sample.gt_label.item() for sample in data['data_samples']]
    hook.remove()
    return Outputs(
        torch.cat(features).numpy(),
        torch.cat(logits).numpy(),
        np.array(labels),
        tuple(getattr(batches.dataset, 'metainfo', {}).get('classes') or ()),
        tuple(data['inputs'].shape[-2:]),
    )


def own_data(cfg: Config, training: bool = False) -> Any:
    """Build the validation set of a config, or its training set without augmentation."""
    if training:
        train, val = _build_data(cfg, 'train'), own_data(cfg)
        for owner in find_sources(train).owners:
            owner.pipeline = find_sources(val).owners[0].pipeline
        return train
    return _build_data(cfg, 'val')


def _build_data(cfg: Config, split: str) -> Any:
    """Build a data set with all its wrappers but one that keeps the images on the device."""
    loader = cfg.get(f'{split}_dataloader')
    if not loader:
        raise UsageError(
            f'the config has no {split}_dataloader, of whose images networks are compared; give a '
            'config with one.'
        )
    dataset = loader.dataset.to_dict()
    if str(dataset['type']).endswith('ResidentDataset'):
        dataset = dataset['dataset']
    try:
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            built = DATASETS.build(dataset)
        if wants_complete(cfg):
            check_sources(built)
    except ValueError as error:
        raise UsageError(f'{split}_dataloader.dataset: {error}') from error
    return built


def digits(height: int, width: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Configs of scikit-learn's 797 training and 1,000 test digits, resized."""
    pipeline = [dict(type='Resize', scale=(width, height)), dict(type='PackInputs')]
    train, test = (
        dict(type='crd_plugin.Digits', split=split, pipeline=pipeline)
        for split in ('train', 'test')
    )
    return train, test


def linear_probe(train: Outputs, test: Outputs) -> float:
    """Accuracy on ``test``, percent, of a logistic regression on the features of ``train``."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(np.unique(train.labels)) < 2:
        raise UsageError(
            f'the {len(train.labels)} training images are of one class, of which a linear probe '
            'learns nothing; take images of several classes.'
        )
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return 100 * probe.fit(train.features, train.labels).score(test.features, test.labels)


def class_correlation(outputs: Outputs) -> np.ndarray:
    """Correlation of the logits of each two classes over the images, ``(classes, classes)``."""
    return np.corrcoef(outputs.logits, rowvar=False)


def correlation_difference(outputs: Outputs, teacher: Outputs) -> np.ndarray:
    """Distance of the class correlations from the teacher's, ``(classes, classes)``."""
    return np.abs(class_correlation(outputs) - class_correlation(teacher))


def plot_correlation(networks: Mapping[str, Outputs], path: str | Path) -> None:
    """Draw how far each network's correlations between logits are from those of the first."""
    teacher = next(iter(networks.values()))
    differences = [correlation_difference(outputs, teacher) for outputs in networks.values()]
    top = max(float(difference.max()) for difference in differences) or 1.0
    figure, panels = _panels(len(networks))
    for panel, name, difference in zip(panels, networks, differences):
        image = panel.imshow(difference, vmin=0, vmax=top, cmap='viridis')
        panel.set_title(f'{name}: {difference.mean():.3f}', fontsize=9)
        panel.locator_params(integer=True)
    figure.suptitle('Correlation between logits: difference to the teacher')
    figure.colorbar(image, ax=panels)
    figure.savefig(path, dpi=150)


def plot_embedding(networks: Mapping[str, Outputs], path: str | Path, images: int) -> None:
    """Draw the features of some images by t-SNE, one panel per network, coloured by class.

    The same images for all networks, of each class in proportion.
    """
    from matplotlib import colormaps
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    labels = next(iter(networks.values())).labels
    order = np.argsort(labels, kind='stable')
    chosen = order[np.linspace(0, len(order) - 1, min(images, len(order))).round().astype(int)]
    number = max(labels.max() + 1, 10)
    colours = colormaps['tab10' if number == 10 else 'nipy_spectral'].resampled(number)
    figure, panels = _panels(len(networks))
    for panel, (name, outputs) in zip(panels, networks.items()):
        features = outputs.features[chosen]
        tsne = TSNE(perplexity=min(30, (len(features) - 1) / 3), random_state=0)
        with threadpool_limits(1):  # on a busy machine, threads that wait for others take minutes
            places = tsne.fit_transform(features)
        panel.scatter(*places.T, color=colours(labels[chosen]), s=3, linewidths=0)
        panel.set(xticks=[], yticks=[])
        panel.set_title(name, fontsize=9)
    if len(outputs.classes) <= 10:  # more names are not read
        for label, name in enumerate(outputs.classes):
            panels[-1].scatter([], [], color=colours(label), s=12, label=name)
        figure.legend(loc='outside right center', fontsize=8)
    figure.savefig(path, dpi=150)


def _panels(number: int) -> tuple[Any, list[Any]]:
    """Make a figure with rows of five square panels."""
    from matplotlib.figure import Figure

    lines, columns = -(-number // 5), min(5, number)
    figure = Figure(figsize=(2.3 * columns + 1.2, 2.6 * lines), layout='constrained')
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for panel in panels[number:]:
        panel.set_axis_off()
    return figure, panels
