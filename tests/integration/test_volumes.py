"""Cache volumes whose users get in each other's way."""

import anyio
import pytest

from obuilder import Builder, Spec, events, parse
from places import each_kind
from program import Program

pytestmark = [pytest.mark.needs("crun"), pytest.mark.anyio]


def step(caches: str, command: str) -> Spec:
    text = f'((from micro) (shell /bin/sh -c) (run (cache {caches}) (shell "{command}")))'
    return parse(text.encode(), file="a test").spec


async def said(builder: Builder, program: Program, spec: Spec) -> str:
    heard = list[bytes]()

    def sink(event: events.Event) -> None:
        if isinstance(event, events.Output):
            heard.append(event.data)

    await builder.build(spec, program.context, sink=sink)
    return b"".join(heard).decode()


@each_kind
async def test_locked_volumes_in_any_order_never_wait_for_each_other(program: Program) -> None:
    caches = [f"({name} (target /{name}) (mode locked))" for name in "ab"]
    add = "for v in /a /b; do n=$(cat $v/n 2>/dev/null); echo $((n + 1)) > $v/n; done"
    async with Builder.open(program.settings) as builder:
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                for number in range(6):
                    order = caches if number % 2 else caches[::-1]
                    spec = step(" ".join(order), f": {number}; {add}")
                    tasks.start_soon(builder.build, spec, program.context)
        counted = await said(builder, program, step(" ".join(caches), "cat /a/n /b/n"))
    assert counted == "6\n6\n"


@each_kind
@pytest.mark.parametrize("mode", ["private", "locked", "append", "shared"])
async def test_a_volume_named_twice_is_one(program: Program, mode: str) -> None:
    caches = f"(v (target /one) (mode {mode})) (v (target /two) (mode {mode}))"
    async with Builder.open(program.settings) as builder:
        with anyio.fail_after(60):
            first = await said(
                builder, program, step(caches, "echo a > /one/a; echo b > /two/b; ls /one /two")
            )
            again = await said(builder, program, step(caches, "cat /one/* /two/*"))
    assert first == "/one:\na\nb\n\n/two:\na\nb\n"
    assert again == "a\nb\na\nb\n"
