"""What dead sessions left in an engine: their names tell whose they are."""

from collections.abc import Callable

from obuilder.backends.docker.engine import Engine
from obuilder.backends.docker.names import SESSION, STORE, Names

Alive = Callable[[str], bool]


async def sweep_containers(engine: Engine, names: Names, alive: Alive) -> None:
    """Remove the containers of the store's dead sessions, whatever runs in them."""
    for name, labels in (await engine.containers(**{STORE: names.store})).items():
        if not alive(labels.get(SESSION, "")):
            await engine.remove(name)
