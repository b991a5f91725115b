# syntax=docker/dockerfile:1
ARG VERSION=12
FROM debian:${VERSION} AS build
WORKDIR /src
COPY --link go.mod go.sum ./
RUN --mount=type=cache,target=/root/.cache,sharing=locked make deps
COPY . .
RUN --mount=type=cache,target=/root/.cache,sharing=locked \
    make all && \
    # a remark in the middle
    make install DESTDIR=/out

FROM build AS test
RUN make check

FROM scratch
COPY --from=build /out /
COPY --from=docker.io/library/alpine:3 /etc/ssl /etc/ssl
USER 65534
ENTRYPOINT ["/bin/server"]
CMD ["--port", "80"]
EXPOSE 80
