"""What the server and its plugins both have to name. No plugin, and no aiohttp but in http.

An event runs through these modules in this order:

    listening       what is accepted, within the limits, TLS or not
    http            aiohttp's connections, and what of a request has nothing to do with events
    access          who is asking: networks, certificates, trusted proxies
    web_pages       which web pages a browser may publish for
    authentication  who they are: from the header Authorization to a login
    quick           which publishes are answered where they are read, without aiohttp's machinery
    topics          a URL path -> the topics of a publish, or a Subscription
    fields          header fields and query keys: their number and their names
    body            a body, inflated within its limit
    event           a payload -> an Event, with its bytes for each wire form
    turns           how those who bring many events share the server with everybody else
    intake          the one door: events are stamped, in order, and handed to the store
    cursor          the position (and time) that an event gets when it is published
    store           where it goes before it goes out: kept in memory, in a file, or not at all
    fanout          on its way to the subscribers: one write to each in a turn of the event loop
    registry        the topic index: which of them want this event
    stream          the connection of a reader, which is aiohttp's no more
    subscriber      one reader: its bounded queue, its writes, the end of its stream
    framing         the wire forms of a line

Beside that road:

    replay          what a subscriber asks to have sent again, and what it can be promised
    following       a subscriber's way from the backlog to the live events, and back when it falls behind
    recent          the newest events, in memory
    ages            how old they are, by a clock that nobody sets
    waiting         what has been sent and is not published yet, bounded in bytes
    idempotency     what was published before: answers for publishers who ask twice, items of queues
    login           credentials, and what a provider of users answers to them
    attempts        failed attempts to log in
    fair_line       who waits for a thread that checks a log-in, and for how long
    connections     how many there may be, in all and from one address
    refusals        what was refused, counted
    log_line        a line of the log stays one line
    rights          what somebody may see and say
    grants          rights as the configuration files write them
    expiring        a table that forgets
    trouble         what the log says of something that fails again and again
    settings        pypubsub.yaml, and its sections `server` and `clients`
    sqs_settings    its section `sqs`
    signals         what asks for a stop or a reload, passed on to the loop
    logs            the log, which waits for nobody who should read it
    standard_files  the descriptors 0, 1 and 2
    unix_socket     sockets in the file system
    tls             the server's certificate, and whom it believes those of clients
    config          reading a YAML file into such sections, with errors that teach
    yaml_file       the values in such a file, which are bounded
    errors          what can be refused, and what stops the start
"""

__version__ = "1.0.0"
