"""The web page of a cluster: what goes on in it, live; read by anybody, changed with a token."""
