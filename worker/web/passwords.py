"""Passwords and tokens: argon2id for what people remember, SHA-256 for what is random."""

import hashlib
import secrets
import threading

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

SHORTEST, LONGEST = 12, 1024  # characters of a password
_HASHER = PasswordHasher()  # RFC 9106's second choice: 64 MiB, three passes
_TURNS = threading.BoundedSemaphore(2)  # each costs 64 MiB: a crowd at the door must not cost the machine's memory
_NOBODYS = _HASHER.hash(secrets.token_hex())


class WeakPassword(ValueError):
    """A password that is too short or too long; the text says which."""


def password_hash(password: str) -> str:
    """The argon2id hash of a password, as the database keeps it. Raises WeakPassword."""
    if not SHORTEST <= len(password) <= LONGEST:
        raise WeakPassword(f"a password has {SHORTEST} to {LONGEST} characters; several words make a good one")
    with _TURNS:
        return _HASHER.hash(password)


def is_password(password: str, kept: str | None) -> bool:
    """Whether this is the password; as slow for a user who has none, so that time tells nobody which names exist."""
    with _TURNS:
        try:
            return _HASHER.verify(kept or _NOBODYS, password[:LONGEST]) and kept is not None
        except (VerificationError, InvalidHashError):
            return False


def new_token() -> str:
    """A token that nobody can guess."""
    return secrets.token_urlsafe(32)


def digest_of(token: str) -> str:
    """The SHA-256 of a token in hexadecimal, as the database keeps it."""
    return hashlib.sha256(token.encode()).hexdigest()
