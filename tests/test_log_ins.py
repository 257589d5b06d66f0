"""How log-ins are counted, by what came of them."""

import base64
from collections import Counter

import pytest

from core.auth.authentication import Authentication
from core.auth.login import Credentials, Login, Unanswered, WrongCredentials
from core.auth.rights import NO_RIGHTS, Rights
from core.counters import counters
from core.errors import Refused


class Somebody:
    """A provider of one user, who is asked for as "out" by those who get no answer."""

    name = "somebody"
    configured = True

    async def log_in(self, credentials: Credentials) -> Login | None:
        """Whether it is the one."""
        if credentials.user == "out":
            raise Unanswered("nobody answers")
        if credentials.password != "right":
            raise WrongCredentials
        return Login(self, credentials.user, NO_RIGHTS, None)

    def recall(self, credentials: Credentials) -> Login | None:  # noqa: ARG002
        """Nothing is remembered."""
        return None

    async def pretend(self, credentials: Credentials) -> None:
        """It takes no time at all."""

    def claims(self, user: str) -> bool:  # noqa: ARG002
        """No name is kept from others."""
        return False

    async def run(self) -> None:
        """There is nothing to do."""

    async def reload(self) -> None:
        """It has no file."""

    async def stop(self) -> None:
        """There is nothing to let go of."""

    def rights_by_now(self, login: Login) -> Rights | None:
        """As they were."""
        return login.rights


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """What is counted from now on."""
    monkeypatch.setattr(counters, "log_ins", Counter())
    return counters.log_ins


def basic(user: str, password: str) -> list[str]:
    """The header Authorization."""
    return [f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"]


@pytest.mark.parametrize("anonymous", [False, True])
async def test_log_ins_are_counted_by_result(counted: Counter[str], anonymous: bool) -> None:
    """Whether or not wrong credentials are an error. Who shows none does not log in."""
    authentication = Authentication([Somebody()], anonymous=anonymous)

    async def log_in(authorization: list[str]) -> Login | None:
        try:
            return await authentication.log_in(authorization, "127.0.0.1")
        except Refused:
            return None

    assert await log_in([]) is None
    assert not counted
    assert await log_in(basic("alice", "right"))
    assert await log_in(basic("out", "right")) is None
    assert await log_in(["no credentials"]) is None
    assert counted == {"right": 1, "unanswered": 1, "wrong": 1}
    for n in range(12):
        assert await log_in(basic("alice", f"wrong {n}")) is None
    assert counted == {"right": 1, "unanswered": 1, "wrong": 11, "too_many": 2}
