"""Networks of HobbitLong/RepDistiller: their weights, outputs and features.

``tests/data/backbones/repdistiller.*`` were made by running the original on a
CPU (torch 2.13, eval mode, 100 classes) on the weights of ``state_of`` and the
images of ``images``. The JSON holds, for each network, the number of
parameters and the names and shapes of the weights in their order. The arrays
are ``NAME.logits`` (2, 100), ``NAME.logits_f64`` and, for the plain features
and those before the activation (``feat``, ``preact``),
``NAME.feat_shapes`` (n, 4), padded by 0, and ``NAME.feat_values`` (n, 10):
mean, standard deviation and the first eight numbers of each.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from mmpretrain.registry import MODELS
from torch import Tensor, nn

import crd_plugin  # noqa: F401
from crd_plugin.models.backbones import build_cifar_classifier_cfg

_FOLDER = Path(__file__).parent / 'data' / 'backbones'
NETS = json.loads((_FOLDER / 'repdistiller.json').read_text())
NAMES = tuple(NETS)
NUM_CLASSES = 100
# One small network of each family.
FAMILIES = ('resnet8', 'ResNet50', 'wrn_16_1', 'vgg8', 'MobileNetV2', 'ShuffleV1', 'ShuffleV2')
_GOLDEN = np.load(_FOLDER / 'repdistiller.npz')


def golden(name: str, kind: str) -> np.ndarray:
    """An array of a network."""
    return _GOLDEN[f'{name}.{kind}']


def num_stages(name: str) -> int:
    """Features of the original, without stem and pooled vector."""
    return len(golden(name, 'feat_shapes')) - 2


def images() -> Tensor:
    """(2, 3, 32, 32), the input of all networks."""
    values = np.random.RandomState(0).standard_normal((2, 3, 32, 32))
    return torch.from_numpy(values.astype(np.float32))


def state_of(name: str) -> dict[str, Tensor]:
    """State dict as the original saves it, each weight seeded by its name."""
    shapes = dict(NETS[name]['state_dict'])
    state = {}
    for key, shape in shapes.items():
        generator = np.random.RandomState(zlib.crc32(key.encode()))
        value = generator.standard_normal(shape) * 0.05
        value = torch.from_numpy(np.asarray(value, dtype=np.float32))
        mean_key = key[: -len('weight')] + 'running_mean'
        if key.endswith('running_var'):
            value = value.abs() + 1
        elif key.endswith('num_batches_tracked'):
            value = torch.zeros((), dtype=torch.int64)
        elif key.endswith('weight') and mean_key in shapes:
            value = value + 1
        state[key] = value
    return state


def classifier(name: str) -> nn.Module:
    """Our network with the original's weights, in eval mode; it returns all stages."""
    cfg = build_cifar_classifier_cfg(name, NUM_CLASSES, out_indices=tuple(range(num_stages(name))))
    model = MODELS.build(cfg).eval()
    # Matched by order, so that no renaming rule is taken on trust.
    model.load_state_dict(dict(zip(model.state_dict(), state_of(name).values(), strict=True)))
    return model


def assert_logits(name: str, logits: Tensor) -> None:
    """Compare with the original's."""
    double = logits.dtype == torch.float64
    expected = golden(name, 'logits_f64' if double else 'logits')
    rtol, share = (1e-9, 1e-10) if double else (1e-4, 1e-5)
    np.testing.assert_allclose(
        logits.numpy(), expected, rtol=rtol, atol=share * np.abs(expected).max()
    )


def assert_feature(name: str, kind: str, index: int, value: Tensor) -> None:
    """Compare a feature of kind ``feat`` or ``preact`` with the original's."""
    shape = golden(name, f'{kind}_shapes')[index]
    assert list(value.shape) == shape[shape > 0].tolist()
    flat = value.double().flatten().numpy()
    found = [flat.mean(), flat.std(), *flat[:8]]
    np.testing.assert_allclose(
        found, golden(name, f'{kind}_values')[index], rtol=1e-4, atol=1e-5 * np.abs(flat).max()
    )
