# escape=`
FROM base
RUN dir c:\ `
  && echo on
COPY a\b c:\x\
ENV A=`$x B=c:\y
