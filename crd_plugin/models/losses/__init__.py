"""Distillation losses."""
from .crd_loss import CRDLoss

__all__ = ['CRDLoss']
