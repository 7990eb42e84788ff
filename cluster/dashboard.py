"""Where a Ray cluster's dashboard is, which takes jobs: its address, whether it answers and whom,
and the files of Ray's logs that it hands out."""

import ipaddress
import json
import os
from collections.abc import Mapping
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode, urlsplit
from urllib.request import Request, urlopen

from manyfaces.configs.errors import UserError

LOCAL = "http://127.0.0.1:8265"
TIMEOUT_S = 5
GCS_PORT = 6379  # of `ray start`, where nodes join
TOKEN_REMEDY = (
    "set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file with it, as `ray get-auth-token` prints "
    "it on the head node"
)


class _LateError(UserError):
    """There is no answer within the time for it."""


def dashboard_address(given: str | None, environment: Mapping[str, str] = os.environ) -> str:
    """The dashboard's URL. Raises `UserError` for what is none. Order of precedence:

    1. what a person gave;
    2. RAY_API_SERVER_ADDRESS, which Ray's own job commands read;
    3. RAY_ADDRESS;
    4. this machine's.
    """
    told = f"--address {given}"
    address = given
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        if address is None and (address := environment.get(name) or None):
            told = f"{name} {address}"
    if address is None:
        return LOCAL
    scheme, host, port = _parts(address)
    if not scheme and host and port != GCS_PORT:
        raise UserError(f"{told}: the scheme is missing; give --address http://{address}")
    if scheme not in ("http", "https") or not host or port == GCS_PORT:
        joins = f" ({GCS_PORT} is the port where nodes join)" if port == GCS_PORT else ""
        raise UserError(
            f"{told}: is not a dashboard's address{joins}; give --address "
            f"http://{host or 'HOST'}:8265, as `ray start --head` prints it"
        )
    return address.rstrip("/")


def _parts(address: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port of an address; no host where it cannot be read."""
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        return parts.scheme, parts.hostname, parts.port
    except ValueError:
        return "", None, None


def ray_version(address: str) -> str:
    """The version of Ray whose dashboard answers there, within seconds. Raises `UserError` where
    none does."""
    told = _get(address, "/api/version")
    if not isinstance(told, dict) or not isinstance(told.get("ray_version"), str):
        raise UserError(
            f"{address}: something answers there, but not a Ray dashboard; `ray start --head` "
            "prints the dashboard's address"
        )
    return str(told["ray_version"])


def token(environment: Mapping[str, str] = os.environ) -> str | None:
    """The token that this machine has for clusters. None where there is none, or RAY_AUTH_MODE says
    that none is to be shown."""
    return _token(environment)[0]


def _token(environment: Mapping[str, str]) -> tuple[str | None, str]:
    """The token, and where it stands, looked for where Ray's own commands do: in RAY_AUTH_TOKEN, in
    the file of RAY_AUTH_TOKEN_PATH, in ~/.ray/auth_token."""
    if environment.get("RAY_AUTH_MODE", "token").lower() != "token":
        return None, f"RAY_AUTH_MODE is {environment['RAY_AUTH_MODE']}, so that none is shown"
    if "RAY_AUTH_TOKEN" in environment:
        return environment["RAY_AUTH_TOKEN"].strip(), "RAY_AUTH_TOKEN"
    given = environment.get("RAY_AUTH_TOKEN_PATH")
    file = Path(given or Path.home() / ".ray" / "auth_token")
    where = f"RAY_AUTH_TOKEN_PATH, {file}" if given else str(file)
    if not file.is_file():
        return None, f"none is here: {where} does not exist" if given else "none is here"
    return file.read_text().strip(), where


def open_line(address: str) -> str | None:
    """What a person is warned of where other machines may reach the dashboard and it asks nobody
    for a token; None where it does, or is this machine's alone."""
    host = _parts(address)[1] or ""
    if host == "localhost" or _is_loopback(host):
        return None
    told = _get(address, "/api/authentication_mode")
    if isinstance(told, dict) and told.get("authentication_mode") == "token":
        return None
    return (
        f"{address} asks for no token: whoever reaches it runs what they like on the cluster; "
        "start Ray with RAY_AUTH_MODE=token, and keep its ports on a private network"
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_log(address: str, node: str, name: str, lines: int = -1) -> str | None:
    """The last so many lines, or all, of a file in the folder of Ray's logs on the node of this id;
    None where there is none, or the node is gone or late. Raises `UserError` where no dashboard
    answers."""
    query = {"node_id": node, "filename": name, "lines": lines, "timeout": TIMEOUT_S - 1}
    try:
        body = _read(address, f"/api/v0/logs/file?{urlencode(query)}")
    except _LateError:
        return None
    return None if body is None else body.decode(errors="replace")


def _get(address: str, path: str) -> Any:
    """What is at this path of the dashboard, read as JSON; None where it is not JSON."""
    body = _read(address, path)
    try:
        return json.loads(body or b"")
    except ValueError:
        return None


def _read(address: str, path: str) -> bytes | None:
    """What is at this path of the dashboard; None where nothing is."""
    shown, where = _token(os.environ)
    headers = {"Authorization": f"Bearer {shown}"} if shown else {}
    try:
        with urlopen(Request(address + path, headers=headers), timeout=TIMEOUT_S) as answer:
            return bytes(answer.read())
    except HTTPError as error:
        if error.code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            has = f"this is not it: {where}" if shown else where
            raise UserError(
                f"{address}: the cluster wants a token, and {has}; {TOKEN_REMEDY}"
            ) from error
        return None
    except HTTPException:  # what answers speaks another protocol
        return None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        is_late = isinstance(reason, TimeoutError)
        told = f"no answer within {TIMEOUT_S} s" if is_late else str(reason)
        raise (_LateError if is_late else UserError)(
            f"{address}: no Ray dashboard answers there ({told}); start one by `ray start --head`, "
            "or give --address http://HOST:8265"
        ) from error
