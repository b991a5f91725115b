"""A step that leaves a writable descriptor of its root with another can't change what is published."""

import os
from pathlib import Path

import anyio
import pytest

from obuilder import Builder, Spec, errors, events, parse
from places import Opened, each_kind
from program import Program, cached, compile_c, shell

SOURCE = Path(__file__).with_name("smuggle.c")
GIVE = "mkdir /d; echo good > /d/file; smuggle give /v/hand/socket {kind} /d/file"
TAKE = "smuggle take /v/hand/socket {kind} /v/hand/go; mkdir /d; echo > /d/file"

# What becomes of it: "busy" when the publishing is refused, else what a write comes to that is made
# after it. Where what is published is not the draft itself, that goes to a draft which is no more.
OVERLAY = {
    "write": "busy", "map": "busy",
    "dir": "refused: Read-only file system", "path": "refused: Read-only file system",
}  # fmt: skip
ANOTHER = dict.fromkeys(OVERLAY, "written")
REMOVED = {**ANOTHER, "dir": "refused: No such file or directory"}
EXPECTED = {
    "overlayfs": OVERLAY, "xfs": OVERLAY, "zfs": OVERLAY, "btrfs": ANOTHER, "copy": REMOVED,
    "rsync+hardlink": REMOVED,  # in a place without overlays
}  # fmt: skip


@each_kind
@pytest.mark.needs("root", "crun", "gcc")
@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["write", "map", "dir", "path"])
async def test_what_another_step_holds(place: Opened, program: Program, kind: str) -> None:
    compile_c(SOURCE, os.path.join(program.context, "smuggle"))

    def spec(command: str) -> Spec:
        seen = cached(command.format(kind=kind), hand="shared")
        copied = "(copy (src smuggle) (dst /bin/))"
        text = f"((from micro) (shell /bin/sh -c) {copied} {seen} {shell('cat /d/file')})"
        return parse(text.encode(), file="a test").spec

    async with Builder.open(program.settings) as builder:
        taken, given = list[events.Event](), list[events.Event]()

        async def take() -> None:
            await builder.build(spec(TAKE), program.context, sink=taken.append)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(take)
            outcome = None
            try:
                await builder.build(spec(GIVE), program.context, sink=given.append)
            except errors.StoreBusy as error:
                outcome = "busy"
                assert "still writes to the root" in error.message
                assert error.hint is not None
            await builder.build(spec("mkdir /d; echo > /d/file; : > /v/hand/go"), program.context)
        steps = [event.key for event in given if isinstance(event, events.StepStarted)]
        if outcome == "busy":
            assert not await builder.store.contains(steps[-1])
            assert [r for r in builder.records() if r.key == steps[-1]] == []
        else:
            outcome = _said(taken).strip()
            assert _said(given) == "good\n"
            for key in steps[-2:]:
                async with builder.view(key) as root:
                    assert Path(root.path, "d/file").read_text() == "good\n"
        assert outcome == EXPECTED[place.kind][kind]


def _said(heard: list[events.Event]) -> str:
    return b"".join(event.data for event in heard if isinstance(event, events.Output)).decode()
