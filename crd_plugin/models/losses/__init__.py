"""Distillation losses."""

from .cktf_loss import CKTFLoss
from .cocord_loss import CoCoRDLoss
from .crd_loss import CRDLoss
from .dense_crd_loss import DenseCRDLoss
from .ensemble_crd_loss import EnsembleCRDLoss
from .in_batch_crd_loss import InBatchCRDLoss
from .logit_losses import DKDLoss, EnsembleKDLoss, LSKDLoss
from .map_losses import ATLoss, FSPLoss, KDSVDLoss, NSTLoss
from .regressor_losses import ABLoss, FitNetLoss, FTLoss, VIDLoss
from .relation_losses import CCLoss, PKTLoss, RKDLoss, RRDLoss, SPLoss

__all__ = [
    'ABLoss',
    'ATLoss',
    'CCLoss',
    'CKTFLoss',
    'CRDLoss',
    'CoCoRDLoss',
    'DKDLoss',
    'DenseCRDLoss',
    'EnsembleCRDLoss',
    'EnsembleKDLoss',
    'FSPLoss',
    'FTLoss',
    'FitNetLoss',
    'InBatchCRDLoss',
    'KDSVDLoss',
    'LSKDLoss',
    'NSTLoss',
    'PKTLoss',
    'RKDLoss',
    'RRDLoss',
    'SPLoss',
    'VIDLoss',
]
