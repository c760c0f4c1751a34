"""One training of a table: its settings, its folder, and what is left to do there."""

import argparse
import functools
import hashlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmengine.config import Config

from . import arguments, launch
from .arguments import UsageError
from .reading import parse_json, read_text
from .results import read_run
from .resuming import POINTER, checkpoints

RECORD = 'run.json'
_KINDS: dict[str, tuple[type, ...]] = dict(
    config=(str,),
    seed=(int,),
    options=(list,),
    epochs=(int,),
    signature=(str,),
    teacher=(str,),
    finished=(bool,),
    seconds=(float, int, type(None)),
)
# What is to be done with a run.
DONE, RESUMED, NEW = 'done', 'resumes', 'new'
CHANGED, IN_USE = 'settings changed', 'in use'
# MMEngine does not promise that configs can be read in several threads.
_CONFIG_LOCK = threading.Lock()


def load_config(path: str | Path, options: Sequence[str]) -> Config:
    """Load a config with ``key=value`` of ``--cfg-options``, as ``tools/train.py`` does."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='*', action=arguments.SettingAction)
    parsed = parser.parse_args(['--cfg-options', *options])
    with _CONFIG_LOCK:
        config = arguments.load_config(str(path))
        arguments.merge_options(config, parsed.cfg_options)
    return config


class Settings:
    """A config with options: what its runs with all seeds share.

    Args:
        path (Path): Config file.
        options (Sequence[str]): ``key=value`` for ``--cfg-options``.
        sweep (Mapping, optional): Values by key that one of a grid of runs has. Defaults to None.

    Attributes:
        config (Config): The config with the options, without a seed.
        epochs (int): Epochs of a whole training.
        signature (str): Sixteen hex digits that change whenever a setting but the seed does.

    Raises:
        UsageError: If the config does not say how long it trains.
    """

    def __init__(
        self, path: Path, options: Sequence[str], sweep: Mapping[str, str] | None = None
    ) -> None:
        self.path, self.sweep = path, dict(sweep or {})
        self.options = [*options, *(f'{key}={value}' for key, value in self.sweep.items())]
        self.config = load_config(path, self.options)
        self.epochs = int((self.config.get('train_cfg') or {}).get('max_epochs') or 0)
        if not self.epochs:
            raise UsageError(
                f'{path} has no train_cfg.max_epochs; it is needed to tell which runs are finished.'
            )
        (self.config.get('randomness') or {}).pop('seed', None)
        text = json.dumps(self.config.to_dict(), sort_keys=True, default=str)
        self.signature = hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def ends_with_validation(self) -> bool:
        """bool: Whether the last epoch is validated."""
        train = self.config.train_cfg
        # StagedTrainLoop validates in the last stage only.
        begin = train.get('val_begin') or 1 + sum((train.get('stage_epochs') or {}).values())
        return self.config.get('val_cfg') is not None and self.epochs >= begin

    def teacher(self) -> tuple[str, str]:
        """Return SHA-256 or URL of the teacher's checkpoint, and its path if it is missing.

        Of several teachers: all of them, and the first that is missing. A probe has the network
        that it probes in the teacher's place.
        """
        model = self.config.get('model') or {}
        given = model.get('teacher_ckpt') or model.get('backbone_ckpt') or ''
        found = []
        for path in [given] if isinstance(given, str) else given:
            if path and '://' not in path:
                path = os.path.expanduser(path)
                if not os.path.isfile(path):
                    return '', path
                path = sha256(path, os.stat(path).st_mtime_ns)
            found.append(path or '')
        return ' '.join(found), ''


@functools.cache
def sha256(path: str, changed: int) -> str:
    """Hash a file, once per time of its last change."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class Run:
    """One training and what is to be done with it.

    Args:
        name (str): Name in messages and tables.
        settings (Settings): Config and options.
        seed (int): Seed.
        run_dir (Path): Work dir of the training.
        record_name (str): File in ``run_dir`` that says what was trained. Defaults to 'run.json'.

    Attributes:
        state (str): 'done', 'resumes', 'new', 'settings changed' or 'in use'.
        checkpoint (Path, optional): The checkpoint that ``--resume auto`` tries first.
        teacher (str): SHA-256 or URL of the teacher's checkpoint.
        missing (str): Path of the teacher's checkpoint if it is missing.

    Raises:
        UsageError: If the folder holds something else.
    """

    def __init__(
        self, name: str, settings: Settings, seed: int, run_dir: Path, record_name: str = RECORD
    ) -> None:
        self.name, self.title = name, f'{name}, seed {seed}'
        self.settings, self.seed, self.run_dir = settings, seed, run_dir
        self.options = [f'randomness.seed={seed}', *settings.options]
        self.record = run_dir / record_name
        self.examine()

    def examine(self) -> None:
        """Look at the teacher and the run's folder, now; set ``state``."""
        self.teacher, self.missing = self.settings.teacher()
        self.checkpoint: Path | None = None
        self.state = self._state()

    def _state(self) -> str:
        files = self.run_dir.iterdir() if self.run_dir.exists() else ()
        if all(path.name == launch.LOCK for path in files):
            return NEW
        if not self.record.is_file():
            raise UsageError(
                f'{self.run_dir} is not empty and no run of this tool: there is no '
                f'{self.record.name}; move it or give another --work-dir.'
            )
        record = read_record(self.record, ('signature', 'teacher', 'finished'))
        try:
            with launch.hold(self.run_dir):
                pass
        except UsageError:
            return IN_USE
        self.checkpoint = next(iter(checkpoints(self.run_dir, self.run_dir / POINTER)), None)
        same = record['signature'] == self.settings.signature
        same = same and record.get('seed', self.seed) == self.seed
        if not self.missing:  # else there is nothing to compare
            same = same and record['teacher'] == self.teacher
        if not same:
            return CHANGED
        if record['finished']:
            return DONE
        epochs, validated = self.settings.epochs, not self.settings.ends_with_validation
        with suppress(FileNotFoundError, ValueError):
            validated = validated or epochs in read_run(self.run_dir)['epochs']
        # A last validation that is missing is made up when the run is resumed.
        if validated and epoch_of(self.checkpoint) >= epochs:
            return DONE
        return RESUMED if self.checkpoint else NEW

    @property
    def reached(self) -> int:
        """int: Epochs that need not be trained again."""
        return epoch_of(self.checkpoint) if self.state == RESUMED else 0

    def describe(self) -> str:
        """Describe the state, for example 'resumes at epoch 3 of 240'."""
        text = self.state
        if self.reached >= self.settings.epochs:
            text = f'resumes with the validation of epoch {self.reached}'
        elif self.reached:
            text = f'resumes at epoch {self.reached + 1} of {self.settings.epochs}'
        elif self.state == RESUMED and self.checkpoint:
            text = f'resumes from {self.checkpoint.name}'
        elif self.state == CHANGED:
            text += ', starts over'
        if self.missing and self.state != DONE:
            text += f', teacher {self.missing} is missing'
        return text

    def command(self, resume: bool = False) -> list[str]:
        """Compose the command line of the training, new or resumed."""
        command = [sys.executable, str(launch.locate('tools/train.py')), str(self.settings.path)]
        command += ['--work-dir', str(self.run_dir)]
        command += ['--resume', 'auto'] if resume else []
        return [*command, '--cfg-options', *self.options]

    def train(
        self,
        trainings: launch.Trainings,
        on_epoch: launch.OnEpoch,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Train what is left; record what was trained and how long it took.

        The arguments are those of :meth:`crd_plugin.cli.launch.Trainings.watch`.

        Raises:
            UsageError: If the teacher is missing, the config has changed or the folder is in use.
            TrainingFailed: If the training fails.
        """
        self.examine()  # hours may have passed since the runs were listed
        if self.state == DONE:
            return
        path, signature = self.settings.path, self.settings.signature
        if Settings(path, self.settings.options).signature != signature:
            raise UsageError(
                f'{path} or a base of it has changed since this table was started; start it again.'
            )
        if self.missing:
            from crd_plugin.models.algorithms.checkpoints import how_to_train

            raise UsageError(
                f'the teacher {self.missing} does not exist; {how_to_train(self.missing)} with '
                '--cfg-options model.teacher_ckpt=FILE.'
            )
        if self.state == CHANGED:
            launch.make_room(self.run_dir, keep=self.checkpoint is not None)
        resume = self.state == RESUMED
        self.run_dir.mkdir(parents=True, exist_ok=True)
        with launch.hold(self.run_dir) as lock:
            self._write_record(finished=False)
            started = time.perf_counter()
            trainings.watch(self.command(resume), self.run_dir / launch.LOG, on_epoch, env, lock)
            # The time before an interruption is not known.
            seconds = None if resume else time.perf_counter() - started
            self._write_record(finished=True, seconds=seconds)

    def _write_record(self, finished: bool, seconds: float | None = None) -> None:
        record = dict(
            config=self.settings.path.as_posix(),
            seed=self.seed,
            options=self.settings.options,
            sweep=self.settings.sweep,
            epochs=self.settings.epochs,
            signature=self.settings.signature,
            teacher=self.teacher,
            finished=finished,
            seconds=seconds,
        )
        launch.write_whole(self.record, json.dumps(record, indent=1))


def read_record(path: Path, keys: Iterable[str]) -> dict[str, Any]:
    """Read what was trained in a folder; a UsageError says that keys are missing."""
    try:
        record = parse_json(read_text(path), path.name, _KINDS)
        missing = set(keys) - set(record)
    except ValueError as error:
        raise UsageError(f'{path} is damaged ({error}); move its folder away.') from error
    if missing:
        raise UsageError(
            f'{path} lacks {", ".join(sorted(missing))}: it is not a run of tools/run_table.py; '
            'move its folder away.'
        )
    return record


def epoch_of(checkpoint: Path | None) -> int:
    """Read the epoch of ``epoch_<number>.pth``; 0 for any other name and without a checkpoint."""
    match = re.fullmatch(r'epoch_(\d+)', checkpoint.stem if checkpoint else '')
    return int(match[1]) if match else 0
