_base_ = '../_base_/settings/digits-depth_tuned.py'
