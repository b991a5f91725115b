"""Specs of the shapes that OBuilder's README, its example and its users write, all the way.

Beside each `NAME.spec` stands what it comes to: `NAME.printed`, `NAME.dockerfile`, `NAME.buildkit`
and `NAME.plan`, whose keys hold as long as `KEY_VERSION` does. With RENEW_GOLDEN=1 in the environment
they are written anew: look at the difference before it is committed.
"""

import hashlib
import os
import re
from pathlib import Path

import pytest

from obuilder.plan.keys import KEY_VERSION
from obuilder.plan.lower import lower, wanted
from obuilder.plan.model import Base, Inputs, Layer
from obuilder.plan.render import text
from obuilder.spec.decode import parse
from obuilder.spec.encode import print_spec
from obuilder.spec.model import Spec
from obuilder.spec.to_dockerfile import to_dockerfile
from obuilder.values import Platform
from program import Program

FOLDER = Path(__file__).parent / "obuilder"
SPECS = sorted(FOLDER.glob("*.spec"))

each_spec = pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)


def read(path: Path) -> Spec:
    return parse(path.read_bytes(), file=path.name).spec


def golden(path: Path, kind: str, found: str) -> None:
    expected = path.with_suffix(f".{kind}")
    if "RENEW_GOLDEN" in os.environ:
        expected.write_text(found)
    assert found == expected.read_text()


def digest(name: str) -> str:
    return f"sha256:{hashlib.sha256(name.encode()).hexdigest()}"


@each_spec
def test_it_prints_and_reads_as_the_same_spec(path: Path) -> None:
    spec = read(path)
    printed = print_spec(spec)
    golden(path, "printed", printed)
    again = parse(printed.encode(), file="printed").spec
    assert again == spec
    assert print_spec(again) == printed


@each_spec
def test_its_plan_has_the_keys_it_always_had(path: Path) -> None:
    spec = read(path)
    needs = wanted(spec)
    platform = Platform("linux", "amd64")
    inputs = Inputs(
        bases={
            name: Base(name, digest(name), platform, (Layer(digest(name)),)) for name in needs.bases
        },
        copies={copy.op: digest(" ".join(copy.src)) for copy in needs.copies},
    )
    lines = [f"keys of version {KEY_VERSION}", *text(lower(spec, inputs), ())]
    golden(path, "plan", "".join(f"{line}\n" for line in lines))


@each_spec
@pytest.mark.parametrize("kind", ["dockerfile", "buildkit"])
def test_it_becomes_a_dockerfile(path: Path, kind: str) -> None:
    converted, warnings = to_dockerfile(read(path), buildkit=kind == "buildkit", escape="unix")
    golden(path, kind, converted + "".join(f"# warning: {warning}\n" for warning in warnings))


def headings(plan: str) -> list[str]:
    """The steps of a plan without their keys, but for those of images."""
    steps = [line.split("  ", 2)[2] for line in plan.splitlines() if line.startswith("to run")]
    return [step for step in steps if not re.match(r"(\[\w+\] )?\(from ", step)]


@pytest.mark.needs("root", "overlay")
def test_the_program_plans_it_on_images_of_those_names(program: Program) -> None:
    for path in SPECS:
        needs = wanted(read(path))
        for name in needs.bases:
            program.ok("image", "import", name, "micro")
        for copy in needs.copies:
            for source in copy.src:
                if source != ".":
                    program.file(source, b"x")
        plan = program.ok("plan", "-f", str(path), program.context)
        assert headings(plan) == headings(path.with_suffix(".plan").read_text())
