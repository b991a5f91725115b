"""A Dockerfile as a spec, with what its base images say of themselves looked up."""

from obuilder.engine.index import Index
from obuilder.engine.inputs import resolve_base
from obuilder.errors import FetchError
from obuilder.spec.dockerfile import Dockerfile
from obuilder.spec.from_dockerfile import Converted, Options, images, to_spec


def convert(dockerfile: Dockerfile, options: Options, index: Index) -> Converted:
    """The spec of the target. SpecErrors, UsageError, FetchError, MustWait."""
    configs = {}
    for name in images(dockerfile, options):
        try:
            configs[name] = resolve_base(name, index).config
        except FetchError as error:
            error.message = f"{dockerfile.source.file}: FROM {name}: {error.message}"
            raise
    return to_spec(dockerfile, options, configs)
