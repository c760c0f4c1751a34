"""Views of an image and CoCoRD's hook: what data and model ask for."""

from typing import Any, Dict, Optional

from mmengine.registry import HOOKS, MODELS, TRANSFORMS

from crd_plugin.datasets import MultiViewPipeline
from crd_plugin.models.algorithms import CoCoRDDistill

from ..hooks import CoCoRDHook
from .data import DataFacts
from .report import DryRunReport
from .types import find_type, walk


def check_views(
    cfg: Dict[str, Any], model_cfg: Dict[str, Any], facts: DataFacts, report: DryRunReport
) -> None:
    """As many views as the model looks at, and the hook that it needs.

    Args:
        cfg (dict): The whole config.
        model_cfg (dict): Config of the model.
        facts (DataFacts): Of the data set; made to give as many views as are
            asked for, so that the step can be tried.
        report (DryRunReport): Takes the problems.
    """
    cocord = _is(MODELS, model_cfg.get('type'), CoCoRDDistill)
    wanted = CoCoRDDistill.num_views if cocord else None
    if facts.num_views is None and facts.kind:
        # Without the files of the data set its config has to tell.
        facts.num_views = _views_of_config(cfg['train_dataloader']['dataset'])
    if facts.kind and facts.num_views != wanted:
        found = f'{facts.num_views or 1} view' + ('s' if (facts.num_views or 1) > 1 else '')
        mend = (
            'wrap the training pipeline: pipeline=[dict(type='
            "'crd_plugin.MultiViewPipeline', transforms=train_pipeline)]"
            if cocord
            else 'take MultiViewPipeline out of the training pipeline'
        )
        report.problem(
            f'train_dataloader.dataset gives {found} of each image, '
            f'{model_cfg.get("type")} expects {wanted or 1}; {mend}.'
        )
    facts.num_views = wanted
    _check_hook(cfg, model_cfg, cocord, report)


def _check_hook(
    cfg: Dict[str, Any], model_cfg: Dict[str, Any], cocord: bool, report: DryRunReport
) -> None:
    """One CoCoRDHook if and only if the model is a CoCoRDDistill."""
    hooks = list(cfg.get('custom_hooks') or [])
    hooks += (cfg.get('default_hooks') or {}).values()
    number = sum(
        _is(HOOKS, hook.get('type'), CoCoRDHook) for hook in hooks if isinstance(hook, dict)
    )
    entry = "dict(type='crd_plugin.CoCoRDHook')"
    if cocord and number == 0:
        report.problem(
            'custom_hooks has no CoCoRDHook, so averages and key queue of '
            f'{model_cfg["type"]} would not move; add {entry} to it (a config '
            'that sets custom_hooks replaces the list of its _base_).'
        )
    if number > 1:
        report.problem(
            f'custom_hooks has CoCoRDHook {number} times, expected once; remove the others.'
        )


def _views_of_config(dataset: Dict[str, Any]) -> Optional[int]:
    """Views that the config's pipeline makes; None for single images."""
    views = None
    for _, part in walk(dataset, ''):
        if _is(TRANSFORMS, part.get('type'), MultiViewPipeline):
            views = part.get('num_views', 3)
    return views


def _is(registry: Any, kind: Any, cls: type) -> bool:
    """Whether a config's type means a class or one derived from it."""
    found = find_type(registry, kind) if isinstance(kind, str) else kind
    return isinstance(found, type) and issubclass(found, cls)
