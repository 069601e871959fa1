"""Makes the auto classes know LAM and its heads without importing transformers before the user does.

`import lam_transformers` stays cheap, 0.05 s in place of the seconds that torch and transformers take
(docs/DECISIONS.md): LAM is registered as soon as transformers' auto classes have been imported, which may be before,
after or in the middle of the import of LAM's own modules.
"""

import importlib
import importlib.abc
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_AUTO_CONFIG = "transformers.models.auto.configuration_auto"
_AUTO_MODEL = "transformers.models.auto.modeling_auto"
_LAYERS = "transformers.modeling_layers"
_UTILS = "transformers.modeling_utils"
# (model type, module and class of its configuration, module and class of its model)
_FAMILIES = (
    ("lam", "model.configuration_lam", "LAMConfig", "model.modeling_lam", "LAMModel"),
    (
        "lam_published",
        "published.configuration_lam_published",
        "LAMPublishedConfig",
        "published.modeling_lam_published",
        "LAMPublishedModel",
    ),
)


# Auto classes of transformers -> the head that each gives for a LAM.
_HEADS = {
    "AutoModelForMaskedLM": "LAMForMaskedLM",
    "AutoModelForSequenceClassification": "LAMForSequenceClassification",
    "AutoModelForTokenClassification": "LAMForTokenClassification",
}


def _own(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f".{module}", __package__), name)


def _register_config(model_type: str, config_module: str, config: str, *_: str) -> None:
    from transformers import AutoConfig

    AutoConfig.register(model_type, _own(config_module, config), exist_ok=True)


def _register_model(_: str, config_module: str, config: str, model_module: str, model: str) -> None:
    from transformers import AutoModel

    AutoModel.register(_own(config_module, config), _own(model_module, model), exist_ok=True)


def _register_heads() -> None:
    auto = sys.modules[_AUTO_MODEL]
    for auto_class, head in _HEADS.items():
        getattr(auto, auto_class).register(
            _own("model.configuration_lam", "LAMConfig"), _own("model.heads_lam", head), exist_ok=True
        )


# (transformers' auto module, what to do once it is there, modules that must not be in the middle of their import then:
# LAM's own, which may have brought in the auto module, and those of transformers that do so and that LAM's own needs).
_ACTIONS: tuple[tuple[str, Callable[[], None], set[str]], ...] = (
    *(
        action
        for family in _FAMILIES
        for action in (
            (_AUTO_CONFIG, partial(_register_config, *family), {_AUTO_CONFIG, f"{__package__}.{family[1]}"}),
            (
                _AUTO_MODEL,
                partial(_register_model, *family),
                {_AUTO_MODEL, f"{__package__}.{family[3]}", _LAYERS, _UTILS},
            ),
        )
    ),
    (
        _AUTO_MODEL,
        _register_heads,
        {_AUTO_MODEL, f"{__package__}.model.heads_lam", f"{__package__}.model.modeling_lam", _LAYERS, _UTILS},
    ),
)
_WATCHED = frozenset().union(*(modules for _, _, modules in _ACTIONS))
_running: set[str] = set()


def _after(name: str) -> None:
    """Called when module `name` has been executed."""
    for auto, action, modules in _ACTIONS:
        if name in modules and auto in sys.modules and not modules & _running:
            action()


class _AfterImport(importlib.abc.MetaPathFinder):
    """Calls `_after` once one of the watched modules has been executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _WATCHED:
            return None
        finders = (f for f in sys.meta_path if f is not self and hasattr(f, "find_spec"))
        spec = next(filter(None, (f.find_spec(fullname, path, target) for f in finders)), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                _running.add(fullname)
                try:
                    execute(module)
                finally:
                    _running.discard(fullname)
                _after(fullname)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def register() -> None:
    """Register LAM now if transformers' auto classes are there already, and otherwise as soon as they are."""
    sys.meta_path.insert(0, _AfterImport())
    for auto, action, _ in _ACTIONS:
        if auto in sys.modules:
            action()
