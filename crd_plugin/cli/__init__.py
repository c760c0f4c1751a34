"""What the tools share: arguments, the dry run, many runs, tables and plots."""

import warnings

# mmcv-lite lacks an operator of detectors, which no tool needs.
warnings.filterwarnings('ignore', message='Fail to import ``MultiScaleDeformableAttention``')
