"""ResNet-14 and a ResNet-8 with a quarter of its width (w4: 4, 8, 16)."""

pair = dict(
    architecture=dict(
        type='ImageClassifier',
        backbone=dict(
            type='crd_plugin.CIFARResNet',
            depth=8,
            stem_channels=8,
            base_channels=4,
            out_indices=(0, 1, 2),
        ),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(
            type='LinearClsHead', num_classes=10, in_channels=16, loss=dict(type='CrossEntropyLoss')
        ),
    ),
    teacher=dict(
        type='ImageClassifier',
        backbone=dict(type='crd_plugin.CIFARResNet', depth=14, out_indices=(0, 1, 2)),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(
            type='LinearClsHead', num_classes=10, in_channels=64, loss=dict(type='CrossEntropyLoss')
        ),
    ),
    input_shape=(3, 16, 16),
    # Train it with configs/vanilla/vanilla_resnet14_b20-100e_digits.py.
    teacher_ckpt='work_dirs/vanilla_resnet14_b20-100e_digits/epoch_100.pth',
    published=dict(
        # 40 keys in the queue, as wide as the teacher's feature.
        loss_cocord=dict(
            distiller=dict(
                distill_losses=dict(
                    loss_cocord=dict(hidden_dim=64, embed_dim=64, predictor_dim=16, queue_size=40)
                )
            )
        ),
        # Logits of so narrow a student are almost zero behind MMPretrain's initial weights, and the
        # gradient of standardised ones grows as one over their size: torch's, as for CIFAR.
        loss_lskd=dict(architecture=dict(head=dict(init_cfg=None))),
        # The published share of the training set: 16,384 of 50,000.
        loss_rrd=dict(distiller=dict(distill_losses=dict(loss_rrd=dict(queue_size=32)))),
    ),
)
