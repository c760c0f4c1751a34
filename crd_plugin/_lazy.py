"""Import public classes when they are first asked for."""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, modules: Sequence[str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make ``__getattr__`` and ``__dir__`` of a package that has the classes of several modules."""

    def classes() -> set[str]:
        names = {name for module in modules for name in import_module(module).__all__}
        return {name for name in names if name[0].isupper()}

    def __getattr__(name: str) -> Any:
        if name == '__all__':
            return sorted(classes())
        if name[0].isupper():  # the names of modules are in lower case
            for module in map(import_module, modules):  # until one has it
                if name in module.__all__:
                    return getattr(module, name)
        raise AttributeError(f'module {package!r} has no attribute {name!r}')

    def __dir__() -> list[str]:
        return sorted({*vars(sys.modules[package]), *classes()})

    return __getattr__, __dir__
