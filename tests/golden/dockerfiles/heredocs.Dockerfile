FROM base
RUN <<EOF
set -e
echo "$HOME"
EOF
RUN cat <<'A' - <<-B > /both
as $it is
A
	tabs go
	B
RUN python3 <<EOF
print("hi")
EOF
RUN <<-"SCRIPT"
	#!/usr/bin/env python3
	print("with a shebang")
	SCRIPT
COPY <<one.txt <<-"two.txt" plain.txt /etc/
path is $PATH, dollar is \$PATH
one.txt
	path is $PATH
	two.txt
ONBUILD RUN <<X
later
X
