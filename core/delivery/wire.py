"""The forms in which one line goes over the wire. A line is JSON and its newline, as bytes.

A wire form is a function of a line. Clients in the field parse chunk by chunk, so a line is exactly one
HTTP chunk, however many chunks one write carries.
"""

from collections.abc import Callable

Wire = Callable[[bytes], bytes]


def chunked(line: bytes) -> bytes:
    """One chunk, RFC 9112 section 7.1."""
    return b"%x\r\n%b\r\n" % (len(line), line)


def bare(line: bytes) -> bytes:
    """HTTP/1.0 knows no chunks."""
    return line


def chunked_nul_terminated(line: bytes) -> bytes:
    """For readers of svnpubsub's time, who wait for a NUL after each object."""
    return chunked(line + b"\0")


def bare_nul_terminated(line: bytes) -> bytes:
    """The same over HTTP/1.0."""
    return line + b"\0"


def wire_form(*, http_1_0: bool, nul_terminated: bool) -> Wire:
    """The form that a stream is written in."""
    if http_1_0:
        return bare_nul_terminated if nul_terminated else bare
    return chunked_nul_terminated if nul_terminated else chunked
