"""obuilder: one build spec, run step by step in a sandbox, every step snapshotted and shared.

The public API is what this package, `obuilder.backends.protocols` and `obuilder.testing` name.
Names are loaded on first use, so that a fully cached build imports nothing it does not need.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from obuilder import errors, events
    from obuilder.engine.builder import Builder
    from obuilder.engine.result import Result
    from obuilder.engine.settings import Images, Settings
    from obuilder.spec.decode import parse
    from obuilder.spec.model import Spec

__version__ = "0.1.0"
__all__ = ["Builder", "Images", "Result", "Settings", "Spec", "errors", "events", "parse"]


def __getattr__(name: str) -> object:
    places = {
        "Builder": "engine.builder",
        "Result": "engine.result",
        "Settings": "engine.settings",
        "Images": "engine.settings",
        "Spec": "spec.model",
        "parse": "spec.decode",
        "errors": "errors",
        "events": "events",
    }
    if name not in places:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module = import_module(f"{__name__}.{places[name]}")
    found = module if places[name] == name else getattr(module, name)
    globals()[name] = found  # asked once only
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
