"""What tools of MMPretrain ask of a classifier, answered by the student."""

from __future__ import annotations

import re
from typing import Any

from mmengine.structures import BaseDataElement
from torch import Tensor, nn

__all__ = ['StudentInterface']

# Names of the student and of what is built like it.
_STUDENT = re.compile(r'^(architecture|branches\.\d+)\.')


class StudentInterface:
    """Answer as the student, which is ``architecture``, does."""

    architecture: Any

    @property
    def backbone(self) -> nn.Module:
        """nn.Module: The student's backbone."""
        return self.architecture.backbone

    @property
    def neck(self) -> nn.Module | None:
        """nn.Module, optional: The student's neck."""
        return self.architecture.neck

    @property
    def head(self) -> nn.Module:
        """nn.Module: The student's head."""
        return self.architecture.head

    def extract_feat(self, inputs: Tensor, **kwargs) -> Any:
        """Extract the student's features."""
        return self.architecture.extract_feat(inputs, **kwargs)

    def predict(self, inputs: Tensor, *args, **kwargs) -> list[BaseDataElement]:
        """Predict by the student."""
        return self.architecture.predict(inputs, *args, **kwargs)

    def get_layer_depth(self, param_name: str) -> tuple[int, int]:
        """Return the depth of a parameter, for layer-wise decay of the learning rate.

        Connectors and all else outside the student's backbone have the full rate, as its head.

        Args:
            param_name (str): Name of a parameter of this model.

        Returns:
            tuple[int, int]: Depth, and the number of depths.

        Raises:
            NotImplementedError: If the student's backbone does not know its depths.
        """
        try:
            return self.architecture.get_layer_depth(_STUDENT.sub('', param_name))
        except (AttributeError, NotImplementedError) as error:
            backbone = getattr(self.architecture, 'backbone', self.architecture)
            raise NotImplementedError(
                f'layer-wise decay needs the depths of the student, but its {_describe(backbone)} '
                'does not know them; take another constructor of optim_wrapper, or a backbone with '
                'get_layer_depth such as mmpretrain.VisionTransformer.'
            ) from error


def _describe(network: nn.Module) -> str:
    """Name a network by its class and depth."""
    depth = getattr(network, 'depth', None)
    return type(network).__name__ + (f' of depth {depth}' if isinstance(depth, int) else '')
