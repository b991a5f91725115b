FROM base
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
CMD run $it
ENTRYPOINT enter "$this"
HEALTHCHECK --interval=1h30m --timeout=1.5s --start-period=0 --start-interval=100ms --retries=3 CMD ["ok", "?"]
HEALTHCHECK CMD curl -f http://x || exit 1
healthcheck none
ONBUILD COPY . /later
MAINTAINER "Some One" <some@example.org>
EXPOSE 1 2/udp 3-5
VOLUME ["/a", "/b c"]
VOLUME /d /e
LABEL a=1 \
      b=2
CMD []
ENTRYPOINT []
