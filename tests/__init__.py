"""A package, because others leave one of this name in site-packages."""
