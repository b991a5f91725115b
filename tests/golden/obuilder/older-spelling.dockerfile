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
RUN printf 'tab	here \
    ' | cat
COPY --chown=1000:1000 --from=outer [ "file", "/with blank/" ]
USER builder
RUN echo '"quoted"' \ $HOME
# warning: if 'a' is a directory, a Dockerfile copies what is in it, not itself
# warning: if 'b' is a directory, a Dockerfile copies what is in it, not itself
# warning: without BuildKit, caches and secrets are left out
# warning: if 'file' is a directory, a Dockerfile copies what is in it, not itself
