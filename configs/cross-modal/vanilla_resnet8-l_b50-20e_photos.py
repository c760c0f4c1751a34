_base_ = ['../_base_/settings/photos_b50-20e.py', '../_base_/pairs/resnet8-l_resnet8-ab_photos.py']
model = _base_.pair.teacher
