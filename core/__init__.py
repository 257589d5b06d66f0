"""What the server and its plugins both have to name. No plugin, and no aiohttp but in http/.

Four wings, of which each knows those behind it: http, delivery (the way out), auth, events (the way in).
What all of them stand on lies beside them.

An event runs through these modules in this order:

    http/server             what is accepted, within the limits, TLS or not
    http/incoming           what comes over aiohttp's connections, and what is held back of it
    http/connection         aiohttp's connections, and what of a request has nothing to do with events
    http/heads              the head of a request: its size, its time, and what is said of a bad one
    http/chunked_body       a chunked body, held back until somebody asks for it
    auth/networks           who is asking: networks, certificates, trusted proxies
    auth/web_pages          which web pages a browser may publish for
    auth/authentication     who they are: from the header Authorization to a login
    http/plain_publish      which publishes are answered where they are read, without aiohttp's machinery
    events/topics           a URL path -> the topics of a publish
    events/subscription     a URL path -> what a subscriber asks for
    http/fields             header fields and query keys: their number and their names
    http/body               a body, inflated within its limit
    events/event            a payload -> an Event, with its bytes for each wire form
    events/turns            how those who bring many events share the server with everybody else
    events/intake           the one door for events, whoever brings them: it hands them to the store
    events/cursor           the position (and time) that an event gets when it is published
    events/store            where it gets its stamp and goes before it goes out: memory, a file, or nowhere
    events/local_store      the order of events where one server makes it alone, for all stores of its own
    delivery/fanout         on its way to the subscribers: one write to each in a turn of the event loop
    delivery/registry       the topic index: which of them want this event
    delivery/channel        those who get the same bytes, and what is pending and being written for them
    http/stream             the connection of a reader, which is aiohttp's no more
    delivery/subscriber     one reader: its bounded queue, its writes, the end of its stream
    delivery/wire           the wire forms of a line

Beside that road:

    events/replay           what a subscriber asks to have sent again, and what it can be promised
    delivery/catch_up       a subscriber's way from the backlog to live, and back when it falls behind
    events/waiting          what has been sent and is not published yet, bounded in bytes
    events/idempotency      what was published before: answers for publishers who ask twice, items of queues
    auth/login              credentials, and what a provider of users answers to them
    auth/attempts           failed attempts to log in
    auth/fair_line          who waits for a thread that checks a log-in, and for how long
    http/limits             how many there may be, in all and from one address
    http/private_names      what is private in aiohttp, and is used all the same
    http/refusals           what was refused, counted
    log_line                a line of the log stays one line
    auth/rights             what somebody may see and say
    auth/rights_config      rights as the configuration files write them
    counters                what this process has done since its start, in numbers
    expiring                a table that forgets
    trouble                 what the log says of something that fails again and again
    settings                pypubsub.yaml, and its sections `server` and `clients`
    sqs_settings            its section `sqs`
    signals                 what asks for a stop or a reload, passed on to the loop
    logs                    the log, which waits for nobody who should read it
    standard_files          the descriptors 0, 1 and 2
    http/unix_socket        sockets in the file system
    http/tls                the server's certificate, and whom it believes those of clients
    config                  reading a YAML file into such sections, with errors that teach
    yaml_file               the values in such a file, which are bounded
    errors                  what can be refused, and what stops the start
"""

__version__ = "1.0.0"
