"""What the server and its plugins both have to name. No plugin, no aiohttp; no I/O but a subscriber's socket.

An event runs through these modules in this order:

    access      who is asking: networks, trusted proxies, cross-site requests
    topics      a URL path -> the topics of a publish, or a Subscription
    event       a body -> payloads -> an Event, with its bytes for each wire form
    cursor      the position (and time) that an event gets when it is published
    registry    the topic index: which channels of subscribers want this event
    subscriber  one reader: its bounded queue, its writes, the end of its stream
    framing     the wire forms of a line

Beside that road:

    replay       what a subscriber asks to have sent again
    idempotency  the answers remembered for publishers who ask twice
    settings     the sections `server` and `clients` of pypubsub.yaml
    tls          the server's certificate
    config       reading a YAML file into such sections, with errors that teach
    errors       what can be refused, and what stops the start
"""

__version__ = "1.0.0"
