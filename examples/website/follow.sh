#!/bin/sh -e
# Serves a directory on loopback and follows every link of its pages.
cd "$1"
httpd -p 127.0.0.1:8000
for page in *.html; do
  for link in $(sed -n 's/.*href="\([^"]*\)".*/\1/p' "$page"); do
    wget -q -O /dev/null "http://127.0.0.1:8000/$link"
    echo "$page: $link is there"
  done
done
