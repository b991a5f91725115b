"""A file system that shows every user a directory of their own at one and the same path.

    python -m obuilder.redirect LINKS MOUNTPOINT

LINKS is a directory of symlinks, each named by a user's number and leading to what that user is to
see; it is looked at anew whenever somebody enters. Who has no link sees what was at MOUNTPOINT
before. It ends, and is gone, when its standard input does. It needs root, libfuse 3 and mfusepy.
"""
