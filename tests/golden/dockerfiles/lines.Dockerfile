# not a directive, a comment

# escape=` too late to be one
  FROM base   AS   X
run   echo a \
# gone

   \
  b
RUN echo "a \
   b"
RUN echo ends with two \\
RUN [ "not json" ] 
RUN ["json", "\u00e4"]
RUN [not json]
Copy	a	b
