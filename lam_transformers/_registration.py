"""Makes AutoConfig and AutoModel know LAM without importing transformers before the user does.

`import lam_transformers` stays cheap: LAM is registered as soon as transformers' auto classes have been imported, which
may be before, after or in the middle of the import of LAM's own modules.
"""

import importlib.abc
import sys

_AUTO_CONFIG = "transformers.models.auto.configuration_auto"
_AUTO_MODEL = "transformers.models.auto.modeling_auto"
_CONFIG = f"{__package__}.configuration_lam"
_MODEL = f"{__package__}.modeling_lam"
_LAYERS, _UTILS = "transformers.modeling_layers", "transformers.modeling_utils"


def _register_config() -> None:
    from transformers import AutoConfig

    from .configuration_lam import LAMConfig

    AutoConfig.register("lam", LAMConfig, exist_ok=True)


def _register_model() -> None:
    from transformers import AutoModel

    from .configuration_lam import LAMConfig
    from .modeling_lam import LAMModel

    AutoModel.register(LAMConfig, LAMModel, exist_ok=True)


# (transformers' auto module, what to do once it is there, modules that must not be in the middle of their import then:
# LAM's own, which may have brought in the auto module, and those of transformers that do so and that LAM's own needs).
_ACTIONS = (
    (_AUTO_CONFIG, _register_config, {_AUTO_CONFIG, _CONFIG}),
    (_AUTO_MODEL, _register_model, {_AUTO_MODEL, _MODEL, _LAYERS, _UTILS}),
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

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in _WATCHED:
            return None
        finders = (f for f in sys.meta_path if f is not self and hasattr(f, "find_spec"))
        spec = next(filter(None, (f.find_spec(fullname, path, target) for f in finders)), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
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
