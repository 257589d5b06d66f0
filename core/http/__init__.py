"""HTTP, by aiohttp: the one wing that knows it."""
