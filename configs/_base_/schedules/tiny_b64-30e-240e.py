"""Tiny-ImageNet and STL-10 are trained as CIFAR-100 is, both stages.

Source: kaiqi123/CKTF, scripts/run_tiny-imagenet_distill.sh @ b2bba29.
"""

_base_ = './cifar_b64-30e-240e.py'
