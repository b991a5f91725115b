FROM base
ARG who=world
ENV greeting="hello $who" path=/opt/bin:$PATH quoted='$who' escaped=\$who
ENV old style with  blanks
ENV first=1 second=$first
ENV a.b=${who:+set} c=${none:-${who}} d=${none:+x} e=${none-y} f=${who#w} g=${path##*/} h=${path%/*} i=${path%%/*} j=${who/o/0} k=${path//\//_}
LABEL "multi word"="$greeting" plain=a\ b
WORKDIR $greeting
USER ${who}
COPY ${who}.* "$second" /dst-$who/
VOLUME /data/$who
STOPSIGNAL SIG${none:-TERM}
EXPOSE ${ports:-80} 90-91/udp
