"""A Dockerfile as a spec, with what its base images say of themselves looked up."""

from obuilder.engine.cached import resolve
from obuilder.engine.settings import Settings
from obuilder.spec.dockerfile import Dockerfile
from obuilder.spec.from_dockerfile import Converted, Options, images, to_spec


def convert(dockerfile: Dockerfile, options: Options, settings: Settings) -> Converted:
    """The spec of the target. SpecErrors, UsageError, FetchError."""
    found = resolve(images(dockerfile, options), settings, settings.images)
    return to_spec(dockerfile, options, {name: base.config for name, base in found.items()})
