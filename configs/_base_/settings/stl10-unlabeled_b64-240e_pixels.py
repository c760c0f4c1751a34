"""The same for networks with a data_preprocessor of their own, which are given bare pixels.

A mean of three channels would make a grey image one of three channels, unnoticed.
"""

_base_ = './stl10-unlabeled_b64-240e.py'
data_preprocessor = dict(mean=None, std=None)
