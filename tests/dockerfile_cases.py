"""Dockerfiles that judges build as well, in what `dockerfile_world` has around them.

WEB and GIT in a text stand for where that serves files and a repository.
"""

from typing import NamedTuple

HEAD = "FROM base\n"


class Case(NamedTuple):
    """A Dockerfile, and options that both builders take."""

    text: str
    options: tuple[str, ...] = ()
    newer: bool = False
    """Of a syntax that Debian's BuildKit is too old for: a newer one was asked (`tests/buildkit`)."""
    ignore: str = ""
    """The Dockerfile's own ignore file."""


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
    "values-everywhere": Case(HEAD + "ARG P=8080\nENV U=app S=SIGUSR1 V=/vol L=lab\nEXPOSE $P ${P}/udp\n"
                              'USER $U\nSTOPSIGNAL ${S}\nVOLUME $V ${V}2\nLABEL $L="$P"\nUSER root\n'
                              "WORKDIR $V/w\nCOPY --chown=$U a.txt .\n"),
    "scopes-of-args": Case("ARG A=out\nARG B=b\nFROM base AS one\nARG A=in\nRUN echo $A-$B > /one\n"
                           "FROM base\nARG B\nCOPY --from=one /one /$B\nRUN echo $A-$B > /two\n"
                           'ARG D=1\nARG E="2 3"\nRUN echo $E > /three\nENV E=$D\nRUN echo $E > /four\n',
                           ("--build-arg", "B=given")),
    "args-of-a-stage": Case("FROM base AS one\nARG A=1\nENV B=$A\nFROM one\nRUN echo $A $B > /x\n"),
    "names-of-stages": Case("FROM base AS First\nRUN echo 1 > /f\nFROM base\nCOPY --from=first /f /a\n"
                            "COPY --from=FIRST /f /b\nFROM base\nCOPY --from=0 /f /c\nCOPY --from=1 /a /d\n"),
    "workdir-of-a-user": Case(HEAD + "USER app\nWORKDIR /tmp/mine/deep\nWORKDIR ../next\nRUN pwd > /tmp/x\n"
                              "COPY a.txt .\n"),
    "volume-written": Case(HEAD + "VOLUME /v\nRUN mkdir -p /v && echo x > /v/f\nCOPY a.txt /v/\n"),
    "carriage-returns": Case("FROM base\r\nRUN echo a \\\r\n  b > /x\r\nENV A=b\r\n"),
    "comments": Case("# top\n#\n  # indented\nFROM base\n# between\nRUN echo a # no comment > /x; echo b > /y\n"
                     "  RUN echo b > /z # > /y\nENV A=1 \\\n# inside\n  B=2\n"),
    "any-script": Case(HEAD + 'ENV L="日本" M=ß\nRUN echo $L $M > "/é"\nLABEL "ключ"="значение"\nWORKDIR /ö\n'),
    "secrets": Case(HEAD + "RUN mkdir -p /run/secrets /t\nRUN --mount=type=secret,id=tok cat /run/secrets/tok > /a; "
                    "stat -c '%a %u %g' /run/secrets/tok > /b\n"
                    "RUN --mount=type=secret,id=tok,target=/t/k,mode=0440,uid=5,gid=6 stat -c '%a %u %g' /t/k > /c\n"
                    "RUN --mount=type=secret,source=tok,dst=/tmp/t,required=true cat /tmp/t > /d\n"),
    "ssh": Case(HEAD + "RUN mkdir -p /run/buildkit\nRUN --mount=type=ssh test -S $SSH_AUTH_SOCK && echo $SSH_AUTH_SOCK > /x; "
                "stat -c '%a %u' $SSH_AUTH_SOCK > /y\n"
                "RUN --mount=type=ssh,id=default,target=/tmp/s,mode=0666,uid=5 stat -c '%a %u' /tmp/s > /z\n"),
    "binds": Case("FROM base AS one\nRUN mkdir /o && echo x > /o/f\nFROM base\nRUN mkdir /o /s /x\n"
                  "RUN --mount=type=bind,source=a.txt,target=/x/a cat /x/a > /1\n"
                  "RUN --mount=src=dir/sub,dst=/s,readonly=true ls /s > /2; cat /s/deep/three >> /2\n"
                  "RUN --mount=from=one,source=/o,target=/o,readwrite touch /o/g && ls /o > /3\n"
                  "RUN --mount=from=one,source=o/f,target=/f cat /f > /4\n"
                  "RUN --mount=source=dirlink/one,target=/l cat /l > /5\n"),
    "caches": Case(HEAD + "RUN mkdir /c /other\nRUN --mount=type=cache,id=c1,target=/c,sharing=locked echo 1 > /c/f\n"
                   "RUN --mount=type=cache,id=c1,dst=/other,ro cat /other/f > /x; touch /other/n || echo ro >> /x\n"
                   "RUN --mount=type=cache,id=c2,target=/c,sharing=private ls /c > /y\n"),
    "own-ignore-file": Case(HEAD + "COPY . /all/\n", ignore="a.*\n# no\ndir\n!dir/one\n*/d*wn\n"),
    "add-flags": Case(HEAD + "ADD --chown=5:6 dir /d\nADD --chmod=600 a.txt b.txt /there/\n"
                      "ADD --chown=app c.md /by-name\n"),
    "add-urls": Case(HEAD + "ADD http://WEB/one /u/\nADD --chown=5:6 http://WEB/two?x=1 /named\n"
                     "ADD http://WEB/a.tgz /kept.tgz\n"),
    "healthchecks": Case(HEAD + 'HEALTHCHECK --interval=2s CMD x\nHEALTHCHECK --start-period=1m30s '
                         '--timeout=1.5s CMD ["a", "b c"]\n'),
    "labels": Case(HEAD + 'LABEL a="one \\\n  two" b=\'$A\' c="q\\"q"\nLABEL d one two\nLABEL a=again\n'),
    "onbuild-of-a-stage": Case("FROM base AS b\nONBUILD RUN echo t > /t\nONBUILD WORKDIR /w\nFROM b\nRUN pwd > /x\n"),
    "network": Case(HEAD + "RUN --network=none echo no > /x\nRUN --network=default echo y > /y\n", newer=True),
    "security": Case(HEAD + "RUN --security=sandbox echo s > /x\n", newer=True),
    "heredocs": Case(HEAD + 'ENV A=b\nRUN <<EOF\necho "$A" > /x\nEOF\nCOPY <<one <<-"two" /h/\n$A\none\n'
                     "\t$A\n\ttwo\nRUN <<S\n#!/bin/sh\necho s > /s\nS\n", newer=True),
    "heredocs-of-commands": Case(HEAD + "RUN cat <<A > /a && cat <<'B' > /b\none $PATH\nA\ntwo $PATH\nB\n"
                                 "RUN <<-E\n\techo tabs > /t\n\tcat <<I > /i\n\tinner\n\tI\n\tE\n"
                                 'SHELL ["/bin/sh", "-ec"]\nRUN <<E\nfalse || echo on > /on\nE\n', newer=True),
    "heredocs-as-files": Case(HEAD + "ARG V=1.2\nCOPY --chmod=750 --chown=app <<run.sh /bin/go\n#!/bin/sh\n"
                              "echo ${V%.*} \\$x\nrun.sh\nADD <<a <<b a.txt /f/\n1\na\nb\n", newer=True),
    "excludes": Case(HEAD + "COPY --exclude=sub --exclude=**/four dir /d\n", newer=True),
    "excludes-of-add": Case(HEAD + "ADD --exclude=*.txt --exclude=dir/**/t* . /x\n"
                            "COPY --exclude=*.md --exclude=b* *.txt c.md /y/\n", newer=True),
    "parents": Case(HEAD + "COPY --parents dir/sub/two up/./down/six /p/\n", newer=True),
    "parents-of-patterns": Case(HEAD + "COPY --parents --chown=5 */sub/t* a.txt /p/\n"
                                "COPY --parents ./dir/./o* /q/\nCOPY --parents dir /r\n", newer=True),
    "link": Case(HEAD + "RUN mkdir /real && ln -s real /lnk && ln -s real/f /flink\n"
                 "COPY --link a.txt /lnk/a\nCOPY --link --chown=5:6 dir /ld\nCOPY --link b.txt /flink\n"
                 "COPY --link=false c.md /lnk/\n", newer=True),
    "modifiers": Case(HEAD + "ENV P=a/b/c.tar.gz E=\nENV A=${P#*/} B=${P##*/} C=${P%.*} D=${P%%.*} F=${P/b/X}\n"
                      "ENV G=${P//\\//-} H=${E-un} I=${N-un} J=${E+set} K=${N+set} L=${E?no} M=${P:?no}\n"
                      "RUN env | grep -E '^[A-M]=' | sort > /v\n", newer=True),
    "checksum": Case(HEAD + "ADD --checksum=sha256:2c8b08da5ce60398e1f19af0e5dccc744df274b826abe585eaba68c525434806 "
                     "http://WEB/one /u\n", newer=True),
    "unpack": Case(HEAD + "ADD --unpack=true http://WEB/a.tgz /y/\nADD --unpack=false archive.tar /k\n", newer=True),
    "repositories": Case(HEAD + "ADD git://GIT/repo#v1:sub /g\nADD --keep-git-dir=false git://GIT/repo#main /h/\n"
                         "ADD --chown=5 git://GIT/repo#v1 /i\n", newer=True),
    "memory-sizes": Case(HEAD + "RUN --mount=type=tmpfs,target=/m,size=1m head -c 2000000 /dev/zero > /m/f || "
                         "echo full > /x\n", newer=True),
    "secret-variables": Case(HEAD + "RUN --mount=type=secret,id=tok,env=TOK echo $TOK > /x; ls /run/secrets 2> /y || true\n"
                             "RUN --mount=type=secret,id=tok,env=T,target=/tmp/t echo $T > /z; cat /tmp/t >> /z\n", newer=True),
    "symbolic-modes": Case(HEAD + "COPY --chmod=u=rwX,go=rX dir /m\nADD --chmod=a-w,u+s run.sh a.txt /n/\n", newer=True),
}  # fmt: skip
