"""The bearer token: where it comes from, and how a header is held against it. It is never logged, and never part of a Serve config.

environment variable or mounted file → bearer_token → client's header, service's `is_authorized`
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from proxymix.errors import UserError
from proxymix.service_config import ServiceConfig


def bearer_token(service: ServiceConfig) -> str | None:
    """The token in the environment variable or file that `service` names; None when it names none.

    Raises:
        UserError: the variable is not set, the file cannot be read, or it holds what a header cannot carry.
    """
    if service.token_file is not None:
        try:
            return _checked(Path(service.token_file).read_text(encoding="ascii").rstrip("\r\n"), "token_file", service.token_file)
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not ASCII"
            raise UserError(f"service.token_file: cannot read {service.token_file!r} ({reason}); mount the secret or remove the key") from error
    if service.token_env is None:
        return None
    token = os.environ.get(service.token_env)
    if not token:
        raise UserError(f"service.token_env: environment variable {service.token_env!r} is not set; export it or remove service.token_env")
    return _checked(token, "token_env", service.token_env)


def is_authorized(header: str, token: str) -> bool:
    """Whether an Authorization header carries `token`, in constant time, so that it cannot be guessed byte by byte from the delay."""
    scheme, _, given = header.partition(" ")
    return secrets.compare_digest(given.strip().encode(), token.encode()) and scheme.lower() == "bearer"


def _checked(token: str, key: str, origin: str) -> str:
    if not (token and token.isascii() and token.isprintable() and " " not in token):
        raise UserError(f"service.{key}: {origin!r} must hold printable ASCII without spaces or line ends; export it again")
    return token
