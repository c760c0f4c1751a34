"""Mends of MMEngine's log."""

import functools
from types import ModuleType

# Numbers kept on a GPU at most; read then, even if nobody asks.
_MOST_KEPT = 4096


def read_numbers_when_asked(message_hub: ModuleType) -> None:
    """Leave losses on the GPU until somebody wants to see them.

    What breaks: nothing, but ``MessageHub.update_scalar`` calls ``item()`` on
    every loss of every iteration. So the host waits until the GPU has
    finished the step before it prepares the next one, and no step can pass
    ``torch.cuda.set_sync_debug_mode('error')``. No upstream report known.
    Mend: numbers of other devices are kept as tensors and read together, with
    one copy, when the log, a checkpoint or anyone else asks: once in
    ``LoggerHook.interval`` iterations.
    No longer needed: when MMEngine reads losses at the logging interval.

    Args:
        message_hub (ModuleType): ``mmengine.logging.message_hub``.
    """
    hub = message_hub.MessageHub
    update, get, save = hub.update_scalar, hub.get_scalar, hub.state_dict
    load, scalars = hub.load_state_dict, hub.log_scalars.fget

    @functools.wraps(update)
    def update_scalar(self, key, value, count=1, resumed=True):
        kept = vars(self).setdefault('_kept_numbers', {})
        device = getattr(getattr(value, 'device', None), 'type', 'cpu')
        if device == 'cpu' or value.numel() != 1:
            if key in kept:
                read(self)
            update(self, key, value, count, resumed)
            return
        self._set_resumed_keys(key, resumed)
        kept.setdefault(key, []).append((value.detach().reshape(()), count, resumed))
        if len(kept[key]) >= _MOST_KEPT:
            read(self)

    @functools.wraps(get)
    def get_scalar(self, key):
        # Timers ask for theirs in each iteration; it is never on a GPU.
        if key in vars(self).get('_kept_numbers', ()):
            read(self)
        buffer = self._log_scalars.get(key)
        return get(self, key) if buffer is None else buffer

    @functools.wraps(scalars)
    def log_scalars(self):
        read(self)
        return scalars(self)

    @functools.wraps(save)
    def state_dict(self):
        read(self)
        return save(self)

    @functools.wraps(load)
    def load_state_dict(self, state_dict):
        for source in (self, state_dict):
            if isinstance(source, hub):
                read(source)
        load(self, state_dict)

    def read(self) -> None:
        """Put all that was kept where it belongs."""
        kept = vars(self).pop('_kept_numbers', None)
        if not kept:
            return
        import torch

        groups = {}
        for entries in kept.values():
            for value, _, _ in entries:
                groups.setdefault((value.dtype, value.device), []).append(value)
        # One copy to the host for all numbers of a kind.
        numbers = {kind: iter(torch.stack(values).tolist()) for kind, values in groups.items()}
        for key, entries in kept.items():
            for value, count, resumed in entries:
                number = next(numbers[value.dtype, value.device])
                update(self, key, number, count, resumed)

    hub.update_scalar, hub.get_scalar = update_scalar, get_scalar
    hub.state_dict, hub.load_state_dict = state_dict, load_state_dict
    hub.log_scalars = property(log_scalars, doc=scalars.__doc__)
