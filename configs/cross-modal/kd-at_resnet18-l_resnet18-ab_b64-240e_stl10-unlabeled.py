_base_ = ['./kd_resnet18-l_resnet18-ab_b64-240e_stl10-unlabeled.py', '../_base_/distillers/at.py']
from crd_plugin.fragments import join

model = join(_base_.pair, _base_.kd, _base_.at)
