"""CRD with embeddings of 256 dimensions instead of 128."""

_base_ = './crd.py'
crd = dict(
    distiller=dict(
        connectors=dict(crd_student=dict(embed_dim=256), crd_teacher=dict(embed_dim=256)),
        distill_losses=dict(loss_crd=dict(embed_dim=256)),
    )
)
