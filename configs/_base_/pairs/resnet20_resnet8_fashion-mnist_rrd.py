"""The same, with a queue of the published share of 5,000 training images: RRD."""

_base_ = './resnet20_resnet8_fashion-mnist.py'
pair = dict(
    # 16,384 of 50,000.
    published=dict(
        loss_rrd=dict(distiller=dict(distill_losses=dict(loss_rrd=dict(queue_size=1638))))
    )
)
