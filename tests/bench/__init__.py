"""What the daemon costs, in figures, beside a bare asyncio server that does the least that could be done.

    make bench                                              # all of the usual ones, about a minute
    .venv/bin/python tests/bench fanout match --rounds 15   # some of them, with more rounds
    .venv/bin/python tests/bench --out now.json             # the figures as a file
    .venv/bin/python tests/bench --compare before.json now.json

Daemon and reference share the first CPU and take turns in short rounds, so that noise hits both;
subscribers and publishers have the last one. A ratio is the median of the rounds' own ratios. Linux only.

command_line.py     what is asked for; the list of measurements
servers.py          the daemon and the reference as processes: their CPU time and memory
reference.py        the reference
clients.py          subscribers and publishers, who check what they get
readers.py          readers in a process of their own
rounds.py           both sides in turn, and what of a round is a figure
figures.py          figures and their ratios
results.py          figures as a file, and two of them compared
fanout.py, publish.py, durable.py, match.py, tls.py, idle.py, replay.py, stalled.py, beside.py, sqs.py
                    the measurements
"""
