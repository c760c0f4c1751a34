"""Several independent views of one image, by any pipeline."""

import copy
from typing import Any, Optional, Sequence

from mmcv.transforms import BaseTransform
from mmengine.dataset import Compose

from crd_plugin.registry import TRANSFORMS


@TRANSFORMS.register_module()
class MultiViewPipeline(BaseTransform):
    """Runs a pipeline several times on each sample.

    ``pipeline=[dict(type='crd_plugin.MultiViewPipeline',
    transforms=train_pipeline)]`` takes the pipeline of a data set as it is,
    from loading to ``PackInputs``. Transforms at its start whose names begin
    with "Load" run once, the others once a view with random numbers of their
    own. The annotation is that of the first view.

    Source: ShipengFu/CoCoRD ``cocord/loader.py`` @ 645b95d, where all three
    views are random crops and flips of one kind. MMPretrain's ``MultiView``
    keeps nothing but the image, so packing has to be taken out of the
    pipeline and put behind it; and it fails on a pipeline that returns None
    to have another sample drawn, as this one does not.

    Args:
        transforms (Sequence[dict | callable]): The pipeline.
        num_views (int): Views of each image. Defaults to 3: two for the
            student and one for the teacher of ``CoCoRDDistill``.

    Raises:
        ValueError: If ``num_views`` is not positive, or the pipeline does not
            end with ``PackInputs``.
    """

    def __init__(self, transforms: Sequence[Any], num_views: int = 3) -> None:
        if num_views < 1:
            raise ValueError(f'num_views is {num_views}, expected at least 1 view.')
        self.num_views = num_views
        transforms = list(transforms)
        first = 0
        while first < len(transforms) and _name(transforms[first]).startswith('Load'):
            first += 1
        self.once = Compose(transforms[:first])
        self.each = Compose(transforms[first:])

    def transform(self, results: dict) -> Optional[dict]:
        """Make the views of one sample.

        Args:
            results (dict): Annotation of the sample.

        Returns:
            dict | None: ``inputs``, a list of one image ``(C, H, W)`` a view,
            and ``data_samples``; None if the pipeline returned None.
        """
        results = self.once(results)
        if results is None:
            return None
        views = []
        for left in reversed(range(self.num_views)):
            # Transforms write into what they are given.
            view = self.each(copy.deepcopy(results) if left else results)
            if view is None:
                return None
            if 'inputs' not in view:
                raise ValueError(
                    'transforms of MultiViewPipeline give '
                    f'{sorted(map(str, view))}, expected inputs and '
                    'data_samples; end them with PackInputs.'
                )
            views.append(view)
        return {**views[0], 'inputs': [view['inputs'] for view in views]}

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(num_views={self.num_views}, once={self.once}, each={self.each})'
        )


def _name(transform: Any) -> str:
    """Name of a transform without its scope."""
    if isinstance(transform, dict):
        transform = transform.get('type')
    if not isinstance(transform, (str, type)):
        transform = type(transform)
    if isinstance(transform, type):
        return transform.__name__
    return transform.rpartition('.')[2]
