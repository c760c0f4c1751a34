"""What networks of luminance and of chrominance see, as their data_preprocessor.

Mean and std are those of HobbitLong/CMC, train_CMC.py @ 21ce9e0: centre and half of the range of
each channel.
"""

luminance = dict(
    type='crd_plugin.ViewPreprocessor',
    view=dict(type='crd_plugin.LabView', channels='L'),
    mean=[50.0],
    std=[50.0],
)
chrominance = dict(
    type='crd_plugin.ViewPreprocessor',
    view=dict(type='crd_plugin.LabView', channels='ab'),
    mean=[6.025, -6.6895],
    std=[92.208, 101.1675],
)
