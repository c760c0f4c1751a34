"""What the tools share: arguments, the dry run, many runs, tables and plots."""

import os
import warnings

# mmcv-lite lacks an operator of detectors, which no tool needs.
warnings.filterwarnings('ignore', message='Fail to import ``MultiScaleDeformableAttention``')

# OpenCV reads it when it is imported, and then refuses larger images, as Pillow does by itself. Its
# own limit lets an image of a few kilobytes fill three gigabytes.
os.environ.setdefault('OPENCV_IO_MAX_IMAGE_PIXELS', str(2 * 89_478_485))
