"""What core/http knows of aiohttp's inside (core.http.private_names) is what is installed.

aiohttp may change it in any version. These tests tell that it has, not whether that does harm.
"""

import ast
import asyncio
import hashlib
import inspect
import ssl
from asyncio.sslproto import SSLProtocol
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import aiohttp
import pytest
from aiohttp import StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_parser import HttpRequestParser
from aiohttp.test_utils import make_mocked_request

import core.http.connection
from core.http.private_names import PRIVATE_NAMES, UNDOCUMENTED_NAMES

MODULES = sorted(Path(core.http.connection.__file__).parent.glob("*.py"))
HAVE_NAMES: dict[str, Any] = {
    "RequestHandler": web.RequestHandler,
    "BaseProtocol": BaseProtocol,
    "Server": web.Server(Mock(), loop=Mock()),
    "BaseRequest": make_mocked_request("GET", "/"),
    "HttpRequestParser": HttpRequestParser,
    "StreamReader": StreamReader,
    "SSLProtocol": SSLProtocol,
}
# The bases of classes in core/http, and what of aiohttp these are or are derived from
DERIVED_FROM = {
    "web.RequestHandler": HAVE_NAMES["RequestHandler"],
    "Incoming": HAVE_NAMES["RequestHandler"],
    "web.Server": HAVE_NAMES["Server"],
}

# What was read, and the beginnings of the SHA-256 of its source: one for each version that differs
READ = {  # aiohttp 3.14.5
    "RequestHandler.__init__": {"46c577d1f419158f"},
    "RequestHandler.connection_made": {"44d50b5763b2c7e4"},
    "RequestHandler.connection_lost": {"df2fe6e95fd04c7c"},
    "RequestHandler.data_received": {"1ee57ebe052e6c80"},
    "RequestHandler.eof_received": {"5652627579a02369"},
    "RequestHandler._resume_reading_if_drained": {"27f2a6fbbb3a790e"},
    "RequestHandler.keep_alive": {"c393d9ac05c3017f"},
    "RequestHandler.close": {"84518f965e198ee3"},
    "RequestHandler.force_close": {"38d0e1e798e4d3b7"},
    "RequestHandler.shutdown": {"5eb4bd473db61e84"},
    "RequestHandler.start": {"2e565fd40c8e04fb"},
    "RequestHandler._process_keepalive": {"b472e0fb8445ce42"},
    "RequestHandler._handle_request": {"a88a34ee65a2714c"},
    "RequestHandler.finish_response": {"b7eb53db8f4b30ca"},
    "RequestHandler.handle_error": {"94962ffef500c172"},
    "RequestHandler._make_error_handler": {"b73dcf1dd177a243"},
    "BaseProtocol.writing_paused": {"e86aacda0e35d053"},
    "BaseProtocol.resume_reading": {"21dee847a31af724"},
    "BaseProtocol.pause_reading": {"c35fb392028cd397"},
    "BaseProtocol._pause_reading_for_buffer": {"8a07d84ad8d45025"},
    "BaseProtocol._resume_reading_for_buffer": {"61aa4b49c6e1a288"},
    "BaseProtocol._pause_transport_reading": {"c6065fb62a6bed59"},
    "BaseProtocol._resume_transport_reading": {"da539eba13cb5a32"},
    "BaseProtocol.connection_lost": {"8b4e1725c5648b9c"},
    "BaseProtocol.connection_made": {"30974740198dec40"},
    "Server.__init__": {"ceb06418afb91a22"},
    "Server.connection_made": {"c57094db35388e6d"},
    "Server.connection_lost": {"fff3ade6ffe866a8"},
    "Server._make_request": {"1a84cf605fe7ec66"},
    "Server.pre_shutdown": {"e01318ac421ba9fe"},
    "Server.shutdown": {"fc8f137a6c82728c"},
}


def attributes(tree: ast.AST, *, of_self: bool) -> list[ast.Attribute]:
    """All x of `self.x`, or of whatever else has one."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return [node for node in found if (ast.unparse(node.value) == "self") == of_self]


def own_names(kind: ast.ClassDef) -> set[str]:
    """What a class defines itself: what it overrides or sets of aiohttp's is not its own."""
    functions = ast.FunctionDef, ast.AsyncFunctionDef
    own = {node.name for node in ast.walk(kind) if isinstance(node, functions)}
    own |= {node.attr for node in attributes(kind, of_self=True) if isinstance(node.ctx, ast.Store)}
    for base in map(ast.unparse, kind.bases):
        own -= set(dir(DERIVED_FROM.get(base)))
    return own


def used_in(path: Path) -> set[str]:
    """The names with one underscore that a module uses, and that no class of its own defines."""
    tree = ast.parse(path.read_text())
    used: set[str] = set()
    own = {"_replace"}  # of a NamedTuple, and documented
    for kind in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        used |= {node.attr for node in attributes(kind, of_self=True)} - own_names(kind)
        own |= own_names(kind)
    used |= {node.attr for node in attributes(tree, of_self=False)} - own
    return {name for name in used if name.startswith("_") and not name.startswith("__")}


def test_every_private_name_that_is_used_is_listed_and_no_other() -> None:
    """Two modules use some: what they do not define themselves must be aiohttp's."""
    used = {path.stem: names for path in MODULES if (names := used_in(path))}
    assert used.keys() == {"connection", "incoming"}
    assert set().union(*used.values()) == {name for names in PRIVATE_NAMES.values() for name in names}


def test_every_name_without_an_underscore_that_is_listed_is_used() -> None:
    """Somewhere in core/http, as an attribute, or overridden."""
    nodes = [node for path in MODULES for node in ast.walk(ast.parse(path.read_text()))]
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    used |= {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    assert {name for names in UNDOCUMENTED_NAMES.values() for name in names} <= used


@pytest.mark.parametrize("kind", HAVE_NAMES)
def test_what_is_listed_is_there(kind: str) -> None:
    """In the aiohttp that is installed, and the Python."""
    listed = {**PRIVATE_NAMES.get(kind, {}), **UNDOCUMENTED_NAMES.get(kind, {})}
    assert listed.keys() <= set(dir(HAVE_NAMES[kind]))


@pytest.mark.parametrize("name", READ)
def test_what_was_read_is_what_is_installed(name: str) -> None:
    """The source of what core/http goes by is that which was read when it was written."""
    kind, _, method = name.partition(".")
    read: Any = getattr(HAVE_NAMES[kind], method)
    if isinstance(read, property):
        read = read.fget
    source = inspect.getsource(read)
    digest = hashlib.sha256(source.encode()).hexdigest()[:16]
    assert digest in READ[name], (
        f"aiohttp {aiohttp.__version__} has another {name}: read what has changed, see whether "
        f"core/http/incoming.py and connection.py still do what they should, and add {digest!r} to READ"
    )


async def test_the_buffer_for_tls_is_small() -> None:
    """asyncio makes one for each connection, of the size that core.http.connection sets."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    loop = asyncio.get_running_loop()
    protocol = SSLProtocol(loop, asyncio.Protocol(), context, loop.create_future(), server_side=True)
    assert len(protocol.get_buffer(-1)) == 32 * 1024
