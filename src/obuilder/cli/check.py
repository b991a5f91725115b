"""`obuilder check`."""

import argparse
import sys

from obuilder.cli.options import read_file
from obuilder.cli.specs import is_dockerfile, spec_path
from obuilder.errors import UsageError
from obuilder.spec.decode import parse
from obuilder.ui.messages import complain


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "files", nargs="*", metavar="FILE",
        help="specs and Dockerfiles, - for standard input; obuilder.spec, else Dockerfile, if not"
        " given",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Report all faults of all files."""
    status = 0
    for path in args.files or [spec_path(argparse.Namespace(file=None))]:
        try:
            _check(path, read_file(path))
        except UsageError as error:
            complain(error)
            status = error.exit_status
        else:
            sys.stdout.write(f"{path}: ok\n")
    return status


def _check(path: str, text: bytes) -> None:
    """Look one file over. Images of a Dockerfile are taken to say nothing of themselves."""
    if not is_dockerfile(path, text):
        parse(text, file=path)
        return
    from obuilder.oci.platforms import host_platform
    from obuilder.spec.dockerfile import parse as parse_dockerfile
    from obuilder.spec.from_dockerfile import Options, images, to_spec
    from obuilder.spec.image import ImageConfig

    dockerfile, options = parse_dockerfile(text, file=path), Options(host_platform())
    to_spec(dockerfile, options, dict.fromkeys(images(dockerfile, options), ImageConfig()))
