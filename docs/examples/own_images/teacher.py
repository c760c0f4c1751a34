_base_ = ['./settings.py', './pair.py']
model = _base_.pair.teacher
