_base_ = [
    './settings.py',
    './pair.py',
    'crd_plugin::_base_/distillers/crd.py',
    'crd_plugin::_base_/distillers/kd.py',
]
from crd_plugin.fragments import join

model = join(_base_.pair, _base_.crd, _base_.kd)
