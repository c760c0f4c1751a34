"""Tiny-ImageNet and STL-10 are trained as CIFAR-100 is.

Source: kaiqi123/CKTF, scripts/run_tiny-imagenet_distill.sh and
run_transfer_from_tinyimagenet_to_stl10.sh @ b2bba29.
"""

_base_ = './cifar_b64-240e.py'
