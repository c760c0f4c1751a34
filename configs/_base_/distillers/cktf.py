# CKTF alone; its settings are in with_cktf.py.
_base_ = './with_cktf.py'
model = dict(type='crd_plugin.FrozenTeacherDistill', distiller=_base_.with_cktf)
