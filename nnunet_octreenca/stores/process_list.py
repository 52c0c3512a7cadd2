"""The command line of this process without the secrets of URLs, as `ps` shows it to everybody."""

import ctypes
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from nnunet_octreenca.stores.urls import keep_secret, redact

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://.*", re.DOTALL)
_BEGIN, _END = 48 - 3, 49 - 3  # fields of /proc/PID/stat behind the name, as proc(5) counts them


def hide_secrets(arguments: Sequence[str]) -> None:
    """Write over users, passwords and queries of URLs in this process' command line.

    Linux alone lets a process do this. In the second before, others could read them: credentials
    belong into the environment or a profile.

    Args:
        arguments: the command line.
    """
    found = [match[0] for text in arguments if (match := _URL.search(text))]  # also of -iURL
    urls = [url for url in found if keep_secret(url)]
    if not urls or not sys.platform.startswith("linux"):
        return
    fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    begin, end = int(fields[_BEGIN]), int(fields[_END])
    if not 0 < begin < end:  # the system does not tell
        return
    area = (ctypes.c_char * (end - begin)).from_address(begin)
    for url in urls:
        secret = url.encode()
        harmless = redact(url).encode().ljust(len(secret))[: len(secret)]
        content = area.raw
        place = content.find(secret)
        while place >= 0:
            ctypes.memmove(begin + place, harmless, len(secret))
            place = content.find(secret, place + 1)
