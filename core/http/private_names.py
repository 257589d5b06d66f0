"""What core/http uses of aiohttp and asyncio though it is private, or not documented: names, and what for.

aiohttp has no way to answer a request where it is read, to hand its connection over, to say in our words what
is wrong with a head, or to hold a body back. What it does between was read from the versions named here.
tests/test_private_names.py fails when other names are used, when one is gone, and when what was read is not
what is installed.
"""

READ_FROM = {"aiohttp": "3.14.5", "Python": "3.11 and 3.13"}

# by the class that has them
PRIVATE_NAMES = {
    "RequestHandler": {
        "_keepalive": "whether an idle connection stays open: no, while a head is to come",
        "_keepalive_handle": "the timer that closes an idle connection",
        "_logging_enabled": "whether there is an access log: plain publishes go the long way then",
        "_max_msg_queue_size": "how many requests may wait before no more is read",
        "_messages": "requests, with their bodies, that wait for aiohttp's task",
        "_msg_queue_resume_size": "how many may be left when it is read on",
        "_next_keepalive_close_time": "when an idle connection is closed",
        "_process_keepalive": "closes an idle connection: not one whose publish is being stored",
        "_request_count": "how many requests have come: whether there was one in what was parsed",
        "_waiter": "wakes aiohttp's task; hidden while it is parsed, lest a plain publish wakes it",
    },
    "BaseProtocol": {
        "_buffer_paused": "whether nothing is read because of too many requests",
        "_loop": "the event loop",
        "_parser": "the parser, None when the connection is lost",
        "_pause_transport_reading": "pauses the socket, paused or not",
        "_reading_paused": "whether nothing is read because of a body that is not read",
        "_resume_transport_reading": "reads on, paused or not",
        "_upgraded": "whether the last request asked for another protocol, after which nothing is parsed",
    },
    "BaseRequest": {"_cache": "where the version is kept that an answer is written for"},
}

# without an underscore, and not documented either
UNDOCUMENTED_NAMES = {
    "RequestHandler": {
        "close": "ends the connection behind the answer that is under way",
        "finish_response": "sends an answer",
        "force_close": "ends the connection now",
        "handle_error": "answers what could not be parsed",
        "keep_alive": "stops the timer that closes an idle connection",
    },
    "BaseProtocol": {
        "resume_reading": "is called after every read of a body",
        "writing_paused": "whether the socket takes no more",
    },
    "Server": {
        "pre_shutdown": "closes idle connections",
        "shutdown": "closes all, and cancels what is not answered in time",
    },
    "HttpRequestParser": {
        "message_consumed": "makes room for one more request",
        "set_upgraded": "has it parse on behind a request to upgrade",
    },
    "StreamReader": {
        "feed_data": "writes to a body",
        "feed_eof": "ends a body",
        "set_exception": "breaks a body",
        "total_bytes": "how much of a body has come",
    },
    "SSLProtocol": {"max_size": "the size of the buffer that TLS is read into, for each connection"},
}
