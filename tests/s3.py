"""A server that speaks S3 on this machine, and a way to it that can be cut."""

import contextlib
import logging
import os
import secrets
import socket
import threading
import time

BUCKET = "bench"


class Way:
    """A TCP proxy to a server: while it is cut, nobody answers at its port.

    pause: seconds before each piece of an answer is passed on. passed: bytes of answers so far.
    """

    def __init__(self, port):
        self.pause, self.passed = 0.0, 0
        self._server = port
        self._listener = self._open(0)
        self.port = self._listener.getsockname()[1]
        self._pairs = set()
        threading.Thread(target=self._accept, daemon=True).start()

    @staticmethod
    def _open(port):
        return socket.create_server(("127.0.0.1", port), backlog=64)

    def _accept(self):
        while True:
            listener = self._listener
            if listener is None:
                return
            try:
                client, _ = listener.accept()
            except OSError:
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self._server))
            except OSError:
                client.close()
                continue
            self._pairs.add((client, server))
            for ends in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._copy, args=ends, daemon=True).start()

    def _copy(self, source, target, answers):
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if answers:
                    time.sleep(self.pause)
                    self.passed += len(data)
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            source.close()

    def cut(self):
        """From now on the server is away."""
        listener, self._listener = self._listener, None
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for pair in self._pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        self._pairs = set()

    def mend(self):
        """From now on it is there again."""
        self._listener = self._open(self.port)
        threading.Thread(target=self._accept, daemon=True).start()


class Server:
    """A running server with one empty bucket."""

    def __init__(self):
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._moto.start()
        self.way = Way(self._moto.get_host_and_port()[1])
        self.client().create_bucket(Bucket=BUCKET)

    @property
    def environment(self):
        """What a process needs in its environment to find the server."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.way.port}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def uri(self):
        """A new place for a store."""
        return f"s3://{BUCKET}/{secrets.token_hex(4)}"

    def client(self):
        """A plain client, which passes keys on as they are."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.way.port}",
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
            region_name="us-east-1",
        )

    def stop(self):
        self._moto.stop()


@contextlib.contextmanager
def server():
    """A server, and this process's environment set so that it is found."""
    import s3fs

    running = Server()
    # One that was there before had another address, which s3fs would go on with.
    s3fs.S3FileSystem.clear_instance_cache()
    before = {name: os.environ.get(name) for name in running.environment}
    os.environ.update(running.environment)
    try:
        yield running
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        running.stop()
