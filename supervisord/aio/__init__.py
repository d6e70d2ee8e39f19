"""Small asyncio parts that every room uses: owned tasks, and locks by identity."""
