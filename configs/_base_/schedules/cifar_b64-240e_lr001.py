"""The same at a fifth of the learning rate: MobileNet and ShuffleNet.

Source: HobbitLong/RepDistiller, train_student.py @ b84f547.
"""

_base_ = './cifar_b64-240e.py'
optim_wrapper = dict(optimizer=dict(lr=0.01))
