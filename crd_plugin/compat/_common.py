"""What several mends need."""

import sys
from typing import Any


def replace(package: str, old: Any, new: Any) -> None:
    """Rebind every module-level name of a package that refers to ``old``."""
    for name, module in list(sys.modules.items()):
        if name.split('.')[0] != package or module is None:
            continue
        for attribute, value in list(vars(module).items()):
            if value is old:
                setattr(module, attribute, new)
