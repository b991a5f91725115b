FROM ocaml/opam:debian-12-ocaml-4.14 as dev
# The opam files alone decide whether dependencies are installed again
USER 1000:1000
WORKDIR /src
RUN sudo chown opam:opam /src
ENV OPAMHASHDIR="/opam/hash"
COPY --chown=1000:1000 dune-project program.opam program-spec.opam ./
RUN opam pin --dev -yn . && opam install --deps-only -t .
COPY --chown=1000:1000 . /src/
RUN opam exec -- dune build @install @runtest && rm -rf _opam

FROM debian:12
RUN apt-get update && apt-get install -y --no-install-recommends libsqlite3-0 tar
COPY --from=dev /src/_build/default/main.exe /usr/local/bin/program
RUN program --help
# warning: of a directory, COPY puts what is in it into './', not itself; look what is one of: 'dune-project' 'program.opam' 'program-spec.opam'
# warning: caches and secrets need BuildKit; without it they are left out
# warning: exclude needs a .dockerignore with: **/.git **/_build **/_opam
