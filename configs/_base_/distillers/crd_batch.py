"""CRD without a memory bank: the negatives are the other samples of the batch of all ranks.

Nothing is kept per sample, so ids are not needed, and InfoNCE needs no constant from the first
batch. The weight is that of CRD with a bank. Labels only tell which samples are not negatives;
docs/choosing.md shows it without them.
"""

_base_ = './crd.py'
crd = _base_.crd
crd.distiller.student_recorders.pop('ids')
crd.distiller.loss_forward_mappings.loss_crd.pop('sample_idx')
crd.distiller.distill_losses.loss_crd.update(negatives='batch', objective='infonce')
