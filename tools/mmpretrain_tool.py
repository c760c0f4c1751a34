"""Run a tool of MMPretrain on our configs: ``python tools/mmpretrain_tool.py TOOL ...``."""

import argparse
import sys
from collections.abc import Sequence

from crd_plugin.cli import arguments as cli
from crd_plugin.compat import use_load_checkpoint_file
from crd_plugin.compat.mmpretrain_tools import run_script, scripts


def main(argv: Sequence[str] | None = None) -> None:
    """Run a tool."""
    found = scripts()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('tool', choices=found, metavar='TOOL', help=f'one of: {", ".join(found)}')
    parser.add_argument('arguments', nargs=argparse.REMAINDER, help='what the tool itself takes')
    args = parser.parse_args(argv)
    use_load_checkpoint_file()
    run_script(found[args.tool], args.arguments)


if __name__ == '__main__':
    sys.exit(cli.run(main))
