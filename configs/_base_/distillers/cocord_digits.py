"""CoCoRD on the 100 digits: 40 keys in the queue, as wide as the teacher's feature."""

_base_ = './cocord.py'
cocord = dict(
    distiller=dict(
        distill_losses=dict(
            loss_cocord=dict(hidden_dim=64, embed_dim=64, predictor_dim=16, queue_size=40)
        )
    )
)
