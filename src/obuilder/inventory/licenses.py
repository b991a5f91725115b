"""What databases say of licenses, as SPDX has it: an expression of known names, or a name of its own."""

import hashlib
import re

_LICENSES = """
    0BSD AFL-2.1 AFL-3.0 AGPL-3.0 AGPL-3.0-only AGPL-3.0-or-later Apache-1.1 Apache-2.0 Artistic-1.0
    Artistic-1.0-Perl Artistic-2.0 Beerware BlueOak-1.0.0 BSD-1-Clause BSD-2-Clause
    BSD-2-Clause-Patent BSD-3-Clause BSD-3-Clause-Clear BSD-4-Clause BSD-4-Clause-UC BSL-1.0
    bzip2-1.0.6 CC-BY-3.0 CC-BY-4.0 CC-BY-SA-3.0 CC-BY-SA-4.0 CC0-1.0 CDDL-1.0 CDDL-1.1 CPL-1.0 curl
    EPL-1.0 EPL-2.0 EUPL-1.2 FSFAP FSFUL FSFULLR FTL GFDL-1.1-or-later GFDL-1.2-or-later
    GFDL-1.3-only GFDL-1.3-or-later GPL-1.0-only GPL-1.0-or-later GPL-2.0 GPL-2.0-only
    GPL-2.0-or-later GPL-3.0 GPL-3.0-only GPL-3.0-or-later HPND HPND-sell-variant ICU IJG
    Info-ZIP ISC JSON LGPL-2.0-only LGPL-2.0-or-later LGPL-2.1 LGPL-2.1-only LGPL-2.1-or-later
    LGPL-3.0 LGPL-3.0-only LGPL-3.0-or-later Libpng libtiff LPPL-1.3c MIT MIT-0 MIT-CMU
    MIT-Modern-Variant MPL-1.1 MPL-2.0 MS-PL NAIST-2003 NCSA OFL-1.1 OLDAP-2.8 OpenSSL PHP-3.01
    PostgreSQL PSF-2.0 Python-2.0 Python-2.0.1 Ruby Sleepycat SMLNJ TCL Unicode-3.0 Unicode-DFS-2016
    Unlicense UPL-1.0 Vim W3C WTFPL X11 XFree86-1.1 Zlib zlib-acknowledgement ZPL-2.1
"""
_KNOWN = frozenset(_LICENSES.split())
_AFTER_WITH = """
    Autoconf-exception-2.0 Autoconf-exception-3.0 Bison-exception-2.2 Classpath-exception-2.0
    Font-exception-2.0 GCC-exception-2.0 GCC-exception-3.1 Libtool-exception Linux-syscall-note
    LLVM-exception OpenSSL-exception
"""
_EXCEPTIONS = frozenset(_AFTER_WITH.split())
_WORD = re.compile(r"[()]|[^\s()]+")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9.-]+")


def expression(text: str) -> tuple[str, str]:
    """The license as SPDX has it, and, where that is a name of one's own, the name; else nothing.

    Nothing is known of an empty text.
    """
    if not text.strip():
        return "NOASSERTION", ""
    words = _WORD.findall(text)
    known = {"and": "AND", "or": "OR", "with": "WITH"}
    said = [known.get(word.lower(), word) for word in words]
    if _is_expression(said):
        return " ".join(said).replace("( ", "(").replace(" )", ")"), ""
    short = _NOT_IN_NAMES.sub("-", text).strip("-")[:40] or "license"
    name = f"LicenseRef-{short}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return name, name


def _is_expression(words: list[str]) -> bool:
    """Whether words are license names with AND, OR and WITH between them, in whole parentheses."""
    depth, wants_name, exceptional = 0, True, False
    for word in words:
        if word == "(" and wants_name and not exceptional:
            depth += 1
        elif word == ")" and not wants_name and depth:
            depth -= 1
        elif wants_name and word in (_EXCEPTIONS if exceptional else _KNOWN):
            wants_name = exceptional = False
        elif not wants_name and word in ("AND", "OR", "WITH"):
            wants_name, exceptional = True, word == "WITH"
        else:
            return False
    return not wants_name and not depth
