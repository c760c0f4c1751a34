"""Print pixel accuracy and mean IoU of the last epoch, mean and deviation over seeds."""

import json
import statistics
import sys
from pathlib import Path

for folder in map(Path, sys.argv[1:]):
    runs = []
    for log in sorted(folder.glob('seed_*/*/vis_data/scalars.json')):
        lines = map(json.loads, log.read_text().splitlines())
        runs += [line for line in lines if 'segmentation/mean_iou' in line][-1:]
    if len(runs) > 1:  # the first stage has no validation
        cells = [folder.name, str(len(runs))]
        for name in ('pixel_accuracy', 'mean_iou'):
            values = [run[f'segmentation/{name}'] for run in runs]
            cells.append(f'{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}')
        print(' | '.join(cells))
