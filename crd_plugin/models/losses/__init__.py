"""Distillation losses."""

from .ab_loss import ABLoss
from .at_loss import ATLoss
from .cc_loss import CCLoss
from .cktf_loss import CKTFLoss
from .cocord_loss import CoCoRDLoss
from .crd_loss import CRDLoss
from .dense_crd_loss import DenseCRDLoss
from .dkd_loss import DKDLoss
from .ensemble_crd_loss import EnsembleCRDLoss
from .ensemble_kd_loss import EnsembleKDLoss
from .fitnet_loss import FitNetLoss
from .fsp_loss import FSPLoss
from .ft_loss import FTLoss
from .in_batch_crd_loss import InBatchCRDLoss
from .kdsvd_loss import KDSVDLoss
from .lskd_loss import LSKDLoss
from .nst_loss import NSTLoss
from .pkt_loss import PKTLoss
from .rkd_loss import RKDLoss
from .rrd_loss import RRDLoss
from .sp_loss import SPLoss
from .vid_loss import VIDLoss

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
