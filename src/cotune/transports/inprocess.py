"""All clients in this process, trained in stacks; every message is still encoded and decoded.

Origin: the transport seam of httpx, https://github.com/encode/httpx: to the caller it is a network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cotune.codec import decode, encode
from cotune.host import Host, Hosts
from cotune.records import Failure, Message


class InProcess:
    """Hands messages to the hosts of this process, a bounded number at a time."""

    def __init__(self, host: Host | Hosts, chunk: int) -> None:
        self.host, self.chunk = host, chunk

    def clients(self) -> Sequence[str]:
        """All clients of this process."""
        return self.host.clients()

    def send(self, messages: Sequence[Message]) -> Iterator[tuple[Message | Failure, int, int]]:
        """Replies in the order of the messages, with the bytes each way."""
        for start in range(0, len(messages), self.chunk):
            down = [encode(message) for message in messages[start : start + self.chunk]]
            replies = self.host.handle([decode(data) for data in down])
            for sent, reply in zip(down, replies, strict=True):
                up = encode(reply)
                yield decode(up), len(sent), len(up)
