"""What the server and its plugins are made of. Knows no plugin, and aiohttp only in http/.

Four wings, of which each knows those below it, and all stand on what lies beside them. An event goes through
them from http to events, and out again by delivery.

http: the one wing that knows aiohttp

    http/server             listens: TCP, TLS, unix sockets, within the limits; the access log
    http/limits             how many connections there may be, in all and from one address
    http/tls                the server's certificate, and whom it believes those of clients
    http/unix_socket        sockets in the file system
    http/connection         aiohttp's connection, taken over: how requests are answered
    http/incoming           what comes over a connection, and what is held back of it
    http/heads              the head of a request: its size, its time, and what is said of a bad one
    http/chunked_body       a chunked body, held back until somebody asks for it
    http/private_names      what is private in aiohttp, and is used all the same
    http/plain_publish      which publishes are answered where they are read
    http/requests           a request's fields and its body, read and inflated within its limit
    http/answers            heads, CORS, refusals, what is held back
    http/refusals           what was refused, counted, and how much of it the log names
    http/stream             the connection of a subscriber, which is aiohttp's no more

delivery: an event's way out

    delivery/registry       the inverted index: which subscriptions want an event
    delivery/fanout         match, gather, write: one write to each subscriber in a turn of the event loop
    delivery/channel        those who get the same bytes, and the round that is being written to them
    delivery/subscriber     one reader: its bounded buffer, its writes, the slow consumer's end
    delivery/wire           the wire forms of a line
    delivery/catch_up       a subscriber's way from the backlog to live, and back when it falls behind

auth: who asks, and what they may

    auth/networks           networks, certificates, trusted proxies
    auth/web_pages          which web pages a browser may publish for
    auth/admission          who may publish on a path
    auth/login              credentials, and what a provider of users answers to them
    auth/authentication     from the header Authorization to a login
    auth/attempts           failed attempts to log in
    auth/fair_line          who waits for a thread that checks a log-in, and for how long
    auth/rights             what somebody may read and publish
    auth/rights_config      the same as the configuration files write it

events: an event's way in, and the order of events

    events/topics           a URL path -> the topics of an event
    events/subscription     a URL path -> what a subscriber asks for
    events/event            a payload, checked -> an event, and its line
    events/batch            many of them in one body
    events/turns            how those who bring many events share the server with everybody else
    events/waiting          what has been sent and is not published yet, bounded in bytes
    events/intake           the one door for events, whoever brings them
    events/idempotency      what was published before, so that nothing is published twice
    events/store            what a store of events is: it stamps, keeps, then delivers
    events/local_store      the order of events where one server makes it alone
    events/cursor           positions, cursors and timestamps
    events/replay           what a subscriber asks to have sent again, and what it can be promised
    events/selection        which events of a store a reader gets, and in which form

below all of them

    command_line            its options, and the event loop that they choose
    settings                pypubsub.yaml: its sections `server` and `clients`, and the file as a whole
    config                  from a YAML file to such sections, with errors that teach
    yaml_file               the values in such a file, which are bounded
    errors                  what can be refused, and what stops the start
    counters                what this process has done since its start, in numbers
    trouble                 what the log says of something that fails again and again
    expiring                a table that forgets
    logs                    the log, which waits for nobody who should read it
    signals                 what asks for a stop or a reload, passed on to the event loop
    standard_files          the descriptors 0, 1 and 2

Words that have one meaning here:

    payload       the publisher's JSON object; an *event* is the payload with its topics and its stamp
    opening       an event's line as far as it is known before the stamp; a *draft* is a path and an opening
    stamp         what a store gives an event: its position, its cursor and its timestamp
    position      the place in the order of all events: a number that only grows, private and public together
    cursor        a position as clients see it: a UUID (version 7) whose first 60 bits it is
    path          where an event is published: /fruits/apples; its *topics* are fruits and apples
    alternative   topics that an event must have all of; a *subscription* is met by any of its alternatives
    batch         events that are brought together, and follow one another with nothing in between
    segment       topics of private events that a user may read: of those that have all of them
    private       an event whose path begins with /private: only who may read it learns that it exists
    line, frame   an event as JSON on one line; the same as bytes on the wire, in one of the *wire forms*
    channel       the subscribers of the same subscription, rights and wire form, who get the same bytes
    round         what is written to a channel at a time, to all of its subscribers
    live, replay  events that come after a stream's head was sent; those before, from the backlog
    selection     what a reader of the backlog gets: by subscription, rights and wire form, as a channel live
    block         old events of a backlog's file, sealed together; the newest are *rows*
    history       a replay that has an end, and ends its stream
    behind        a subscriber who is too slow for live, and reads the backlog until it has caught up
    verdict       how much of a replay can be had, as X-Replay says it: complete, partial, unknown, none
    log-in        right credentials, with what their user may do; rights may change while a stream is open
"""

__version__ = "1.0.0"
