"""fal's own host names, which clients have built in, and what each of them is for."""

import re
from enum import StrEnum


class Role(StrEnum):
    """What a host of fal's serves; the same paths mean different things on different hosts."""

    RUN = "run"
    WS = "ws"
    QUEUE = "queue"
    REST = "rest"
    FILES = "files"


FAL_HOSTS = {
    "fal.run": Role.RUN,
    "falrun.com": Role.RUN,
    "ws.fal.run": Role.WS,
    "queue.fal.run": Role.QUEUE,
    "queue.falrun.com": Role.QUEUE,
    "rest.fal.ai": Role.REST,
    "rest.alpha.fal.ai": Role.REST,
    "v3b.fal.media": Role.FILES,
    "v3.fal.media": Role.FILES,
    "fal.media": Role.FILES,
}
"""For boxes that DNS, a hosts file or a proxy puts in fal's place."""

FILES_HOST = "v3b.fal.media"
"""Where fal serves results and uploads; some apps accept files from `*.fal.media` only."""

QUEUE_HOST = "queue.fal.run"

QUEUE_HOST_PREFIX = "queue."
"""fal_client builds this name itself when it is given `FAL_RUN_HOST` alone."""

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\s:/?#@\[\]\\]+)(:[0-9]{0,5})?", re.IGNORECASE)


def split_port(host: str) -> tuple[str, str] | None:
    """Split a `Host` header into its name, in lower case and without its last dot, and `:port`.

    The port is empty where none is given; None stands for what is no host.
    """
    match = _HOST.fullmatch(host)
    return (match[1].lower().removesuffix("."), match[2] or "") if match else None


def role_of(host: str) -> Role:
    """Return what a host name, without its port, is for: any name but fal's is a `RUN` host."""
    name = host.lower().removesuffix(".")
    role = FAL_HOSTS.get(name)
    if role is None:
        return Role.QUEUE if name.startswith(QUEUE_HOST_PREFIX) else Role.RUN
    return role
