"""CRD without labels between the student's locations and the teacher's global feature.

16 locations of the student's last map are drawn per image; negatives are other images. The
temperature is that of the paper, section 4.5; the number of locations is chosen here.
"""

_base_ = './crd_unlabeled.py'
crd = _base_.crd
crd.distiller.student_recorders.pop('feat')
crd.distiller.student_recorders.stages = dict(type='crd_plugin.StageOutputs', source='backbone')
crd.distiller.connectors.crd_student.type = 'crd_plugin.DenseEmbeddingConnector'
crd.distiller.distill_losses.loss_crd.update(type='crd_plugin.DenseCRDLoss', temperature=0.1)
crd.distiller.loss_forward_mappings.loss_crd.s_feats.update(recorder='stages', data_idx=-1)
