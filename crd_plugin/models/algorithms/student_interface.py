"""What tools of MMPretrain ask of a classifier, answered by the student."""

import re
from operator import attrgetter
from typing import Any

from mmengine.structures import BaseDataElement
from torch import Tensor

# Names of the student and of what is built like it.
_STUDENT = re.compile(r'^(architecture|branches\.\d+)\.')


class StudentInterface:
    """Answer as the student, which is ``architecture``, does."""

    architecture: Any
    # What to do with the checkpoint of a plain network.
    advice = 'test it with the config of the plain network'

    backbone = property(attrgetter('architecture.backbone'))
    neck = property(attrgetter('architecture.neck'))
    head = property(attrgetter('architecture.head'))

    def extract_feat(self, inputs: Tensor, **kwargs) -> Any:
        """Extract the student's features."""
        return self.architecture.extract_feat(inputs, **kwargs)

    def predict(self, inputs: Tensor, *args, **kwargs) -> list[BaseDataElement]:
        """Predict by the student."""
        return self.architecture.predict(inputs, *args, **kwargs)

    def get_layer_depth(self, param_name: str) -> tuple[int, int]:
        """Return depth and number of depths of a parameter, for layer-wise decay of its rate."""
        try:
            return self.architecture.get_layer_depth(_STUDENT.sub('', param_name))
        except (AttributeError, NotImplementedError) as error:
            backbone = getattr(self.architecture, 'backbone', self.architecture)
            depth = getattr(backbone, 'depth', None)
            which = type(backbone).__name__ + (f' of depth {depth}' if depth else '')
            raise NotImplementedError(
                f'layer-wise decay needs the depths of the student, but its {which} does not know '
                'them; take another constructor of optim_wrapper, or a backbone with '
                'get_layer_depth such as mmpretrain.VisionTransformer.'
            ) from error

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        """Refuse a plain network's checkpoint, of which MMEngine would only warn."""
        if not any(key.startswith(f'{prefix}architecture.') for key in state_dict):
            raise ValueError(
                'The checkpoint has no weights under "architecture.", so it is not one of a '
                f'distillation; {self.advice}.'
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)  # type: ignore[misc]
