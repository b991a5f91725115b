FROM debian:12 as inner
RUN echo inner > /file

FROM debian:12 as outer
COPY --from=inner /file /file
RUN cat /file

FROM debian:12
WORKDIR /src
USER 1000:1000
ENV EMPTY=""
COPY --chown=1000:1000 a b ./
RUN [ "/bin/sh", "-c", "printf 'tab\there\n' | cat" ]
COPY --chown=1000:1000 --from=outer [ "file", "/with blank/" ]
USER builder
RUN echo '"quoted"' \ $HOME
# warning: of a directory, COPY puts what is in it into './', not itself; look what is one of: 'a' 'b'
# warning: caches and secrets need BuildKit; without it they are left out
# warning: of a directory, COPY puts what is in it into '/with blank/', not itself; look what is one of: 'file'
