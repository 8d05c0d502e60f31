"""The key-value stores by which agents and ranks find each other: a file on one machine, TCP between several.

Whoever can connect to a TCPStore can run code here, as PyTorch unpickles what it finds in it, and PyTorch's own servers
listen on every address. On one machine nothing listens; between several, only the address that faces them.
"""

import os
import socket
from datetime import timedelta
from pathlib import Path

from torch.distributed import FileStore, Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters, rendezvous_handler_registry
from torch.distributed.elastic.rendezvous.api import RendezvousConnectionError
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import create_handler

RENDEZVOUS = "bintally"  # name of the handler below
FOLDER_VARIABLE = "BINTALLY_STORES"  # in the environment of the ranks: the folder of their stores on one machine


def tcp_store(host: str, port: int, is_host: bool, timeout: timedelta, world_size: int | None = None) -> TCPStore:
    """Connect to the store at (host, port), and serve it at that address alone if ``is_host``.

    Raises OSError if the address cannot be listened on, torch's DistError if the store does not answer in time.
    """
    listener = socket.create_server((host, port)).detach() if is_host else None
    return TCPStore(host, port, world_size, is_host, timeout, multi_tenant=True, master_listen_fd=listener)


def rank_store(world_size: int, timeout: timedelta) -> Store:
    """The store of the ranks that an agent started at the same time; one store for each start."""
    start = os.environ["TORCHELASTIC_RESTART_COUNT"]
    if folder := os.environ.get(FOLDER_VARIABLE):
        return FileStore(str(Path(folder) / f"ranks-{start}"), world_size)
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return tcp_store(address, port, os.environ["RANK"] == "0", timeout, world_size)


class _Backend(C10dRendezvousBackend):
    @property
    def name(self) -> str:
        return RENDEZVOUS


def _create_handler(parameters: RendezvousParameters) -> RendezvousHandler:
    """torchrun's c10d rendezvous with a store of this module: at host:port, or in a file if the endpoint is a path."""
    store: Store
    if parameters.endpoint.startswith("/"):
        store = FileStore(parameters.endpoint)
    else:
        host, port = parameters.endpoint.split(":")
        timeout = timedelta(seconds=parameters.config["read_timeout"])
        try:
            store = tcp_store(socket.gethostbyname(host), int(port), parameters.config["is_host"], timeout)
        except (OSError, RuntimeError) as error:
            raise RendezvousConnectionError(str(error)) from error
    return create_handler(store, _Backend(store, parameters.run_id), parameters)


rendezvous_handler_registry.register(RENDEZVOUS, _create_handler)
