FROM ocaml/opam@sha256:0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0
# debian-12-ocaml-5.1/x86_32
SHELL [ "/usr/bin/linux32", "/bin/sh", "-c" ]
USER 1000:1000
ENV OPAMDOWNLOADJOBS="1"
ENV OPAMERRLOGLEN="0"
ENV OPAMPRECISETRACKING="1"
ENV CI="true"
RUN sudo ln -f /usr/bin/opam-2.1 /usr/bin/opam
RUN opam init --reinit -ni
COPY --chown=1000:1000 . /home/opam/opam-repository/
RUN opam repository set-url --strict default opam-repository/
RUN opam update --depexts && opam reinstall --yes tar.2.6.0; res=$?; test "$res" != 31 && exit $res; echo "failed for want of something else"; exit 1
RUN opam reinstall --with-test --yes tar.2.6.0
# warning: caches and secrets need BuildKit; without it they are left out
