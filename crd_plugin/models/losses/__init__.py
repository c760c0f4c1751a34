"""Distillation losses."""

from .cktf_loss import CKTFLoss
from .cocord_loss import CoCoRDLoss
from .crd_loss import CRDLoss
from .in_batch_crd_loss import InBatchCRDLoss
from .map_losses import ATLoss, FSPLoss, KDSVDLoss, NSTLoss
from .regressor_losses import ABLoss, FitNetLoss, FTLoss, VIDLoss
from .relation_losses import CCLoss, PKTLoss, RKDLoss, SPLoss

__all__ = [
    'ABLoss',
    'ATLoss',
    'CCLoss',
    'CKTFLoss',
    'CRDLoss',
    'CoCoRDLoss',
    'FSPLoss',
    'FTLoss',
    'FitNetLoss',
    'InBatchCRDLoss',
    'KDSVDLoss',
    'NSTLoss',
    'PKTLoss',
    'RKDLoss',
    'SPLoss',
    'VIDLoss',
]
