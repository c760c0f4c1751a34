"""Second stage of transfer to STL-10: 240 epochs of the classifier on 5,000 images.

Source: kaiqi123/CKTF, train_teacher.py --fine_tune @ b2bba29. As there, batch norm updates its
statistics on the new images while all weights of the backbone stay as they are.
"""

_base_ = './stl10_b64-240e.py'
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.0))))
