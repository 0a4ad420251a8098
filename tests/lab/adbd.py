"""A phone on loopback: speaks adb's protocol over TCP and runs the commands here. Run as a program: PORT FOLDER.

Streams, shell v2 with exit statuses and sync v1, as adb's documents and headers describe them; no authentication. The
folder stands for /data/local/tmp. Like the real daemon it leaves processes running that a client lost interest in.
If there is ``FOLDER/state``, it asks for a signature and takes none, as a phone whose owner did not allow.
"""

import asyncio
import os
import struct
import sys
from pathlib import Path

CNXN, OPEN, OKAY, CLSE, WRTE = (
    int.from_bytes(name, "little") for name in (b"CNXN", b"OPEN", b"OKAY", b"CLSE", b"WRTE")
)
AUTH = int.from_bytes(b"AUTH", "little")
LARGEST = 256 * 1024
BANNER = b"device::ro.product.name=loop;ro.product.model=Loop;ro.product.device=loop;features=shell_v2,cmd"


class Stream:
    """One of the streams of a connection: each write waits for the other side's OKAY."""

    def __init__(self, link, theirs: int, ours: int) -> None:
        self.link, self.theirs, self.ours = link, theirs, ours
        self.got, self.okay, self.buffer, self.open = asyncio.Queue(), asyncio.Event(), b"", True

    async def write(self, data: bytes) -> None:
        for at in range(0, len(data), LARGEST):
            if not self.open:
                raise EOFError
            self.okay.clear()
            self.link.send(WRTE, self.ours, self.theirs, data[at : at + LARGEST])
            await self.okay.wait()

    async def read(self, length: int) -> bytes:
        while len(self.buffer) < length:
            data = await self.got.get()
            if data is None:
                raise EOFError
            self.buffer += data
        taken, self.buffer = self.buffer[:length], self.buffer[length:]
        return taken

    def end(self) -> None:
        self.open = False
        self.okay.set()
        self.got.put_nowait(None)


class Link:
    """A connection of an adb server."""

    def __init__(self, root: Path, reader, writer) -> None:
        self.root, self.reader, self.writer, self.streams, self.tasks = root, reader, writer, {}, set()

    def send(self, command: int, one: int, two: int, data: bytes = b"") -> None:
        head = struct.pack("<6I", command, one, two, len(data), sum(data) & 0xFFFFFFFF, command ^ 0xFFFFFFFF)
        self.writer.write(head + data)

    async def serve(self) -> None:
        try:
            while True:
                command, one, two, length, _, _ = struct.unpack("<6I", await self.reader.readexactly(24))
                self.take(command, one, two, await self.reader.readexactly(length) if length else b"")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        for stream in self.streams.values():
            stream.end()
        self.writer.close()

    def take(self, command: int, one: int, two: int, data: bytes) -> None:
        if command == CNXN:
            if (self.root / "state").exists():
                self.send(AUTH, 1, 0, b"0" * 20)
            else:
                self.send(CNXN, 0x01000000, LARGEST, BANNER)
        elif command == AUTH and one == 2:  # a signature by a key that the owner did not allow
            self.send(AUTH, 1, 0, b"1" * 20)
        elif command == OPEN:
            stream = self.streams[len(self.streams) + 1] = Stream(self, one, len(self.streams) + 1)
            self.send(OKAY, stream.ours, one)
            task = asyncio.create_task(self.provide(stream, data.rstrip(b"\0").decode()))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        elif two in self.streams and self.streams[two].open:
            stream = self.streams[two]
            if command == WRTE:
                stream.got.put_nowait(data)
                self.send(OKAY, two, one)
            elif command == OKAY:
                stream.okay.set()
            elif command == CLSE:
                stream.end()
                self.send(CLSE, two, one)

    async def provide(self, stream: Stream, service: str) -> None:
        kind, _, rest = service.partition(":")
        try:
            if kind == "sync":
                await sync(stream, self.root)
            elif kind.startswith("shell,v2"):
                await shell(stream, rest.replace("/data/local/tmp", str(self.root)))
        except EOFError:
            pass
        if stream.open:
            stream.end()
            self.send(CLSE, stream.ours, stream.theirs)


async def shell(stream: Stream, command: str) -> None:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        "/bin/sh", "-c", command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
    )

    async def pass_on(source, kind: int) -> None:
        while data := await source.read(1 << 16):
            await stream.write(struct.pack("<BI", kind, len(data)) + data)

    async def feed() -> None:
        try:
            while True:
                kind, length = struct.unpack("<BI", await stream.read(5))
                data = await stream.read(length)
                if kind == 0:
                    process.stdin.write(data)
                    await process.stdin.drain()
                elif kind == 4:
                    process.stdin.close()
        except (EOFError, ConnectionError):
            process.stdin.close()

    feeding = asyncio.create_task(feed())
    await asyncio.gather(pass_on(process.stdout, 1), pass_on(process.stderr, 2))
    code = await process.wait()
    await stream.write(struct.pack("<BIB", 3, 1, code & 255 if code >= 0 else 128 - code))
    feeding.cancel()


async def sync(stream: Stream, root: Path) -> None:
    while True:
        command, length = struct.unpack("<4sI", await stream.read(8))
        path = (await stream.read(length)).decode().replace("/data/local/tmp", str(root))
        if command == b"STAT":
            try:
                facts = os.lstat(path)
                found = facts.st_mode, facts.st_size, int(facts.st_mtime)
            except OSError:
                found = 0, 0, 0
            await stream.write(struct.pack("<4s3I", b"STAT", *found))
        elif command == b"SEND":
            await receive(stream, path.rpartition(",")[0])
        else:
            return


async def receive(stream: Stream, path: str) -> None:
    data, failed = b"", b""
    while True:
        kind, length = struct.unpack("<4sI", await stream.read(8))
        if kind != b"DATA":
            break
        data += await stream.read(length)
    try:
        Path(path).write_bytes(data)
    except OSError as error:
        failed = str(error).encode()
    await stream.write(struct.pack("<4sI", b"FAIL" if failed else b"OKAY", len(failed)) + failed)


async def main(port: int, root: Path) -> None:
    server = await asyncio.start_server(lambda r, w: Link(root, r, w).serve(), "127.0.0.1", port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), Path(sys.argv[2])))
