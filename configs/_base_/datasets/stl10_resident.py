"""STL-10 at 64x64, held on the training device: 0.14 GB."""

_base_ = './stl10.py'
data_preprocessor = dict(type='crd_plugin.ResidentDataPreprocessor')
# Whole batches are made on the device: no workers, nothing to collate or pin.
train_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    pin_memory=False,
    collate_fn=dict(type='crd_plugin.whole_batch'),
    dataset=dict(type='crd_plugin.ResidentDataset'),
)
val_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    pin_memory=False,
    collate_fn=dict(type='crd_plugin.whole_batch'),
    dataset=dict(
        _delete_=True, type='crd_plugin.ResidentDataset', dataset=_base_.val_dataloader.dataset
    ),
)
test_dataloader = val_dataloader
