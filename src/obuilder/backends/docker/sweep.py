"""What stores and their dead sessions left in an engine: names tell whose it is."""

from collections.abc import Callable

from obuilder.backends.docker.engine import Engine
from obuilder.backends.docker.names import SESSION, STORE, Names

Alive = Callable[[str], bool]


async def sweep_containers(engine: Engine, names: Names, alive: Alive) -> None:
    """Remove the containers of the store's dead sessions, whatever runs in them."""
    for name, labels in (await engine.containers(**{STORE: names.store})).items():
        if not alive(labels.get(SESSION, "")):
            await engine.remove(name)


async def take_away(engine: Engine, names: Names) -> None:
    """Remove all that is the store's, which nobody has open."""
    await sweep_containers(engine, names, lambda _: False)
    for tag in await engine.tags(names.repository):
        await engine.untag(names.image(tag))
    for volume in await engine.volumes(**{STORE: names.store}):
        await engine.remove_volume(volume)
