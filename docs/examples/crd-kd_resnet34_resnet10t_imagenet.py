_base_ = '../../configs/crd/crd-kd_resnet34_resnet18_8xb32-100e_imagenet.py'
model = dict(
    architecture=dict(
        backbone=dict(_delete_=True, type='TIMMBackbone', model_name='resnet10t'),
        head=dict(in_channels=512),
    )
)
