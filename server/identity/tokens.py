"""JSON Web Tokens of somebody else's making: who their bearer is, and whether they run the server."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import jwt

from server.errors import Unauthenticated
from server.identity.caller import LOCAL_OWNER, MAX_CHARACTERS, Caller, Role, is_name
from server.identity.published import KeysUnavailable, PublishedKeys

LEEWAY_SECONDS = 30
"""How far the clocks of two machines may differ."""

MAX_TOKEN_CHARACTERS = 16_384
ASYMMETRIC = ("RS256", "ES256")


@dataclass(frozen=True)
class Trust:
    """Whose tokens are taken: those signed with a shared secret, or with the published keys of an issuer.

    Attributes:
        secret: of at least 32 bytes, for HS256; empty when an issuer's keys are used.
        issuer: what `iss` must be; empty for any, where there is a secret.
        audience: what `aud` must be or hold; empty where tokens name none.
        jwks: where the issuer's keys are; empty to find it by OpenID Connect's discovery.
        operators: claims that make an operator, as pairs of a claim, dotted where it is nested, and a value.
    """

    secret: str = field(default="", repr=False)
    issuer: str = ""
    audience: str = ""
    jwks: str = ""
    operators: Sequence[tuple[str, str]] = ()


class Tokens:
    """Reads tokens."""

    def __init__(self, trust: Trust) -> None:
        self._trust = trust
        self._published = PublishedKeys(trust.issuer, trust.jwks)

    async def caller(self, token: str) -> Caller:
        """The bearer of a token.

        Raises:
            Unauthenticated: it was not made for this server, or is not valid any more.
        """
        try:
            return self._caller(await self._claims(token))
        except (jwt.PyJWTError, KeysUnavailable, ValueError, OverflowError, OSError) as error:
            raise Unauthenticated(f"This token is not accepted: {_reason(error)}.") from error

    def _caller(self, claims: Mapping[str, Any]) -> Caller:
        owner_id = claims["sub"]
        if not is_name(owner_id):
            raise jwt.InvalidTokenError(f"sub must have 1 to {MAX_CHARACTERS} characters, all of them printable")
        if owner_id == LOCAL_OWNER:
            raise jwt.InvalidTokenError(f"sub must not be {LOCAL_OWNER!r}, whose pictures are those of this machine")
        role = Role.OPERATOR if any(_has(claims, *wanted) for wanted in self._trust.operators) else Role.USER
        return Caller(owner_id, role, expires=datetime.fromtimestamp(int(claims["exp"]) + LEEWAY_SECONDS, UTC))

    async def _claims(self, token: str) -> dict[str, Any]:
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise jwt.InvalidTokenError("it is too long")
        trust = self._trust
        # The algorithm is ours to say, never the token's: one signed "none", or with a public key as a shared secret,
        # is refused.
        key: Any = trust.secret or await self._published.find(_key_id(token))
        required = ["exp", "sub", *(["iss"] if trust.issuer else []), *(["aud"] if trust.audience else [])]
        return jwt.decode(
            token,
            key,
            algorithms=["HS256"] if trust.secret else list(ASYMMETRIC),
            audience=trust.audience or None,
            # Google spells its own name both ways.
            issuer=[trust.issuer, trust.issuer.removeprefix("https://")] if trust.issuer else None,
            leeway=LEEWAY_SECONDS,
            options={"require": required},
        )


def _key_id(token: str) -> str:
    """Which of the issuer's keys a token names, if it can be one of the issuer's: nobody is asked for another."""
    header = jwt.get_unverified_header(token)
    if header.get("alg") not in ASYMMETRIC:
        raise jwt.InvalidAlgorithmError(f"alg must be {' or '.join(ASYMMETRIC)}")
    if not header.get("kid"):
        raise jwt.InvalidTokenError("its header must name a key, as kid")
    return str(header["kid"])


def _has(claims: Mapping[str, Any], claim: str, value: str) -> bool:
    """Whether a claim is this value or holds it. An e-mail address counts once its provider has verified it."""
    if claim == "email" and claims.get("email_verified") is not True:
        return False
    found: Any = claims
    for part in [claim] if claim in claims else claim.split("."):  # a name may hold dots itself, as an address does
        found = found.get(part) if isinstance(found, Mapping) else None
    return value in found if isinstance(found, list) else found == value


def _reason(error: Exception) -> str:
    """Why a token is refused, for the one who sent it: PyJWT's own words, but none of a network's."""
    if isinstance(error, KeysUnavailable):
        return "the keys of its issuer cannot be fetched now"
    if isinstance(error, jwt.PyJWTError):
        return str(error).rstrip(".")
    return "it cannot be read, or a time in it is out of range"  # dates raise all three, according to how far
