_base_ = '../_base_/settings/nyu-depth_tuned.py'
