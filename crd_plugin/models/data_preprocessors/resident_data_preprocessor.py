"""Data preprocessor of resident data."""

from mmpretrain.models.utils import ClsDataPreprocessor

from crd_plugin.registry import MODELS


@MODELS.register_module()
class ResidentDataPreprocessor(ClsDataPreprocessor):
    """``mmpretrain.ClsDataPreprocessor``, under the name that configs of resident data use.

    Args:
        *args, **kwargs: Arguments of ``mmpretrain.ClsDataPreprocessor``.
    """
