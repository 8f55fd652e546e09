"""Plug-ins: models, sources, sinks and trackers that other packages add by entry points.

A package names what it adds in its ``pyproject.toml``, in one of the groups ``streamseg.models``,
``streamseg.sources``, ``streamseg.sinks`` and ``streamseg.trackers``; see ``docs/extending.md``.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, TypeAlias

from streamseg.errors import ConfigError

Group: TypeAlias = Literal[
    "streamseg.models", "streamseg.sources", "streamseg.sinks", "streamseg.trackers"
]


@dataclass(frozen=True, slots=True)
class Plugin:
    """Entry point of an installed package, not imported yet.

    Attributes:
        name: name by which users refer to the plug-in.
        origin: name and version of the package that adds it.
        entry_point: the object's module and attribute.
    """

    name: str
    origin: str
    entry_point: EntryPoint

    def load(self) -> Any:
        """Import the plug-in's object.

        Raises:
            ConfigError: the import fails; the message names the package and the reason.
        """
        try:
            return self.entry_point.load()
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise ConfigError(
                f"plug-in {self.name!r} of {self.origin} can't be imported ({reason}): repair the "
                "package or uninstall it"
            ) from error


def find_plugins(group: Group) -> dict[str, Plugin]:
    """Return the installed plug-ins of a group, by name.

    Raises:
        ConfigError: two packages add a plug-in of the same name.
    """
    found: dict[str, Plugin] = {}
    for entry_point in sorted(entry_points(group=group), key=lambda each: each.name):
        distribution = entry_point.dist
        origin = f"{distribution.name} {distribution.version}" if distribution else "unknown"
        plugin = Plugin(entry_point.name, origin, entry_point)
        if entry_point.name in found:
            raise ConfigError(
                f"two packages add {entry_point.name!r} to {group}: {found[plugin.name].origin} "
                f"and {origin}: uninstall one of them"
            )
        found[plugin.name] = plugin
    return found
