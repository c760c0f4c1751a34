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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from . import arguments, launch
from .arguments import UsageError, check_checkpoint
from .reading import parse_json, read_text
from .resuming import POINTER, checkpoints

RECORD = 'run.json'
_KINDS = dict(
    config=str,
    seed=int,
    options=list,
    epochs=int,
    signature=str,
    teacher=str,
    finished=bool,
    seconds=float | int | None,
)
# Records that were written earlier do not have them.
_LATER_KINDS = dict(weights=str)
# Settings of a model whose values are files of weights. A probe has the network that it probes in
# the teacher's place.
_TEACHER = ('teacher_ckpt', 'backbone_ckpt')
_CHECKPOINTS = (*_TEACHER, 'student_ckpt', 'checkpoint')
# Settings that each run of a table has for itself.
_OWN = {'randomness.seed': '--seeds', 'work_dir': '--work-dir'}
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
    """A config with options, ``key=value``, and those of a sweep: what runs with all seeds share.

    Attributes:
        config (Config): The config with the options, without a seed.
        epochs (int): Epochs of a whole training.
        signature (str): Sixteen hex digits that change whenever a setting does, but for the seed
            and the paths of weights.
        former_signature (str): The same with the paths, as records of version 0.1 have it.

    Raises:
        UsageError: If the config does not say how long it trains, or its runs would share a seed or
            a folder.
    """

    def __init__(
        self, path: Path, options: Sequence[str], sweep: Mapping[str, str] | None = None
    ) -> None:
        self.path, self.sweep = path, dict(sweep or {})
        self.options = [*options, *(f'{key}={value}' for key, value in self.sweep.items())]
        for option in self.options:
            key = option.partition('=')[0]
            if key in _OWN:
                raise UsageError(f'{option}: each run has its own; give {_OWN[key]} instead.')
        self.config = load_config(path, self.options)
        hooks = self.config.get('default_hooks') or {}
        if out_dir := (hooks.get('checkpoint') or {}).get('out_dir'):
            raise UsageError(
                f'{path}: runs with one seed would overwrite their checkpoints in default_hooks.'
                f'checkpoint.out_dir={out_dir}; set it to None and choose a folder by --work-dir.'
            )
        self.epochs = int((self.config.get('train_cfg') or {}).get('max_epochs') or 0)
        if not self.epochs:
            raise UsageError(
                f'{path} has no train_cfg.max_epochs; it is needed to tell which runs are finished.'
            )
        (self.config.get('randomness') or {}).pop('seed', None)
        self.former_signature = _sign(self.config.to_dict())
        self.signature = _sign(_without_paths(self.config.to_dict()))

    def files(self) -> tuple[str, str, tuple[str, str] | None]:
        """Hash the checkpoints that training starts from.

        Returns:
            tuple: SHA-256 or URL of each teacher, or of the network that is probed; SHA-256 of each
            other file, of which URLs are in the signature; and setting and path of one that is
            missing, when the two texts are empty.
        """
        from .lookup import walk  # imports all of OpenMMLab

        given = {
            f'{place}.{key}': part[key]
            for place, part in walk(self.config.get('model') or {}, 'model')
            for key in _CHECKPOINTS
            if isinstance(part.get(key), (str, list, tuple))
        }
        given['load_from'] = self.config.get('load_from') or ''
        teacher = next((f'model.{key}' for key in _TEACHER if given.get(f'model.{key}')), '')
        texts: dict[bool, list[str]] = {True: [], False: []}
        for place, value in given.items():
            for path in [value] if isinstance(value, str) else value:
                is_file = bool(path) and '://' not in path
                if is_file:
                    path = os.path.expanduser(path)
                    if not os.path.isfile(path):
                        return '', '', (place, path)
                    path = sha256(path, os.stat(path).st_mtime_ns)
                if is_file or place == teacher:
                    texts[place == teacher].append(path or '')
        return ' '.join(texts[True]), ' '.join(texts[False]), None


def _sign(settings: Any) -> str:
    text = json.dumps(settings, sort_keys=True, default=_stable)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _without_paths(settings: dict[str, Any]) -> dict[str, Any]:
    """Drop the paths of weights, which are hashed: their folder may be moved."""
    from .lookup import walk  # imports all of OpenMMLab

    for _, part in (('', settings), *walk(settings.get('model') or {})):
        for key in {*_CHECKPOINTS, 'load_from'} & part.keys():
            paths = part[key] if isinstance(part[key], (list, tuple)) else [part[key]]
            part[key] = [path if '://' in str(path) else bool(path) for path in paths]
    return settings


def _stable(value: Any) -> Any:
    """What JSON lacks, as a text that is the same in every process."""
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    return re.sub(r' at 0x[0-9a-fA-F]+', '', str(value))


