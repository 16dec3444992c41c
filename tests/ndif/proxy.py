"""A way to a server that fails: connections are cut when their first answer is on its way."""

import socket
import struct
import threading
from contextlib import suppress


class Proxy:
    """Passes connections on to a port of loopback, and cuts those that ask for jobs.

    Of every six that bring a request or ask for a job, five are cut: the server gets what was sent,
    and its answer is lost, now with a reset and now with an end.

    Parameters
    ----------
    port : int
        Port of the server.
    """

    CUTS = 5

    def __init__(self, port: int) -> None:
        self._port = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.cut = 0
        """How many connections were cut."""
        self.sent = 0
        """How many requests were passed on."""
        self._asked = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._port)) as server:
            first = client.recv(2**16)
            doomed = False
            if first.startswith((b"POST /request", b"GET /response")):
                self._asked += 1
                doomed = self._asked % (self.CUTS + 1) != 0
            self._note(first)
            server.sendall(first)
            back = threading.Thread(target=self._answer, args=(server, client, doomed), daemon=True)
            back.start()
            with suppress(OSError):
                while data := client.recv(2**16):
                    self._note(data)
                    server.sendall(data)
            back.join(10)

    def _note(self, data: bytes) -> None:
        self.sent += data.startswith(b"POST /request")

    def _answer(self, server: socket.socket, client: socket.socket, doomed: bool) -> None:
        with suppress(OSError):
            while data := server.recv(2**16):
                if doomed:
                    self.cut += 1
                    # Linger for no time: what is sent is not an end, but a reset.
                    linger = struct.pack("ii", self.cut % 2, 0)
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    break
                client.sendall(data)
            client.shutdown(socket.SHUT_RD)
            client.close()
