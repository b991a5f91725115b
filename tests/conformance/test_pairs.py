"""Every store with every sandbox that goes with it: the same specs, the same keys, the same files.

The table of what was supported stands in docs/reference/pairs.md; RENEW_GOLDEN=1 writes it anew.
"""

import io
import os
import tarfile
from pathlib import Path

import pytest

from obuilder import Builder, Settings, parse
from obuilder.backends import registry
from obuilder.engine.export import export_tar
from obuilder.errors import BackendUnavailable, StepFailed, Unsupported, UsageError
from obuilder.testing.needs import unmet
from places import PLACES, Opened, memory

pytestmark = pytest.mark.xdist_group("users")

PAGE = Path(__file__).parents[2] / "docs/reference/pairs.md"

RUN = '(run (shell "{}"))'
HEAD = "(shell /bin/sh -c) (workdir /home/builder)"
STAGE = f"((build dev ((from micro) {HEAD} {{ops}})) (from micro) {HEAD} {{more}})"

# The name of each, what it shows, and the spec: where steps have not all of the root, they have this
# directory. Nothing in a result may depend on when it was made.
SPECS = {
    "base": ("a base image", "((from micro))"),
    "scratch": ("files in an empty root", "((from scratch) (copy (src tree) (dst /home/builder/in/)))"),
    "run": ("commands", '(run (shell "echo 1 > one; mkdir -p d/e; ln -s ../one d/link; ln one d/hard"))'),
    "replace": (
        "files and directories that go and come",
        ('(run (shell "mkdir d; echo 1 > d/x; echo 2 > y")) '
         '(run (shell "rm -r d; mkdir d; echo 3 > d/z; rm y; mkdir y")) '
         '(run (shell "rmdir y; ln -s d y; mv d moved"))'),
    ),
    "modes": ("modes and set-id bits", '(run (shell "mkdir m; cd m; for n in 1 2; do echo > $n; done; chmod 4711 1; chmod 1777 .; mkfifo f"))'),
    "environment": ("variables and directories", '(env A "x y") (workdir w/deep) (run (shell "echo $A $PWD > said"))'),
    "copy": ("copies", '(workdir w) (copy (src tree) (dst ./)) (copy (src tree/a) (dst /usr/local/bin/)) (run (shell "cat tree/a /usr/local/bin/a > both"))'),
    "stage": ("copies from another stage", None),
    "users": ("users", '(run (shell "mkdir -m 1777 u")) (user (uid 1000) (gid 100)) (run (shell "id -u > u/id")) (copy (src tree) (dst u/))'),
    "owners": ("files that a step gives away", '(run (shell "mkdir o && chown 5:6 o && chmod 6711 o"))'),
    "cache": ("cache volumes", '(run (cache (pairs (target /home/builder/c))) (shell "echo kept > c/f")) (run (cache (pairs (target /home/builder/c))) (shell "cp c/f copied"))'),
    "secret": ("secrets", '(run (secrets (s (target /run/s))) (shell "wc -c < /run/s > size"))'),
    "network": ("the host's network", '(run (network host) (shell "test -e /sys/class/net/lo && echo seen > seen"))'),
    "isolated": ("no network", '(run (shell "ls /sys/class/net > nets"))'),
    "limits": ("limits of memory and processes", '(run (limits (memory 200m) (pids 50)) (shell "echo limited > l"))'),
    "added": ("files placed as a Dockerfile places them", '(mkdir w/made) (add (src "tree/[al]*") (text (said "text\\n")) (dst w/) (owner (uid 0) (gid 0)) (permissions u=rwX,go=rX)) (run (shell "cat w/a w/said > both"))'),
    "named": ("users by name", '(run (shell "mkdir -m 1777 u; echo them:x:1000:100::/: >> /etc/passwd")) (user (name them)) (run (shell "id -u > u/id"))'),
    "shown": ("builds and memory that a step sees", f'((build dev ((from micro) {HEAD} {RUN.format("echo built > f")})) (from micro) {HEAD} (run (binds (dev (target /home/builder/dev) (source /home/builder))) (tmpfs (/home/builder/m (size 1m))) (shell "cat dev/f > got; echo x > m/y")))'),
    "root": ("all of the root is the step's", '(workdir /srv/x) (run (shell "echo 1 > /srv/x/y"))'),
}  # fmt: skip


def spec(name):
    text = SPECS[name][1]
    if text is None:
        text = STAGE.format(
            ops=RUN.format("mkdir d; echo built > d/f; ln -s f d/l"),
            more="(copy (from (build dev)) (src /home/builder/d) (dst got/))",
        )
    elif not text.startswith("(("):
        text = f"((from micro) {HEAD} {text})"
    return parse(text.encode(), file=name).spec


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    path = tmp_path_factory.mktemp("context")
    (path / "tree/sub").mkdir(parents=True)
    (path / "tree/a").write_text("#!/bin/sh\necho a\n")
    (path / "tree/a").chmod(0o755)
    (path / "tree/sub/b").write_text("b")
    (path / "tree/link").symlink_to("sub/b")
    os.link(path / "tree/sub/b", path / "tree/sub/hard")
    return str(path)


async def listing(builder, key):
    """Names, types, modes, owners and content; times are those of the step."""
    out = io.BytesIO()
    await export_tar(builder, key, out)
    out.seek(0)
    found = {}
    with tarfile.open(fileobj=out) as tar:
        for member in tar:
            content = tar.extractfile(member).read() if member.isreg() else b""
            found[member.name] = (
                (member.uid, member.gid), member.type, oct(member.mode), member.linkname, content
            )  # fmt: skip
    return found


