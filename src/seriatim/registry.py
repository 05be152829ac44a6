"""Plug-ins by name: a file of a package is registered by being there, others by entry point.

A registry never runs a plug-in it was not asked for.
"""

from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

from seriatim.errors import RequestError, did_you_mean


def entry_points(group: str):
    """Third parties' plug-ins; the import takes 28 ms, so it waits until it is needed."""
    from importlib.metadata import entry_points

    return entry_points(group=group)


def names(package: str) -> list[str]:
    """Names registered under `package` (such as "seriatim.codecs"), sorted, nothing imported."""
    folder = import_module(package).__path__
    here = {module.name for module in iter_modules(folder) if not module.name.startswith("_")}
    return sorted(here | {point.name for point in entry_points(package)})


def get(package: str, name: str) -> ModuleType:
    """The module registered as `name`; a file of the package wins over an entry point.

    Raises:
        RequestError: no such name; the nearest one is suggested.
    """
    known = names(package)
    if name not in known:
        kind = package.rsplit(".", 1)[-1]
        raise RequestError(f"{name!r} is not one of {kind}", fix=did_you_mean(name, known))
    folder = import_module(package).__path__
    if name in {module.name for module in iter_modules(folder)}:
        return import_module(f"{package}.{name}")
    return entry_points(package)[name].load()
