"""What the log means: records, offsets, memberships and the verdict. Pure: no asyncio and no I/O."""
