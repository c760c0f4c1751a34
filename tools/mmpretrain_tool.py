"""Run a tool of MMPretrain on our configs: ``python tools/mmpretrain_tool.py TOOL ...``."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence

from crd_plugin.cli import arguments as cli
from crd_plugin.compat import use_load_checkpoint_file
from crd_plugin.compat.mmpretrain_tools import run_script, scripts


def main(argv: Sequence[str] | None = None) -> None:
    """Run a tool."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ['']
    found = scripts()
    if name not in found:
        nearest = difflib.get_close_matches(name, found, n=1) or ['browse_dataset']
        raise cli.UsageError(
            f'MMPretrain has no tool {name!r}, such as {nearest[0]}; docs/tools.md shows those for '
            'configs of this package.'
        )
    use_load_checkpoint_file()
    run_script(found[name], rest)


if __name__ == '__main__':
    sys.exit(cli.run(main))
