FROM base AS tools
FROM base
WORKDIR /job
RUN --mount=type=cache,target=rel,id=own,uid=1000,gid=1001,mode=0770,sharing=private x
RUN --mount=type=cache,target=/c,readonly x
RUN --mount=type=secret,id=token x
RUN --mount=type=secret,id=token,target=/etc/token,mode=0440,uid=5,required=true x
RUN --mount=type=secret,id=token,env=TOKEN x
RUN --mount=type=secret,source=/somewhere/key x
RUN --mount=target=/all x
RUN --mount=type=bind,source=sub,target=/sub,rw x
RUN --mount=type=bind,from=tools,source=/usr/bin,target=/tools --mount=type=bind,from=busybox,target=/bb x
RUN --mount=type=tmpfs,target=/tmp/x,size=64m x
RUN --mount=type=ssh x
RUN --mount=type=ssh,id=deploy,required,target=/agent,mode=0666 x
RUN --mount='type=cache,target=/with blank' "--mount=type=cache,\"target=/with,comma\"" x
RUN --network=none --security=insecure x
