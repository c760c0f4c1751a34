"""The order of channels of image files for a network that was trained on RGB arrays."""

from mmcv.transforms import BaseTransform

from crd_plugin.registry import TRANSFORMS


@TRANSFORMS.register_module()
class FilesToRGB(BaseTransform):
    """Turn an image that MMPretrain's inferencer has read from BGR to RGB.

    It comes first in the test pipeline of a student that was trained on RGB arrays, such as those
    of CIFAR or STL-10. Samples of a data set, which have a ``sample_idx``, stay as they are. Images
    of an inferencer are files, or arrays in OpenCV's order.
    """

    def transform(self, results: dict) -> dict:
        """Exchange red and blue of ``img``, ``(H, W, 3)``, unless it is of the data set."""
        if 'sample_idx' in results:
            return results
        return {**results, 'img': results['img'][..., ::-1].copy()}
