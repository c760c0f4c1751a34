"""240 epochs of batches of 64, as in the CRD paper on CIFAR-100.

Source: HobbitLong/RepDistiller, train_student.py @ b84f547. Students with depthwise or grouped
convolutions take cifar_b64-240e_lr001.py. kaiqi123/CKTF @ b2bba29 trains on Tiny-ImageNet and
STL-10 in the same way.
"""

optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=5e-4))
param_scheduler = dict(type='MultiStepLR', by_epoch=True, milestones=[150, 180, 210], gamma=0.1)
train_cfg = dict(by_epoch=True, max_epochs=240, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=64)
