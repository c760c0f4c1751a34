"""The dry run of an algorithm that has no teacher."""

from mmengine.config import Config

from crd_plugin.engine.dry_run import render, run_dry


def dry(**changes):
    pipeline = [dict(type='Resize', scale=16), dict(type='PackInputs')]
    return run_dry(
        Config(
            dict(
                default_scope='mmpretrain',
                custom_imports=dict(imports=['crd_plugin']),
                data_preprocessor=dict(type='ClsDataPreprocessor', mean=[78.0] * 3, std=[81.0] * 3),
                train_dataloader=dict(
                    batch_size=4,
                    dataset=dict(
                        type='crd_plugin.Digits',
                        num_train_per_class=2,
                        serialize_data=False,
                        pipeline=pipeline,
                    ),
                ),
                optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
                model={
                    **dict(
                        type='crd_plugin.OnlineEnsembleDistill',
                        architecture=net(),
                        branch_from='backbone.layer3',
                    ),
                    **changes,
                },
            )
        )
    )


def net(num_classes=10, in_channels=16):
    """A ResNet-8 of 4, 4, 8 and 16 channels."""
    return dict(
        type='ImageClassifier',
        backbone=dict(type='crd_plugin.CIFARResNet', depth=8, stem_channels=4, base_channels=4),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=num_classes, in_channels=in_channels),
    )


def test_dry_run():
    report = dry()
    assert report.problems == []
    summed_rows = [row for row in report.losses if row.summed]
    assert [row.name for row in summed_rows] == [
        'student.loss',
        'branch1.loss',
        'branch2.loss',
        'ensemble.loss',
        'distill.loss_online_kd',
    ]
    assert all(row.student > 0 for row in summed_rows)
    # The student's own cross-entropy does not reach the other branches.
    assert [row.connectors == 'none' for row in summed_rows] == [True, False, False, False, False]
    assert [row.part for row in report.parts] == ['student', 'branches', 'gate']
    assert report.parts[2].total == 8 * 3 + 3 + 6
    text = render(report)
    assert 'gradient: student' in text and 'branches, gate' in text


def test_dry_run_tells_all_mistakes():
    report = dry(architecture=net(in_channels=17))
    assert report.problems == [
        'model.architecture.head.in_channels is 17, but the feature has 16 values; set it to 16.'
    ]
    assert report.losses  # of the mended model
    report = dry(architecture=net(num_classes=5))
    assert len(report.problems) == 1
    assert 'model.architecture.head.num_classes is 5' in report.problems[0]
    report = dry(branch_from='backbone.layer4')
    assert len(report.problems) == 1
    assert (
        "branch_from='backbone.layer4' is no module of the architecture; "
        'the nearest are backbone.layer'
    ) in report.problems[0]
    report = dry(architecture={**net(), 'backbone': dict(type='Nothing')})
    assert any('Nothing' in line for line in report.problems)
