"""What other packages add to this one: objects that they name by entry points."""

from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any

from codec.errors import ConfigError, sentence


def added(group: str) -> Iterator[tuple[str, str, Any]]:
    """Name, description for messages, and object of every entry point of a group, by name.

    Raises:
        ConfigError: one cannot be loaded, or two have the same name.
    """
    names = set()
    for entry in sorted(entry_points(group=group), key=lambda entry: entry.name):
        where = f"entry point {entry.name} of {group}, {entry.value}"
        if entry.name in names:
            raise ConfigError(f"{where}: another package has one of this name; uninstall either")
        names.add(entry.name)
        try:
            loaded = entry.load()
        except Exception as error:  # whatever its module raises
            raise ConfigError(f"{where}: cannot be loaded ({type(error).__name__}: {sentence(error)})") from error
        yield entry.name, where, loaded
