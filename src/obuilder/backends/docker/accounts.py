"""Who a step's user is: what the root itself says, which an engine gives out as files."""

import os

from obuilder.backends.docker.archives import export_paths, resolved
from obuilder.backends.docker.engine import Engine
from obuilder.backends.sandboxes.homes import Account, account
from obuilder.system.files import remove_tree
from obuilder.values import IdMap, NamedUser

_TABLES = ("/etc/passwd", "/etc/group")


async def looked_up(
    engine: Engine, container: str, user: NamedUser, idmap: IdMap, *, place: str
) -> Account:
    """The ids of a user in the root of a container that never runs. Unsupported: nobody's.

    The root's tables are for a while in a directory `place`, of which there must be none.
    """
    os.mkdir(place, 0o700)
    try:
        known: dict[str, str] = {}
        paths = [*_TABLES, *[await resolved(engine, container, path, known) for path in _TABLES]]
        wanted = tuple(path for path in dict.fromkeys(paths) if path != "/")
        await export_paths(engine, container, wanted, place, idmap)
        return account(place, user)
    finally:
        remove_tree(place)
