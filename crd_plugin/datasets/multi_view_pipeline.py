"""Several independent views of one image, by any pipeline."""

import copy
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from mmcv.transforms import BaseTransform
from mmengine.dataset import Compose

from crd_plugin.models._numbers import count
from crd_plugin.registry import TRANSFORMS


@TRANSFORMS.register_module()
class MultiViewPipeline(BaseTransform):
    """Run a pipeline several times on each sample.

    ``pipeline=[dict(type='crd_plugin.MultiViewPipeline', transforms=train_pipeline)]`` takes a
    pipeline as it is, from loading to ``PackInputs``. Transforms at its start whose names begin
    with "Load" run once, the others once per view. It gives ``inputs``, a list of one image
    ``(C, H, W)`` per view, and the first view's ``data_samples``.

    Source: ShipengFu/CoCoRD ``cocord/loader.py`` @ 645b95d. Differs from MMPretrain's
    ``MultiView``, which keeps only the image and fails if the pipeline returns None.

    Args:
        transforms (Sequence[dict | callable]): The pipeline.
        num_views (int): Views per image. Defaults to 3, those of ``CoCoRDDistill``.

    Raises:
        ValueError: If ``num_views`` is not positive, or it does not end with ``PackInputs``.
    """

    def __init__(self, transforms: Sequence[Any], num_views: int = 3) -> None:
        self.num_views = count('num_views', num_views)
        loading = list(takewhile(_loads, transforms))
        self.once = Compose(loading)
        self.each = Compose(transforms[len(loading) :])

    def transform(self, results: dict) -> dict | None:
        """Make the views of one sample; None if the pipeline returned None."""
        results = self.once(results)
        if results is None:
            return None
        views = []
        for _ in range(self.num_views):
            view = self.each(copy.deepcopy(results))  # Transforms write into what they are given.
            if view is None:
                return None
            if 'inputs' not in view:
                raise ValueError(
                    f'transforms of MultiViewPipeline give {sorted(map(str, view))}, expected '
                    'inputs and data_samples; end them with PackInputs.'
                )
            views.append(view)
        return {**views[0], 'inputs': [view['inputs'] for view in views]}


def _loads(transform: Any) -> bool:
    """Return whether the name of a transform, without its scope, begins with "Load"."""
    kind = transform['type'] if isinstance(transform, dict) else type(transform)
    name = kind if isinstance(kind, str) else kind.__name__
    return name.rpartition('.')[2].startswith('Load')
