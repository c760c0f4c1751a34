"""A pretrained network of timm as a teacher."""

import difflib
import os
import sys
from contextlib import redirect_stdout
from importlib.util import find_spec
from typing import Any

from mmpretrain.models.classifiers import ImageClassifier
from torch import Tensor

from crd_plugin.compat import CheckpointError
from crd_plugin.models._numbers import count, one_of
from crd_plugin.registry import MODELS

from ..views import ResizeView
from .plain_network import LogitsHead

_POOLS = dict(cls='token', mean='avg')


@MODELS.register_module()
class TimmTeacher(ImageClassifier):
    """Build a foundation model of timm that knows what images it has to be given.

    Size, mean and standard deviation are those that timm has published with the weights. Position
    embeddings are resampled to ``size`` when weights are loaded. ``teacher_ckpt`` takes files of
    timm, DINOv2, DINOv3, CLIP and OpenCLIP as published, see ``docs/foundation_teachers.md``.

    Args:
        model_name (str): Name in timm with the tag of its weights, such as
            ``'vit_small_patch14_dinov2.lvd142m'``.
        pool (str, optional): Feature of an image: ``'cls'``, its class token, or ``'mean'`` of its
            patches or map. Defaults to None: as the weights were published.
        size (int, optional): Height and width of the images in pixels. Defaults to None: the same.
        num_classes (int): Outputs of the published classifier, for methods that read logits.
            Defaults to 0: features alone.
        pretrained (bool): Let timm fetch the weights. Defaults to False.
        init_cfg (dict, optional): Initialisation of MMEngine. Defaults to None.
        **kwargs (Any): Further arguments of ``timm.create_model``, such as ``depth``.

    Raises:
        ValueError: If timm is not installed or has no such network, weights, pooling or size.
        CheckpointError: If the weights cannot be downloaded.
    """

    def __init__(
        self,
        model_name: str,
        pool: str | None = None,
        size: int | None = None,
        num_classes: int = 0,
        pretrained: bool = False,
        init_cfg: dict | None = None,
        **kwargs: Any,
    ) -> None:
        one_of('pool', pool, (None, *_POOLS))
        if pool and num_classes:
            raise ValueError(
                f'pool={pool!r} with num_classes={num_classes}: a classifier has its own pooling; '
                'leave one out.'
            )
        known = _published(model_name, pretrained)
        size = known.input_size[-1] if size is None else count('size', size)
        if known.fixed_input_size:
            kwargs['img_size'] = size
        import timm

        try:
            network = timm.create_model(model_name, pretrained, num_classes=num_classes, **kwargs)
        except OSError as error:
            raise CheckpointError(
                f'the weights of {model_name} cannot be downloaded ({error}); download the file by '
                'hand, leave out pretrained and give its path as teacher_ckpt.'
            ) from error
        patch = getattr(getattr(network, 'patch_embed', None), 'patch_size', (1,))[0]
        if size % patch:
            raise ValueError(
                f'size is {size}, but {model_name} divides images into patches of {patch} pixels; '
                f'take a multiple, such as {max(size // patch, 1) * patch}.'
            )
        if pool:
            _set_pool(network, model_name, pool)
        # Says where weights come from; MMEngine would initialise pretrained ones again.
        network.is_init = pretrained  # type: ignore[assignment]
        mean, std = ([round(255 * value, 3) for value in part] for part in (known.mean, known.std))
        super().__init__(
            backbone=network,
            head=LogitsHead(num_classes) if num_classes else None,
            data_preprocessor=dict(
                type='crd_plugin.ViewPreprocessor',
                view=ResizeView(size),
                mean=mean,
                std=std,
                to_rgb=True,
            ),
            init_cfg=init_cfg,
        )
        given = known.classifier or ()
        self._name, self._classifiers = model_name, [given] if isinstance(given, str) else given

    def rename_weights(self, weights: dict[str, Tensor], source: str) -> dict[str, Tensor]:
        """Give published weights the names and sizes of this network, as timm does."""
        if any(name.startswith('backbone.') for name in weights):
            return weights  # saved from this class
        # Each file of timm has a public function of this name for the files of the authors.
        rename = getattr(sys.modules[type(self.backbone).__module__], 'checkpoint_filter_fn', None)
        if rename is not None:
            try:
                with open(os.devnull, 'w') as nowhere, redirect_stdout(nowhere):  # it prints
                    weights = rename(dict(weights), self.backbone)
            except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
                raise ValueError(
                    f'{source} cannot be given the names of {self._name}: '
                    f'{type(error).__name__}: {error}; give the file that was published for it.'
                ) from error
        parts = tuple(f'{part}.' for part in (*self._classifiers, 'attn_pool'))
        own = self.backbone.state_dict()
        return {
            f'backbone.{name}': value
            for name, value in weights.items()
            if name in own or not name.startswith(parts)
        }


def _published(name: str, pretrained: bool) -> Any:
    """Return what timm knows of the published weights, or say which names are nearest."""
    if not find_spec('timm'):
        raise ValueError(f'model_name {name!r} needs timm; install it with `pip install timm`.')
    import timm

    try:
        known = timm.get_pretrained_cfg(name)
    except RuntimeError:  # other weights of the same network
        known = None
    if known is None:
        names = [*timm.list_models(pretrained=True), *timm.list_models()]
        near = ', '.join(difflib.get_close_matches(name, names, n=3, cutoff=0.5))
        raise ValueError(
            f'timm {timm.__version__} has no model_name {name!r}; '
            f'{f"the nearest are {near}" if near else "see timm.list_pretrained()"}.'
        )
    if 'QuickGELU' in str(known.notes) and 'quickgelu' not in name:
        raise ValueError(
            f'model_name {name!r} has GELU, but these weights were trained with QuickGELU; take '
            f'{name.replace("_clip_", "_clip_quickgelu_")!r}.'
        )
    if pretrained and not known.has_weights:
        raise ValueError(
            f'timm has no weights of {name}; leave out pretrained and give a file as teacher_ckpt.'
        )
    return known


def _set_pool(network: Any, name: str, pool: str) -> None:
    if pool == 'cls' and getattr(network, 'cls_token', None) is None:
        raise ValueError(f"pool is 'cls', but {name} has no class token; take 'mean' or None.")
    try:
        # The norm layers stay as published; create_model(global_pool=...) would rename them.
        network.reset_classifier(0, _POOLS[pool])
    except (AssertionError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f'pool is {pool!r}, which {name} does not have ({error or "refused by timm"}); leave '
            'pool out.'
        ) from error
