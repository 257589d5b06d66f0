"""Who may publish on a path, asked of the code itself: networks, certificates, proxies, pages, log-ins."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from multidict import CIMultiDict

from core.auth.admission import AccessControl
from core.auth.authentication import Authentication
from core.auth.login import WrongCredentials
from core.errors import Refused
from core.events.topics import publish_path
from core.settings import load
from daemon import basic
from directory import NoStreams
from plugins import sections
from plugins.acl.provider import AclFile
from plugins.acl.users import read_users

INSIDE, OUTSIDE, PROXY = "10.0.0.1", "192.0.2.1", "10.9.9.9"
CERTIFICATE = {"subject": ((("commonName", "builds"),),)}
ALICE = basic("alice")
BOB = basic("bob")
ACL: dict[str, Any] = {
    "alice": {"password": "secret", "acl": {"all": "all"}, "topics": ["votes"]},
    "bob": {"password": "secret", "acl": {"git": ["git"]}},
}


class Rules:
    """An AccessControl by such files, whose ACL file may be changed and read again."""

    def __init__(self, directory: Path) -> None:
        self.acl_path = directory / "acl.yaml"
        self.acl_path.write_text(yaml.safe_dump(ACL))
        settings = directory / "pypubsub.yaml"
        tls = {"cert": "c.pem", "key": "k.pem", "client_ca": "ca.pem"}
        server = {"trusted_proxies": [PROXY], "cors_origins": ["https://listed.example"], "tls": tls}
        clients = {"payloaders": ["10.0.0.0/24"], "payloader_certs": ["builds"], "secure_topics": ["votes"]}
        settings.write_text(yaml.safe_dump({"server": server, "clients": clients}))
        self.users = AclFile(self.acl_path, read_users(self.acl_path), NoStreams())
        authentication = Authentication([self.users], anonymous=False)
        self.access = AccessControl(load(settings, sections()), authentication)

    async def publish(
        self, path: str, peer: str | None, certificate: Any = None, **headers: str
    ) -> tuple[str, str | None]:
        """Who publishes: the name that it counts by, and the user."""
        sent = CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()})
        asker = self.access.asker(peer, sent)
        name, login = await self.access.authorize(asker, sent, certificate, publish_path(path))
        return name, login.user if login else None


@pytest.fixture
def rules(tmp_path: Path) -> Rules:
    """The rules of this file."""
    return Rules(tmp_path)


async def test_who_is_in_a_network_may_publish(rules: Rules) -> None:
    """By the peer's address; whatever credentials come with it are not looked at."""
    assert await rules.publish("/a", INSIDE) == (INSIDE, None)
    assert await rules.publish("/a", INSIDE, Authorization="nonsense") == (INSIDE, None)
    for peer in (OUTSIDE, None, "unix"):
        with pytest.raises(Refused, match="may not publish here") as refused:
            await rules.publish("/a", peer)
        assert refused.value.status == 403


async def test_a_certificate_speaks_for_its_own_peer(rules: Rules) -> None:
    """And not for those for whom a proxy speaks."""
    assert await rules.publish("/a", OUTSIDE, CERTIFICATE) == (OUTSIDE, None)
    assert await rules.publish("/a", PROXY, CERTIFICATE) == (PROXY, None)
    with pytest.raises(Refused, match=f"{OUTSIDE} may not publish"):
        await rules.publish("/a", PROXY, CERTIFICATE, X_Forwarded_For=OUTSIDE)
    with pytest.raises(Refused, match="may not publish"):
        await rules.publish("/a", OUTSIDE, {"subject": ((("commonName", "others"),),)})


async def test_a_proxy_is_believed_if_it_is_trusted(rules: Rules) -> None:
    """The address that it names counts; of anybody else the header is nothing."""
    assert await rules.publish("/a", PROXY, X_Forwarded_For=INSIDE) == (INSIDE, None)
    with pytest.raises(Refused):
        await rules.publish("/a", OUTSIDE, X_Forwarded_For=INSIDE)
    with pytest.raises(Refused, match="an unknown address may not publish"):
        await rules.publish("/a", PROXY, X_Forwarded_For="unknown")


async def test_the_log_names_both_ends_of_a_proxied_request(rules: Rules) -> None:
    """The address, and the peer that it came by."""

    def shown(peer: str | None, **headers: str) -> str | None:
        return rules.access.asker(
            peer, CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()})
        ).shown

    assert shown(INSIDE) == INSIDE
    assert shown(None) is None
    assert shown(PROXY, X_Forwarded_For=OUTSIDE) == f"{OUTSIDE} via {PROXY}"
    assert shown(PROXY, X_Forwarded_For="?") == f"an unknown address via {PROXY}"


async def test_a_secure_topic_needs_a_user_with_a_right_to_it(rules: Rules) -> None:
    """From wherever: a network gives no right to it, and a user with the right needs no network."""
    assert await rules.publish("/votes/1", OUTSIDE, **ALICE) == ("file alice", "alice")
    for headers, status in (({}, 401), (BOB, 403), (basic("alice", "wrong"), 401)):
        with pytest.raises(Refused) as refused:
            await rules.publish("/a/votes", INSIDE, **headers)
        assert refused.value.status == status


async def test_a_page_of_another_site_may_not_publish(rules: Rules) -> None:
    """A browser says where it comes from, before anything else counts."""
    with pytest.raises(Refused, match="another site"):
        await rules.publish("/a", INSIDE, Origin="https://evil.example", Host="10.0.0.5:2069")
    listed = {"Origin": "https://listed.example", "Host": "10.0.0.5:2069"}
    assert await rules.publish("/a", INSIDE, **listed) == (INSIDE, None)


async def test_rights_that_are_taken_away_are_gone_at_once(rules: Rules) -> None:
    """For a log-in that was right before: to publish, and to read what is private."""
    sent = CIMultiDict(ALICE)
    login = await rules.access.log_in(rules.access.asker(OUTSIDE, sent), sent)
    assert login
    rules.access.check_rights(login, publish_path("/votes"))
    assert rules.access.rights_by_now(login).readable
    assert not rules.access.rights_by_now(None).readable
    rules.acl_path.write_text(yaml.safe_dump({"alice": {"password": "secret", "acl": {}}}))
    await rules.users.reload()
    with pytest.raises(Refused, match="no right to publish on votes"):
        rules.access.check_rights(login, publish_path("/votes"))
    assert not rules.access.rights_by_now(login).readable
    rules.acl_path.write_text("{}")
    await rules.users.reload()
    with pytest.raises(WrongCredentials):
        rules.access.rights_by_now(login)
