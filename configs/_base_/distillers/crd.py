# Contrastive representation distillation alone; its settings are in
# with_crd.py.
_base_ = './with_crd.py'
model = dict(type='crd_plugin.FrozenTeacherDistill', distiller=_base_.with_crd)
