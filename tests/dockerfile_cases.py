"""Dockerfiles that judges build as well, and the context that they are built in."""

import os
import tarfile
from typing import NamedTuple

HEAD = "FROM base\n"


class Case(NamedTuple):
    """A Dockerfile, and options that both builders take."""

    text: str
    options: tuple[str, ...] = ()
    newer: bool = False
    """Of a syntax that Debian's judge is too old for: only tree and config are told here."""


def make_context(place: str) -> None:
    """Files of every kind that a COPY can meet."""
    for name in ("dir/sub/deep", "dir/other", "up/down", "empty", "kept/out", "weird [x]"):
        os.makedirs(f"{place}/{name}")
    files = {
        "a.txt": 0o644, "b.txt": 0o600, "run.sh": 0o755, "dir/one": 0o640, "dir/sub/two": 0o4755,
        "dir/sub/deep/three": 0o444, "dir/other/four": 0o666, "up/five": 0o644, "c.md": 0o644,
        "up/down/six": 0o644, "kept/in": 0o644, "kept/out/no": 0o644, "kept/out/yes": 0o644,
        "weird [x]/f": 0o644, "hidden.log": 0o644,
    }  # fmt: skip
    for name, mode in files.items():
        with open(f"{place}/{name}", "w") as file:
            file.write(f"this is {name}\n")
        os.chmod(f"{place}/{name}", mode)
        os.utime(f"{place}/{name}", (1e9, 1e9))
    os.chmod(f"{place}/dir/sub", 0o2770)
    os.chmod(f"{place}/up", 0o711)
    os.symlink("a.txt", f"{place}/link")
    os.symlink("dir", f"{place}/dirlink")
    os.symlink("nowhere", f"{place}/dir/dangling")
    os.symlink("../a.txt", f"{place}/dir/back")
    os.symlink("/up", f"{place}/absolute")
    os.link(f"{place}/dir/one", f"{place}/dir/same")
    with open(f"{place}/.dockerignore", "w") as file:
        file.write("*.log\nkept/out\n!kept/out/yes\nDockerfile*\n.dockerignore\n")
    for suffix, mode in (
        (".tar", "w"),
        (".tar.gz", "w:gz"),
        (".tar.bz2", "w:bz2"),
        (".txz", "w:xz"),
    ):
        with tarfile.open(f"{place}/archive{suffix}", mode) as tar:
            for name in ("dir/sub", "up/five", "a.txt"):
                tar.add(f"{place}/{name}", arcname=f"in/{os.path.basename(name)}", filter=_owned)


