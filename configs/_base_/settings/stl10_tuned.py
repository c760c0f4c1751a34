"""Second stage of transfer to STL-10: 240 epochs of the classifier on 5,000 images.

Source: kaiqi123/CKTF, train_teacher.py --fine_tune @ b2bba29. As there, batch norm updates its
statistics on the new images while all weights of the backbone stay as they are.
"""

_base_ = ['../default_runtime.py', '../datasets/stl10.py', '../schedules/cifar_b64-240e.py']
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.0))))