@functools.cache
def sha256(path: str, changed: int) -> str:
    """Hash a file, once per time of its last change."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


class Run:
    """One training in ``run_dir``, recorded in its file ``record_name``, and what is left to do.

    Attributes:
        state (str): 'done', 'resumes', 'new', 'settings changed' or 'in use'.
        checkpoint (Path, optional): The checkpoint that ``--resume auto`` tries first.
        teacher (str): SHA-256 or URL of the teacher's checkpoint.
        weights (str): SHA-256 of other files of weights that it starts from.
        missing (tuple, optional): Setting and path of a checkpoint that is missing.

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
        self.teacher, self.weights, self.missing = self.settings.files()
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
        record = read_record(self.record)
        try:
            with launch.hold(self.run_dir):
                pass
        except UsageError:
            return IN_USE
        except OSError:  # a folder to look at only
            pass
        self.checkpoint = next(iter(checkpoints(self.run_dir, self.run_dir / POINTER)), None)
        if record['signature'] == self.settings.former_signature:
            record['signature'] = self.settings.signature
        found = dict(signature=self.settings.signature, seed=self.seed)
        if not self.missing:  # else there is nothing to compare
            found |= dict(teacher=self.teacher, weights=self.weights)
        if found != {key: record.get(key, self.weights) for key in found}:
            return CHANGED
        if record['finished']:
            return DONE
        return RESUMED if self.checkpoint else NEW

    @property
    def reached(self) -> int:
        """int: Epochs that need not be trained again."""
        name = self.checkpoint.name if self.checkpoint and self.state == RESUMED else ''
        match = re.fullmatch(r'epoch_(\d+)\.pth', name)
        return int(match[1]) if match else 0

    def describe(self) -> str:
        """Describe the state, for example 'resumes at epoch 3 of 240'."""
        text, epochs = self.state, self.settings.epochs
        if self.reached >= epochs:
            text += f' with the validation of epoch {epochs}'
        elif self.reached:
            text += f' at epoch {self.reached + 1} of {epochs}'
        elif self.state == CHANGED:
            text += ', starts over'
        if self.missing and self.state != DONE:
            text += ', {} {} is missing'.format(*self.missing)
        return text

    def command(self, resume: bool = False) -> list[str]:
        """Compose the command line of the training, new or resumed."""
        command = [sys.executable, launch.locate('tools/train.py'), self.settings.path]
        command += ['--work-dir', self.run_dir, *['--resume', 'auto'] * resume]
        return [*map(str, command), '--cfg-options', *self.options]

    def train(
        self,
        trainings: launch.Trainings,
        on_epoch: launch.OnEpoch,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Train what is left; record what was trained and how long it took, in seconds."""
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

            key, checkpoint = self.missing
            raise UsageError(
                f'{key} {checkpoint} does not exist; {how_to_train(checkpoint)} with --cfg-options '
                f'{key}=FILE.'
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
        settings = self.settings
        record = dict(
            config=settings.path.as_posix(),
            seed=self.seed,
            options=settings.options,
            sweep=settings.sweep,
            epochs=settings.epochs,
            signature=settings.signature,
            teacher=self.teacher,
            weights=self.weights,
            finished=finished,
            seconds=seconds,
        )
        launch.write_whole(self.record, json.dumps(record, indent=1))


def read_record(path: Path) -> dict[str, Any]:
    """Read what was trained in a folder; raise a UsageError if it does not say so."""
    try:
        record = parse_json(read_text(path), path.name, _KINDS | _LATER_KINDS)
        missing = sorted(_KINDS.keys() - record.keys())
        if missing:
            raise ValueError(f'it lacks {", ".join(missing)}')
    except ValueError as error:
        raise UsageError(f'{path} is damaged ({error}); move its folder away.') from error
    return record


def name_checkpoints(argument: str, checkpoints: Iterable[str]) -> dict[tuple[str, int], str]:
    """Find checkpoints that exist, once each, by the name and seed of their runs."""
    named: dict[tuple[str, int], str] = {}
    for checkpoint in dict.fromkeys(checkpoints):
        check_checkpoint(checkpoint, argument)
        name, seed = run_of(checkpoint)
        other = named.setdefault((name, seed), checkpoint)
        if other != checkpoint:
            raise UsageError(
                f'{argument} {other} and {checkpoint} are both {name} with seed {seed}, by the '
                'folders of their runs or their own names; give one of them.'
            )
    return named


def files_below(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Find all files of a folder, behind links too, which may lead back ``above``; sorted."""
    if not folder.is_dir() or (place := folder.resolve()) in above:
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from files_below(path, above | {place})
        else:
            yield path


def run_of(checkpoint: str | Path) -> tuple[str, int]:
    """Return name and seed of a checkpoint's run, by its folder; published ones name themselves."""
    path = Path(checkpoint)
    folder = path.resolve().parent
    match = re.search(r'([^/]+)(?:/seed_|_seed)(\d+)$', folder.as_posix())
    name, seed = (match[1], int(match[2])) if match else (folder.name, 0)
    return (name if re.match(r'epoch_\d+$|best_', path.stem) else path.stem), seed
