FROM base AS one
FROM base
WORKDIR /here
COPY a b
COPY a .
COPY a ..
COPY a b c/
COPY ["with blank", "dst blank/"]
COPY --chown=app --chmod=644 a /x
COPY --chown=5 a /x
COPY --chown=5:team --chmod=u=rw,go-w a /x
COPY --from=0 /x /y
COPY --from=one / /all
COPY --exclude=*.md --exclude=!keep.md docs /docs
COPY --parents src/./deep/*.c lib/**/x.h /p/
COPY --link=true x /x
COPY --link=false ../../x /x
ADD a.tar b.tgz /un/
ADD --unpack=false a.tar /kept/
ADD https://example.org/f%20x.tar?token=1 /u/
ADD --checksum=sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa https://example.org/a.tgz /u
ADD https://example.org/r.git#v1:sub /g
ADD git@example.org:r.git /h/