async def outcomes(place, sandbox, context):
    """For each spec its key and files, or why it was refused."""
    found = {}
    settings = Settings(store=place.store, sandbox=sandbox)
    async with Builder.open(settings) as builder:
        for name in SPECS:
            ran = len(builder.records())
            try:
                result = await builder.build(spec(name), context, secrets={"s": b"secret"})
            except Unsupported as refused:
                assert len(builder.records()) == ran, "a step ran before it was refused"
                found[name] = refused.message
            except StepFailed as failed:
                # The one thing that can't be told beforehand: what lets a step do it, and what does not.
                assert name == "owners", failed
                assert place.kind == "zfs" or sandbox == "users", failed
                assert failed.tail.startswith(b"chown: "), failed.tail
                found[name] = failed.message
            else:
                files = await listing(builder, result.key)
                if place.name == "podman" and name in _UNKNOWN:
                    _without_podmans(files, _UNKNOWN[name])
                found[name] = (result.key, files)
        features = builder.sandbox.features
    return found, features


_UNKNOWN = {
    "users": {"etc/passwd": b"1000:*:1000:100:", "etc/group": b"100:x:100:"},
    "named": {"etc/group": b"100:x:100:"},
}
"""How the lines begin that podman adds to files of the image, for a user whom they lack."""


def _without_podmans(files, added):
    """Take these lines away."""
    for path, line in added.items():
        *entry, content = files[path]
        lines = content.splitlines(keepends=True)
        assert lines.pop().startswith(line), lines
        files[path] = (*entry, b"".join(lines))


# A file system without overlays, which the tests of stores give this one, has no id-mapped mounts.
WHERE = {**PLACES, "rsync+hardlink": PLACES["rsync+hardlink"]._replace(directory=memory)}

PAIRS = [
    (name, sandbox)
    for name, place in WHERE.items()
    for sandbox in registry.SANDBOXES
    if (place.kind, sandbox) in registry.pairs()
]


@pytest.mark.anyio
async def test_every_pair_makes_the_same(context, request, monkeypatch):
    rows, reference, keys, tried = {}, {}, {}, 0
    for name, sandbox in PAIRS:
        if unmet(WHERE[name].needs) is not None:
            continue
        tried += 1
        if engine := WHERE[name].engine:
            monkeypatch.setenv("DOCKER_HOST", request.getfixturevalue(f"{engine}_engine").host)
        with WHERE[name].directory() as directory:
            place = Opened(name, WHERE[name].kind, directory, WHERE[name].rarely)
            try:
                found, features = await outcomes(place, sandbox, context)
            except BackendUnavailable as unavailable:
                assert (name, sandbox) == ("zfs", "users"), unavailable
                continue
        assert features.domain == registry.domain_of(sandbox)
        for each, outcome in found.items():
            if each == "isolated" and features.warning:
                found[each] = features.warning  # not refused: that is what was asked for
                continue
            first = reference.setdefault(each, outcome)
            if isinstance(outcome, tuple) and isinstance(first, tuple):
                key = keys.setdefault((features.domain, each), outcome[0])
                assert outcome[0] == key, (name, sandbox, each)
                owners = slice(None) if features.users else slice(1, None)
                for path, entry in first[1].items():
                    assert outcome[1][path][owners] == entry[owners], (name, sandbox, each, path)
                assert set(outcome[1]) == set(first[1]), (name, sandbox, each)
        rows[name, sandbox] = {
            each: "yes" if isinstance(outcome, tuple) else "no" for each, outcome in found.items()
        }
    if tried == len(PAIRS):
        text = table(rows)
        if "RENEW_GOLDEN" in os.environ:
            PAGE.write_text(text)
        assert text == PAGE.read_text()


def table(rows):
    """The page; pairs of one sandbox that can do the same share a column."""
    columns = {}
    for (name, sandbox), row in rows.items():
        columns.setdefault((sandbox, tuple(row.values())), []).append(name)
    lines = [
        "# Which pair supports what", "",
        "Made by `tests/conformance/test_pairs.py`, which builds each of these specs on every store with every",
        "sandbox that goes with it, and compares files, and keys among sandboxes that isolate. What a pair can't do",
        "is refused before the first step; only that nothing is kept from steps is not, where that was asked for. Here",
        "zfs is [zfs-fuse](../stores/zfs.md#openzfs-and-zfs-fuse), which lets no step give files away and can't show",
        "files as somebody else's, as `users` needs it; podman is the store docker in a [podman's",
        "service](../sandboxes/docker.md#podman), which adds a line to the image's `/etc/passwd` and `/etc/group` for a",
        "step's user whom they lack.", "",
        "| sandbox | " + " | ".join(f"`{sandbox}`" for sandbox, _ in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
        "| on the stores | " + " | ".join(", ".join(names) for names in columns.values()) + " |",
    ]  # fmt: skip
    for number, (title, _) in enumerate(SPECS.values()):
        lines.append(f"| {title} | " + " | ".join(answers[number] for _, answers in columns) + " |")
    return "\n".join(lines) + "\n"


def test_a_pair_that_does_not_meet_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no sandbox called 'nope'"):
        registry.check_sandbox("nope")