def _owned(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid, info.gid, info.uname, info.gname = 7, 8, "", ""
    return info


CASES = {
    "files": Case(HEAD + "COPY a.txt b.txt run.sh /new/\nCOPY a.txt /plain\nCOPY a.txt /there\n"
                  "COPY b.txt /there/\nCOPY a.txt over\n"),
    "directories": Case(HEAD + "COPY dir /d\nCOPY dir /there/\nCOPY empty /e/\nCOPY dir up /two/\n"),
    "everything": Case(HEAD + "WORKDIR /all\nCOPY . .\n"),
    "from-the-root": Case(HEAD + "COPY / /all/\nCOPY /dir/one ../x /up/./five /z/\n"
                          .replace("../x ", "")),
    "over-directories": Case(HEAD + "RUN mkdir -p /d/sub /d/other && chmod 700 /d /d/sub && "
                             "chown 3:4 /d /d/sub && echo old > /d/one\nCOPY dir /d\n"),
    "file-to-a-link": Case(HEAD + "COPY a.txt /to-there\nCOPY b.txt /to-file\nCOPY dir /to-there/\n"),
    "dangling": Case(HEAD + "RUN ln -s /made/here /dangle && ln -s /q/w /dd\nCOPY a.txt /dangle\n"
                     "COPY dir /dd/\n"),
    "links-as-sources": Case(HEAD + "COPY link /l1\nCOPY link dirlink /l2/\nCOPY dirlink/one /l3\n"
                             "COPY absolute/five /l4\nCOPY absolute /l5\n"),
    "globs": Case(HEAD + "COPY *.txt /t/\nCOPY d?r /q/\nCOPY dir/o* up/d* /s/\nCOPY [au]* /u/\n"
                  "COPY dir/sub/t* up/down/s?x /v/\n"),
    "weird-names": Case(HEAD + 'COPY ["weird [[]x]/f", "/out dir/"]\nCOPY ["a.txt", "/b l"]\n'),
    "chown": Case(HEAD + "COPY --chown=5:6 dir /n/d\nCOPY --chown=app a.txt /by/name\n"
                  "COPY --chown=app:team b.txt /by/team\nCOPY --chown=9 a.txt /nine\n"
                  "COPY --chown=12:team run.sh /there/\n"),
    "chmod": Case(HEAD + "COPY --chmod=750 run.sh /s\nCOPY --chmod=0444 a.txt b.txt /there/\n"),
    "stages": Case("FROM base AS one\nRUN mkdir /o && echo x > /o/f && chown 5:6 /o/f && ln -s f /o/l\n"
                   "FROM base AS two\nCOPY --from=one /o /p\nCOPY --from=0 /o/l /q\n"
                   "FROM two\nCOPY --from=two /p/f /r\nRUN rm /q\n"),
    "scratch": Case("FROM base AS b\nFROM scratch\nCOPY --from=b /bin/busybox /bin/sh\n"
                    'COPY a.txt /\nWORKDIR /w\nRUN echo "$PATH" > p\nCMD ["/bin/sh"]\n'),
    "image-as-source": Case("FROM scratch\nCOPY --from=base /etc/passwd /etc/group /e/\n"),
    "args": Case("ARG TAG=base\nARG X=global\nFROM $TAG\nARG X\nARG Y=$X-y Z\nARG W=w\n"
                 "RUN echo $X $Y $Z $W > /a\nENV W=env\nRUN echo $W > /b\nARG W=again\n"
                 "RUN echo $W > /c\n", ("--build-arg", "Z=given", "--build-arg", "Y=why")),
    "platform-args": Case("FROM --platform=$BUILDPLATFORM base\nARG TARGETARCH\nARG TARGETOS TARGETPLATFORM\n"
                          "RUN echo $TARGETOS $TARGETARCH $TARGETPLATFORM > /p\n"),
    "variables": Case(HEAD + "ENV A=abc B=\"x y\" C='$A' D=\\$A E=${A}d F=\nENV G ${A} and $B\n"
                      "ENV H=${F:-dflt} J=${A:+yes} K=${Q:+no} L=${Q:-$A}\n"
                      "RUN env | grep -E '^[A-L]=' | sort > /v\nWORKDIR /w/$A/${Q:-q}\n"
                      'COPY ${A:+a}.txt ./$A/\nLABEL x=$B "y z"=$A\nENV BASED=$BASE/more\n'),
    "shell": Case(HEAD + 'SHELL ["/bin/sh", "-ec"]\nRUN false || echo ok > /x\nCMD run it\n'
                  "ENTRYPOINT enter $IT\n"),
    "exec-form": Case(HEAD + 'RUN ["/bin/sh", "-c", "echo $0 $1 > /x", "a b", "c\\"d"]\n'
                      'RUN [ "touch", "/y z" ]\n'),
    "continued": Case(HEAD + "RUN echo one \\\n# a comment\n\n   && echo two \\\n  > /x; echo a\\\\b > /y\n"),
    "escape": Case("# escape=`\n" + HEAD + "RUN echo one `\n two > /x\nENV A=`$B\nRUN echo $A > /y\n"),
    "workdir": Case(HEAD + "WORKDIR /a/b\nWORKDIR c/../d\nRUN pwd > here\nWORKDIR /there\n"),
    "user": Case(HEAD + "USER app\nRUN id > /there/../tmp/id; touch /tmp/app\nUSER 5:6\nRUN id > /tmp/id2; "
                 "touch /tmp/five\nUSER 12\nRUN id > /tmp/id3\nUSER app:team\nRUN touch /tmp/team\n"
                 "COPY a.txt /tmp/root\n"),
    "config": Case(HEAD + 'EXPOSE 80 443/tcp 53/udp 7000-7002\nVOLUME /data ["x"]\n'
                   'VOLUME ["/v1", "/v 2"]\nSTOPSIGNAL SIGINT\nMAINTAINER Some One\nLABEL a=1 b="2 3"\n'
                   "HEALTHCHECK --interval=5m --timeout=3s --retries=2 CMD test -f /x || exit 1\n"
                   'ENTRYPOINT ["/e", "x"]\nCMD ["c"]\nONBUILD RUN echo hi\n'),
    "entrypoint-takes-cmd": Case('FROM base AS b\nCMD ["old"]\nFROM b\nENTRYPOINT ["e"]\n'),
    "healthcheck-none": Case(HEAD + "HEALTHCHECK NONE\nENTRYPOINT []\nUSER app\n"),
    "inherits": Case("FROM told\nRUN pwd > /tmp/p; id -u > /tmp/u; echo $FROM_BASE > /tmp/f\n"
                     "COPY a.txt rel\nENV FROM_BASE=$FROM_BASE:x\n"),
    "onbuild": Case("FROM trigger\nRUN cat /on > /after\n"),
    "target": Case("FROM base AS one\nRUN echo 1 > /1\nFROM base AS two\nRUN echo 2 > /2\n"
                   "FROM base\nRUN exit 1\n", ("--target", "two")),
    "add-archives": Case(HEAD + "ADD archive.tar /t\nADD archive.tar.gz archive.tar.bz2 /z/\n"
                         "ADD archive.txz a.txt /x/\nADD dir /d/\nCOPY archive.tar.gz /kept\n"),
    "mounts": Case(HEAD + "RUN mkdir /mem /ctx /e /ca\nRUN --mount=type=tmpfs,target=/mem echo x > /mem/f && ls /mem > /l1\n"
                   "RUN --mount=type=bind,source=dir,target=/ctx cat /ctx/one > /l2; touch /ctx/n || true\n"
                   "RUN --mount=target=/ctx,rw touch /ctx/new && ls /ctx > /l3\n"
                   "RUN --mount=type=bind,from=base,source=/etc,target=/e cat /e/passwd > /l4\n"
                   "RUN --mount=type=cache,target=/ca,mode=0711,uid=5 stat -c '%a %u' /ca > /l5; "
                   "echo kept > /ca/f\nRUN --mount=type=cache,target=/ca,mode=0711,uid=5 cat /ca/f > /l6\n"
                   "RUN --mount=type=secret,id=none ls /run/secrets > /l7 2>&1 || true\n"),
    "network": Case(HEAD + "RUN --network=none echo no > /x\n", newer=True),
    "heredocs": Case(HEAD + 'ENV A=b\nRUN <<EOF\necho "$A" > /x\nEOF\nCOPY <<one <<-"two" /h/\n$A\none\n'
                     "\t$A\n\ttwo\nRUN <<S\n#!/bin/sh\necho s > /s\nS\n", newer=True),
    "excludes": Case(HEAD + "COPY --exclude=sub --exclude=**/four dir /d\n", newer=True),
    "parents": Case(HEAD + "COPY --parents dir/sub/two up/./down/six /p/\n", newer=True),
}  # fmt: skip
