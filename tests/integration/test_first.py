async def test_hello(start_node):
    a, b = await start_node(), await start_node()
    async with a.client() as wire:
        await a.sio.emit("x", 1)
        assert await wire.event() == ["x", 1]
        await b.sio.emit("x", (1, b"a"))
        print(await wire.recv(), await wire.recv())
        await wire.drop()
        await a.sio.emit("y")
        async with b.client(pid=wire.pid, offset=wire.offset) as again:
            assert again.sid == wire.sid
            assert await again.event() == ["y"]
