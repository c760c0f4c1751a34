# KD without labels: the logits of Tiny-ImageNet's 200 classes, weight 1,
# temperature 4, no cross-entropy.
_base_ = '../distillers/with_kd.py'
distiller = dict(type='mmrazor.ConfigurableDistiller', **_base_.with_kd)
