"""Plugins: what hangs off the server object. None is there yet.

Each plugin will own one section of pypubsub.yaml. Until it is there, its section is accepted, so that the
configuration of a PyPubSub 0.7 works unchanged, and is reported at the start as having no effect.
"""

SECTIONS_WITHOUT_EFFECT = (
    ("server", "backlog"),
    ("clients", "ldap"),
    ("sqs",),
)
