"""Extension of mkdocstrings in mkdocs.yml: the roles and formulas of our docstrings."""

import re
from textwrap import dedent

from griffe import Extension
from latex2mathml.converter import convert


class Docstrings(Extension):
    """Turn reStructuredText's roles into code, and formulas into MathML, which needs no script."""

    def on_object(self, *, obj, **kwargs):
        """Rewrite the docstring of an object."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(text):
    """Return a docstring as Markdown.

    >>> to_markdown('See :class:`~torch.nn.Linear`, for instance::')
    'See `Linear`, for instance:'
    """
    text = re.sub(r'\.\. math::\n((?: +.*\n)+)', lambda m: formula(dedent(m[1]), 'block'), text)
    text = re.sub(r':math:`([^`]+)`', lambda m: formula(m[1], 'inline'), text)
    text = re.sub(r':\w+:`~?([^`]+)`', lambda m: f'`{m[1].split(".")[-1]}`', text)
    return re.sub(r'::$', ':', text, flags=re.MULTILINE)


def formula(latex, display):
    """Return a formula in one line of MathML."""
    return convert(' '.join(latex.split()), display=display)
