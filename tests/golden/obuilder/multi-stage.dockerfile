FROM ocaml/opam:alpine-3.19-ocaml-4.14 as dev
USER 1000:1000
WORKDIR /home/opam
RUN echo 'print_endline {|Hello, world!|}' > main.ml
RUN opam exec -- ocamlfind ocamlopt -ccopt -static -o hello main.ml

FROM alpine:3.19
SHELL [ "/bin/sh", "-c" ]
COPY --from=dev /home/opam/hello /usr/local/bin/hello
RUN hello
