"""What a server's and an upstream's values must be beyond their types."""

import ipaddress
import os
import re
from urllib.parse import urlsplit

from tollway.reach import refusal_of_host
from tollway.settings.mistakes import wrong
from tollway.settings.tables import Server, Upstream
from tollway.settings.values import EMBEDDED, StoreAddress


def check_server(server: Server) -> None:
    address = server.database
    if address != StoreAddress("sqlite") and address.scheme not in ("postgresql", "postgres"):
        raise wrong(
            "server.database",
            'it is neither "sqlite" nor begins with postgresql://. Write it like '
            "postgresql://user:password@host/name, or refer to it with env:NAME or file:PATH",
        )
    if server.rate_store != StoreAddress("memory") and not _is_valkey(server.rate_store):
        raise wrong(
            "server.rate_store",
            'it is neither "memory" nor the address of a Valkey or Redis. Write it like '
            "valkey://host:6379/0, or refer to it with env:NAME or file:PATH",
        )
    for index, proxy in enumerate(server.trusted_proxies):
        try:
            ipaddress.ip_network(proxy)
        except ValueError as error:
            raise wrong(
                f"server.trusted_proxies[{index}]",
                f"{error}. Give an address such as 10.0.0.7 or a network such as 10.0.0.0/8",
            ) from None


def check_access_log(server: Server) -> None:
    """The data directory itself is made by a start."""
    folder = (server.data_dir / server.access_log).parent.resolve()
    if server.access_log in ("", "-") or folder == server.data_dir.resolve():
        return
    if not os.path.isdir(folder):  # unlike Path's, it takes a folder that is locked as none
        raise wrong(
            "server.access_log", f"there is no folder {folder}. Make it, or correct the path"
        )


def _is_valkey(address: StoreAddress) -> bool:
    parts = urlsplit(address.reveal())
    if address.scheme == "unix":
        return bool(parts.path) and not parts.hostname
    number = parts.path.removeprefix("/")
    known = address.scheme in ("valkey", "valkeys", "redis", "rediss")
    return known and bool(parts.hostname) and (not number or number.isdecimal())


def check_upstreams(upstreams: list[Upstream]) -> None:
    check_unique("upstreams", "name", [upstream.name for upstream in upstreams])
    for index, upstream in enumerate(upstreams):
        if upstream.name == EMBEDDED:
            raise wrong(
                f"upstreams[{index}].name",
                "`embedded` is the model that Tollway runs itself, and needs no declaration. "
                "Choose another name, or set what you want to change in [embedded]",
            )
        path = f"upstreams[{index}].base_url"
        _check_base_url(path, upstream.base_url)
        host = urlsplit(upstream.base_url).hostname or ""
        why = refusal_of_host(host, allow_link_local=upstream.allow_link_local)
        if why is not None:
            raise wrong(path, f"no upstream may be at {host}: {why}. Give its own address")
        _check_api_version(f"upstreams[{index}].api_version", upstream)
        if upstream.health_path is not None and not _is_path(upstream.health_path):
            raise wrong(
                f"upstreams[{index}].health_path",
                "it must begin with a slash and have no spaces, as /health does",
            )


def _is_path(text: str) -> bool:
    return text.startswith("/") and text.isascii() and text.isprintable() and " " not in text


def _check_api_version(path: str, upstream: Upstream) -> None:
    version = upstream.api_version
    if version is None:
        return
    if upstream.dialect != "azure":
        raise wrong(path, 'only Azure has one. Set dialect = "azure" with it, or leave it out')
    if re.fullmatch(r"[A-Za-z0-9.-]{1,64}", version) is None:
        raise wrong(path, "it is a date. Write it like 2024-10-21, or 2025-04-01-preview")


def _check_base_url(path: str, base_url: str) -> None:
    try:
        parts = urlsplit(base_url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise wrong(path, "this is no URL. Write it like https://gpu-1.example/v1") from None
    if not usable or not (base_url.isascii() and base_url.isprintable() and " " not in base_url):
        raise wrong(path, "it must start with http:// or https:// and name a host")
    if parts.query or parts.fragment or parts.username or parts.password:
        raise wrong(
            path, "it must have no user, password, query or fragment. A key goes to api_key"
        )
    if parts.path.rstrip("/").endswith("/chat/completions"):
        raise wrong(path, "/chat/completions is added to it. Leave that out")


def check_unique(section: str, key: str, values: list[str]) -> None:
    first: dict[str, int] = {}
    for index, value in enumerate(values):
        if value in first:
            raise wrong(
                f"{section}[{index}].{key}",
                f"{value!r} is taken by {section}[{first[value]}]. Each needs its own",
            )
        first[value] = index
