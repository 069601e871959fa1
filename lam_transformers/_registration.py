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


def _register_config() -> None:
    from transformers import AutoConfig

    from .configuration_lam import LAMConfig

    AutoConfig.register("lam", LAMConfig, exist_ok=True)


def _register_model() -> None:
    from transformers import AutoModel

    from .configuration_lam import LAMConfig
    from .modeling_lam import LAMModel

    AutoModel.register(LAMConfig, LAMModel, exist_ok=True)


# Each registration needs two modules: (transformers' auto module, LAM's own, what to do when both are there).
_PAIRS = ((_AUTO_CONFIG, _CONFIG, _register_config), (_AUTO_MODEL, _MODEL, _register_model))
_running: set[str] = set()


def _after(name: str) -> None:
    """Called when module `name` has been executed."""
    for auto, own, action in _PAIRS:
        # Importing LAM's module may have brought us here before it is finished: then its own end registers.
        if (name == auto and own not in _running) or (name == own and auto in sys.modules and auto not in _running):
            action()


class _AfterImport(importlib.abc.MetaPathFinder):
    """Calls `_after` once one of the four modules has been executed."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in (_AUTO_CONFIG, _AUTO_MODEL, _CONFIG, _MODEL):
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
    for auto, _, action in _PAIRS:
        if auto in sys.modules:
            action()
