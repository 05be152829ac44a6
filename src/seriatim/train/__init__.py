"""Training: from raw files to a model folder; `loop.train` is the verb.

`seriatim.train` names this package once something has imported it, so the package is callable too.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Verb(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Any:
        return import_module("seriatim.train.loop").train(*args, **options)


sys.modules[__name__].__class__ = _Verb
