"""python3 peers.py NAME: drives a client from Debian, as peers.mjs does."""

import asyncio
import base64
import json
import sys
from urllib.parse import quote


def emit(**line):
    print(json.dumps(line), flush=True)


def headers(command):
    accept = {"Accept": "text/event-stream"}
    return accept | ({"Last-Event-ID": command["lastID"]} if command["lastID"] else {})


async def decode(lines):
    """Emits the events of a stream, whose lines end with LF or nothing."""
    name, id, data, opened = "", "", [], False
    async for line in lines:
        if not opened:
            emit(kind="open")
            opened = True
        field, _, value = line.rstrip("\n").partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "id":
            id = value
        elif field == "data":
            data.append(value)
        elif line.rstrip("\n") == "":
            if data:
                emit(kind="event", name=name or "message", id=id, data="\n".join(data))
            name, data = "", []


async def httpx(command):
    import httpx

    async with httpx.AsyncClient(timeout=None) as client:
        async with client.stream("GET", command["url"], headers=headers(command)) as response:
            response.raise_for_status()
            await decode(response.aiter_lines())


async def aiohttp_stream(command):
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(timeout=timeout, raise_for_status=True) as session:
        async with session.get(command["url"], headers=headers(command)) as response:
            await decode(line.decode() async for line in response.content)


async def curl(command):
    args = [f"-H{name}: {value}" for name, value in headers(command).items()]
    process = await asyncio.create_subprocess_exec(
        "curl", "--no-buffer", "--silent", "--fail", *args, command["url"],
        stdout=asyncio.subprocess.PIPE, limit=1 << 20,
    )
    await decode(line.decode() async for line in process.stdout)
    raise ConnectionError(f"exit status {await process.wait()}")


def stream(read):
    async def run(command, _):
        error = ""
        try:
            await read(command)
        except Exception as err:
            error = str(err)
        emit(kind="end", error=error)

    return run


def with_id(command):
    id = command["lastID"]
    return command["url"] + ("&lastEventId=" + quote(id, safe="") if id else "")


async def websockets(command, sends):
    import websockets

    try:
        ws = await websockets.connect(with_id(command), subprotocols=command.get("protocols"))
    except Exception as err:
        emit(kind="end", error=str(err))
        return

    async def send():
        while True:
            await ws.send(await sends.get())

    emit(kind="open", protocol=ws.subprotocol or "")
    sending = asyncio.create_task(send())
    try:
        async for data in ws:
            emit_message(data)
    except websockets.ConnectionClosed:
        pass
    sending.cancel()
    emit(kind="end", code=ws.close_code, reason=ws.close_reason)


async def aiohttp_socket(command, sends):
    import aiohttp

    async with aiohttp.ClientSession() as session:
        try:
            ws = await session.ws_connect(with_id(command), protocols=command.get("protocols") or (), compress=15)
        except Exception as err:
            emit(kind="end", error=str(err))
            return

        async def send():
            while True:
                data = await sends.get()
                await (ws.send_str if isinstance(data, str) else ws.send_bytes)(data)

        emit(kind="open", protocol=ws.protocol or "")
        sending = asyncio.create_task(send())
        reason = ""
        while True:
            message = await ws.receive()
            if message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                emit_message(message.data)
                continue
            if message.type == aiohttp.WSMsgType.CLOSE:
                reason = message.extra
            break
        sending.cancel()
        emit(kind="end", code=ws.close_code, reason=reason)


def emit_message(data):
    binary = isinstance(data, bytes)
    emit(kind="event", binary=binary, data=base64.b64encode(data).decode() if binary else data)


async def main():
    run = {
        "httpx": stream(httpx),
        "aiohttp": stream(aiohttp_stream),
        "curl": stream(curl),
        "websockets": websockets,
        "aiohttp WebSocket": aiohttp_socket,
    }[sys.argv[1]]
    stdin = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    running, sends = None, None
    async for line in stdin:
        command = json.loads(line)
        if command["do"] == "connect":
            if running:
                running.cancel()
            sends = asyncio.Queue()
            running = asyncio.create_task(run(command, sends))
        else:
            data = command["data"]
            sends.put_nowait(base64.b64decode(data) if command["binary"] else data)


asyncio.run(main())
