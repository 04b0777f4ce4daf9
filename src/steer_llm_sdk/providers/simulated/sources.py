"""An upstream by its name, as the command line gives it."""

from __future__ import annotations

from pathlib import Path

from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.providers.simulated.proxy import ProxyUpstream
from steer_llm_sdk.providers.simulated.recording import shipped_recording
from steer_llm_sdk.providers.simulated.traffic import RecordedTraffic
from steer_llm_sdk.providers.simulated.upstream import RecordedUpstream, Upstream

RECORDING = "recording"
"""The name of the recorded answers that come with the package."""


def upstream_named(name: str, *, speed: float = 1.0) -> Upstream:
    """`recording`, an address that begins with http, or a file of traffic, which is replayed at `speed`.

    Raises InvalidRequest where `name` is none of these.
    """
    if name == RECORDING:
        return RecordedUpstream(shipped_recording())
    if name.startswith(("http://", "https://")):
        return ProxyUpstream(name)
    if not Path(name).is_file():
        give = f"give {RECORDING!r}, an address (https://…) or a file that `steer-llm record` made"
        raise InvalidRequest("upstream", name, f"there is no such file; {give}")
    return RecordedTraffic.read(name, speed=speed)
